"""The layers that are compared, and how long they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.timing import CudaClock, cpu_clock, interleave

PATTERNS = ("unstructured", "block", "2:4", "2:4-int8")


@dataclass(frozen=True)
class Question:
    """A layer to ask about.

    Attributes
    ----------
    out_features, in_features : int
    pattern : str
        One of `PATTERNS`.
    sparsity : float
        Fraction of zeros; 0.5 for 2:4.
    dtype : torch.dtype
    device : torch.device
    """

    out_features: int
    in_features: int
    pattern: str
    sparsity: float
    dtype: torch.dtype
    device: torch.device

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass to time."""
        return self.pattern != "2:4-int8"


@dataclass(frozen=True)
class Answer:
    """Seconds for a call with so many tokens: forward, and with backward (None where it has none)."""

    tokens: int
    dense: float
    sparse: float
    dense_both: float | None
    sparse_both: float | None

    @property
    def speedup(self) -> float:
        return self.dense / self.sparse

    @property
    def speedup_both(self) -> float | None:
        return None if self.dense_both is None else self.dense_both / self.sparse_both


def layers_of(question: Question) -> tuple[nn.Linear, nn.Module]:
    """The dense layer, and the sparse one with random weights."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Linear(question.in_features, question.out_features, bias=True, dtype=question.dtype)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
        dense.bias.zero_()
    model = nn.Sequential(nn.Linear(question.in_features, question.out_features, dtype=question.dtype))
    model[0].load_state_dict(dense.state_dict())
    if question.pattern.startswith("2:4"):
        sk.sparsify_(model, pattern="2:4", method="fixed")
    else:
        sk.sparsify_(model, question.sparsity, pattern=question.pattern, generator=generator)
    if question.pattern == "2:4-int8":
        sk.nn.quantize_int8_(model)
    return dense.to(question.device), model[0].to(question.device)


def answer(question: Question, tokens: int, seconds: float) -> Answer:
    """Time both layers, taking turns.

    Parameters
    ----------
    question : Question
    tokens : int
        Rows of the input.
    seconds : float
        Meant for each of the two or four that are timed.
    """
    dense, sparse = layers_of(question)
    x = torch.randn(tokens, question.in_features, dtype=question.dtype, device=question.device)
    runs = {"dense": _forward(dense, x), "sparse": _forward(sparse, x)}
    if question.trains:
        runs |= {"dense_both": _both(dense, x), "sparse_both": _both(sparse, x)}
    clock = CudaClock() if question.device.type == "cuda" else cpu_clock
    times = interleave(runs, seconds=seconds, clock=clock)
    medians = {name: timing.median for name, timing in times.items()}
    return Answer(**{"tokens": tokens, "dense_both": None, "sparse_both": None, **medians})


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return layer(x)

    return run


def _both(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()
    parameters = list(layer.parameters())
    grad = torch.ones(len(x), layer.out_features, dtype=x.dtype, device=x.device)

    def run() -> None:
        torch.autograd.grad(layer(x), [x, *parameters], grad)

    return run
