"""2:4 weights on a GPU: packing them, their product, and a whole step of training, with the ways to do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE, Contender
from benchmarks.gpu.cases import Case
from benchmarks.gpu.linear_contenders import Builders
from benchmarks.gpu.problem import DTYPES
from benchmarks.topology import COPY

CUTLASS, CUSPARSELT = "torch CUTLASS", "torch cuSPARSELt"
ROWS = "sparsekern by rows"
PACKING = "sparsekern with packing"
# PyTorch's masks are chosen greedily, so that its results are others.
GREEDY_CUTLASS, GREEDY_CUSPARSELT = f"{CUTLASS}, greedy mask", f"{CUSPARSELT}, greedy mask"
GREEDY = (GREEDY_CUTLASS, GREEDY_CUSPARSELT)
CLASSES = {
    CUTLASS: SparseSemiStructuredTensorCUTLASS,
    CUSPARSELT: SparseSemiStructuredTensorCUSPARSELT,
    GREEDY_CUTLASS: SparseSemiStructuredTensorCUTLASS,
    GREEDY_CUSPARSELT: SparseSemiStructuredTensorCUSPARSELT,
}


class TwoFourProblem:
    """Random tensors of a linear layer whose weight is 2:4 along rows and columns.

    Attributes
    ----------
    x, grad_y, bias, weight : Tensor
        Standard normal; the weight is dense.
    packed : sparsekern.TwoFour
        The weight, with its transpose.
    kept : Tensor
        The dense weight with the mask applied.
    """

    def __init__(self, case: Case, device: torch.device | str) -> None:
        layer = case.layer
        self.case, self.layer, self.device = case, layer, torch.device(device)
        self.dtype = DTYPES[case.dtype]
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device, "dtype": self.dtype}
        self.weight = torch.randn(layer.weight_shape, **options)
        self.x = torch.randn(layer.input_shape, **options)
        self.grad_y = torch.randn(layer.output_shape, **options)
        self.bias = torch.randn(layer.outputs, **options)

    @cached_property
    def packed(self) -> sk.TwoFour:
        return sk.ops.pack_two_four(self.weight, transposable=True)

    @cached_property
    def kept(self) -> Tensor:
        return sk.ops.unpack_two_four(self.packed)

    @cached_property
    def right(self) -> Tensor:
        """In float64 from the mask that C++ chooses; packing gives the weight that is kept, twice."""
        packed = sk.ops.pack_two_four(self.weight.cpu(), transposable=True, backend="cpp")
        kept = sk.ops.unpack_two_four(packed).to(self.device)
        if self.case.op == "pack_two_four":
            return torch.stack([kept, kept])
        x, grad_y, bias = self.x.double(), self.grad_y.double(), self.bias.double()
        y = F.linear(x, kept.double(), bias)
        if self.case.op == "two_four_linear":
            return y
        return joined((y, grad_y @ kept.double(), grad_y.t() @ x, grad_y.sum(0)))[0]


def joined(results: tuple[Tensor, ...]) -> tuple[Tensor]:
    """The output of a step, and the gradients of x, the weight and the bias."""
    return (torch.cat([result.double().flatten() for result in results]),)


def first(results: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Of a yardstick, which nobody looks at."""
    return (results[0],)


def rows_read(packed: sk.TwoFour) -> tuple[Tensor]:
    transposed = sk.ops.unpack_two_four(packed.transposed).t()
    return (torch.stack([sk.ops.unpack_two_four(packed), transposed]),)


def rows_packed(p: TwoFourProblem) -> Contender:
    run = lambda: sk.ops.pack_two_four(p.weight, transposable=True)  # noqa: E731
    return Contender(SPARSE, run, rows_read)


def cutlass_packed(p: TwoFourProblem) -> Contender:
    """For the GPUs whose products read this layout."""
    from sparsekern import cuda

    def read(parts: list[Tensor]) -> tuple[Tensor]:
        values, metadata, values_t, metadata_t = parts
        kept = sparse_semi_structured_to_dense_cutlass(values, metadata)
        return (torch.stack([kept, sparse_semi_structured_to_dense_cutlass(values_t, metadata_t).t()]),)

    _needs_cuda(p)
    run = lambda: cuda.pack_two_four([p.weight], True, True, layout="cutlass")  # noqa: E731
    return Contender("sparsekern for CUTLASS", run, read)


