"""Ops on weights alone, and growing, on a GPU: their right results and the ways to come by them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

import sparsekern as sk
from benchmarks.contenders import SPARSE, Contender
from benchmarks.gpu.cases import Case
from benchmarks.gpu.linear_contenders import Builders
from benchmarks.gpu.problem import Problem
from benchmarks.topology import COPY, DROP_FRACTION, MOST_TIES

# Does less than the op, as a yardstick; its result is not the op's.
FILL, GRADIENT = "fill", "dense gradient"
YARDSTICKS = (FILL, COPY, GRADIENT)
# A weight and the two moments of Adam.
VECTORS = 3


class WeightProblem(Problem):
    """A problem with a second pattern, scores of all positions, and a number of them to exchange."""

    def __init__(self, case: Case, device: torch.device | str) -> None:
        super().__init__(case, device)
        self.count = round(DROP_FRACTION * self.pattern.nnz)

    @cached_property
    def target(self) -> sk.Pattern:
        generator = torch.Generator().manual_seed(1)
        options = {"block_size": self.case.block, "generator": generator}
        return sk.Pattern.random(self.pattern.shape, self.case.sparsity, **options).to(self.device)

    @cached_property
    def scores(self) -> Tensor:
        return self._normal(*self.pattern.shape)

    @cached_property
    def positions(self) -> Tensor:
        return positions_of(self.pattern)

    @cached_property
    def target_positions(self) -> Tensor:
        return positions_of(self.target)

    @cached_property
    def right(self) -> Tensor:
        op = self.case.op
        if op == "pack":
            return self.weight.reshape(-1)[self.positions]
        if op == "unpack":
            return self.values.new_zeros(self.pattern.numel).index_copy_(0, self.positions, self.values)
        if op in ("transfer", "transfer_all"):
            return self.weight.reshape(-1)[self.target_positions]
        if op == "update_topology":
            arguments = [self.values.cpu()], [self.host_pattern], [self.scores.cpu()], [self.count]
            return sk.ops.update_topology(*arguments)[0].to_mask().to(self.device)
        return self.scored.topk(self.candidates).values

    @property
    def candidates(self) -> int:
        return min(self.count, self.pattern.numel - self.pattern.nnz)

    def gradient(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense gradient as a matrix like the pattern's; by default in the case's dtype."""
        grad_y, x, weight = (self.grad_y, self.x, self.weight)
        if dtype is not None:
            grad_y, x, weight = grad_y.to(dtype), x.to(dtype), weight.to(dtype)
        if self.layer.kind == "linear":
            return grad_y.t() @ x
        found = self.convolution_gradient(grad_y, x, weight, "weight")
        return found.permute(0, 2, 3, 1).flatten(1)

    @cached_property
    def inactive(self) -> Tensor:
        mask = self.mask if self.mask.dim() == 2 else self.mask.permute(0, 2, 3, 1).flatten(1)
        return ~mask

    @cached_property
    def scored(self) -> Tensor:
        """Float32 or better: the gradient's magnitude at inactive positions, elsewhere -1; flat."""
        exact = torch.float64 if self.layer.kind == "linear" else torch.float32
        return self.gradient(exact).abs_().masked_fill_(~self.inactive, -1).flatten()


def positions_of(pattern: sk.Pattern) -> Tensor:
    """Where each value is in the flattened dense weight."""
    return pattern.pack(torch.arange(pattern.numel, device=pattern.device).view(pattern.shape))


def flat(result: Tensor) -> tuple[Tensor]:
    return (result.reshape(-1),)


def first(result: list[Tensor]) -> tuple[Tensor]:
    """The vectors are equal, and so must the results be."""
    same = all(torch.equal(vector, result[0]) for vector in result)
    return (result[0] if same else result[0][:0],)


def unpack_fill(p: WeightProblem) -> Contender:
    return Contender(FILL, lambda: torch.zeros_like(p.weight))


def unpack_scatter(p: WeightProblem) -> Contender:
    size = p.pattern.numel
    run = lambda: p.values.new_zeros(size).index_copy_(0, p.positions, p.values)  # noqa: E731
    return Contender("scatter", run)


def transfer_scatter(p: WeightProblem, vectors: int = 1) -> Contender:
    def one() -> Tensor:
        dense = p.values.new_zeros(p.pattern.numel).index_copy_(0, p.positions, p.values)
        return dense[p.target_positions]

    return Contender("scatter", lambda: [one() for _ in range(vectors)], first)


def transfer_copy(p: WeightProblem, vectors: int = 1) -> Contender:
    return Contender(COPY, lambda: [p.values.clone() for _ in range(vectors)])


def update_sparse(p: WeightProblem) -> Contender:
    run = lambda: sk.ops.update_topology([p.values], [p.pattern], [p.scores], [p.count])  # noqa: E731
    return Contender(SPARSE, run, lambda result: (result[0].to_mask(),))


def update_topk(p: WeightProblem) -> Contender:
    """As PyTorch ports of RigL do it: two `torch.topk`, of the positions that go and of those that come."""

    def run() -> Tensor:
        size = p.weight.abs().masked_fill_(~p.mask, torch.inf).view(-1)
        mask = p.mask.clone()
        mask.view(-1)[torch.topk(size, p.count, largest=False, sorted=False).indices] = False
        scores = p.scores.abs().masked_fill_(mask, -1).view(-1)
        mask.view(-1)[torch.topk(scores, p.count, sorted=False).indices] = True
        return mask

    def dense(mask: Tensor) -> tuple[Tensor]:
        # Ties go as they like, of which 16-bit scores have many.
        ties = MOST_TIES if p.dtype == torch.float32 else p.pattern.numel
        alike = int(mask.sum()) == p.pattern.nnz and int((mask != p.right).sum()) <= ties
        return (p.right if alike else mask,)

    return Contender("topk", run, dense)


def grow(p: WeightProblem) -> Contender:
    op, options = getattr(sk.ops, p.case.op), p.geometry if p.layer.kind == "conv2d" else {}
    run = lambda: op(p.grad_y, p.x, p.pattern, p.count, **options)  # noqa: E731
    return Contender(SPARSE, run, lambda result: best(p, result[0]))


def grow_topk(p: WeightProblem) -> Contender:
    def run() -> Tensor:
        scores = p.gradient().abs().masked_fill_(~p.inactive, -1).view(-1)
        return torch.topk(scores, p.candidates, sorted=False).indices

    return Contender("dense + topk", run, lambda positions: best(p, positions))


def best(p: WeightProblem, positions: Tensor) -> tuple[Tensor]:
    """The exact scores of the chosen positions, largest first; empty where one is chosen twice."""
    if positions.unique().numel() != p.candidates:
        return (p.scored[:0],)
    return (p.scored[positions].sort(descending=True).values,)


def _ours(run: Callable[[WeightProblem], object]) -> Callable[[WeightProblem], Contender]:
    return lambda p: Contender(SPARSE, lambda: run(p), flat)


GROW: Builders = {
    GRADIENT: lambda p: Contender(GRADIENT, p.gradient),
    "dense + topk": grow_topk,
    SPARSE: grow,
}
WEIGHTS: dict[str, Builders] = {
    "pack": {
        "gather": lambda p: Contender("gather", lambda: p.weight.view(-1)[p.positions]),
        SPARSE: _ours(lambda p: sk.ops.pack(p.weight, p.pattern)),
    },
    "unpack": {
        FILL: unpack_fill,
        "scatter": unpack_scatter,
        SPARSE: _ours(lambda p: sk.ops.unpack(p.values, p.pattern)),
    },
    "transfer": {
        COPY: transfer_copy,
        "scatter": transfer_scatter,
        SPARSE: _ours(lambda p: sk.ops.transfer(p.values, p.pattern, p.target)),
    },
    "transfer_all": {
        COPY: lambda p: transfer_copy(p, VECTORS),
        "scatter": lambda p: transfer_scatter(p, VECTORS),
        SPARSE: lambda p: Contender(
            SPARSE, lambda: sk.ops.transfer_all([p.values] * VECTORS, p.pattern, p.target), first
        ),
    },
    "update_topology": {
        COPY: lambda p: Contender(COPY, lambda: p.scores.clone()),
        "topk": update_topk,
        SPARSE: update_sparse,
    },
    "grow_candidates": GROW,
    "grow_candidates_conv2d": GROW,
}