def tile_packed(p: TwoFourProblem, name: str) -> Contender:
    _needs_cuda(p)
    use_cutlass = name == GREEDY_CUTLASS
    run = lambda: torch._sparse_semi_structured_tile(p.weight, "", use_cutlass)  # noqa: E731
    return Contender(name, run, first)


def rows_forward(p: TwoFourProblem) -> Contender:
    """Triton's kernel, or C++ on a CPU."""
    backend = "triton" if p.device.type == "cuda" else "cpp"
    return Contender(ROWS, lambda: sk.ops.two_four_linear(p.x, p.packed, p.bias, backend=backend))


def torch_forward(p: TwoFourProblem, name: str) -> Contender:
    weight = CLASSES[name].from_dense(p.kept)
    return Contender(name, lambda: F.linear(p.x, weight, p.bias))


def step(
    p: TwoFourProblem, weight: Tensor, product: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """A product and its gradients, as autograd has them."""
    inputs = [tensor.detach().requires_grad_() for tensor in (p.x, weight, p.bias)]

    def run() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = product(*inputs)
            return y.detach(), *torch.autograd.grad(y, inputs, p.grad_y)

    return run


def sparse_step(p: TwoFourProblem) -> Contender:
    """Of a weight that was packed before."""
    product = lambda x, weight, bias: sk.ops.two_four_linear_dense(x, weight, p.packed, bias)  # noqa: E731
    return Contender(SPARSE, step(p, p.weight, product), joined)


def packing_step(p: TwoFourProblem) -> Contender:
    """The mask is chosen, and the weight packed both ways, every time."""

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        packed = sk.ops.pack_two_four(weight, transposable=True)
        return sk.ops.two_four_linear_dense(x, weight, packed, bias)

    return Contender(PACKING, step(p, p.weight, product), joined)


def torch_step(p: TwoFourProblem, name: str) -> Contender:
    """What PyTorch's own class does for training, packing included: both ways, and two sparse products."""

    def run() -> tuple[Tensor, ...]:
        weight = CLASSES[name].prune_dense_static_sort(p.weight)
        y = F.linear(p.x, weight, p.bias)
        return y, F.linear(p.grad_y, weight.t()), p.grad_y.t() @ p.x, p.grad_y.sum(0)

    _needs_cuda(p)
    return Contender(name, run, first)


def _needs_cuda(p: TwoFourProblem) -> None:
    if p.device.type != "cuda":
        raise NotImplementedError("it runs on CUDA devices")


def _named(build: Callable[[TwoFourProblem, str], Contender], name: str) -> Builders:
    return {name: lambda p: build(p, name)}


TWO_FOUR: dict[str, Builders] = {
    "pack_two_four": {
        COPY: lambda p: Contender(COPY, lambda: p.weight.clone()),
        SPARSE: rows_packed,
        "sparsekern for CUTLASS": cutlass_packed,
        **_named(tile_packed, GREEDY_CUTLASS),
        **_named(tile_packed, GREEDY_CUSPARSELT),
    },
    "two_four_linear": {
        DENSE: lambda p: Contender(DENSE, lambda: F.linear(p.x, p.kept, p.bias)),
        SPARSE: lambda p: Contender(SPARSE, lambda: sk.ops.two_four_linear(p.x, p.packed, p.bias)),
        ROWS: rows_forward,
        **_named(torch_forward, CUTLASS),
        **_named(torch_forward, CUSPARSELT),
    },
    "two_four_training": {
        DENSE: lambda p: Contender(DENSE, step(p, p.kept, F.linear), joined),
        SPARSE: sparse_step,
        PACKING: packing_step,
        **_named(torch_step, GREEDY_CUTLASS),
        **_named(torch_step, GREEDY_CUSPARSELT),
    },
}
