"""On a GPU: every op that has a kernel there, against plain PyTorch and the least that has to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from benchmarks.measure import first_line, relative_error
from benchmarks.settings import Settings
from benchmarks.timing import CudaClock, cpu_clock, interleave

SHAPES = ((4096, 4096), (8192, 8192))
QUICK_SHAPES = ((192, 128),)
BATCH = 4096
DTYPES = (torch.float32, torch.bfloat16)
# Largest error over the largest right value of sums; what only moves values has to be exact.
ERRORS = {torch.float32: 5e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Work:
    """One op on one problem: ways to do it, its right result, and the bytes that any way has to move."""

    ways: dict[str, Callable[[], Tensor]]
    right: Tensor
    bytes: int
    largest_error: float = 0.0


def _positions(pattern: sk.Pattern) -> Tensor:
    """Where each value is in the flattened dense weight."""
    return pattern.pack(torch.arange(pattern.numel, device=pattern.device).view(pattern.shape))


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def unpack(pattern: sk.Pattern, values: Tensor) -> Work:
    """The dense weight; ``fill`` writes as much and reads nothing."""
    from sparsekern.kernels import tile_decode

    right, positions = pattern.unpack(values), _positions(pattern)
    ways = {
        "fill": lambda: torch.zeros_like(right),
        "scatter": lambda: torch.zeros_like(right).view(-1).index_copy_(0, positions, values).view_as(right),
        "triton": lambda: tile_decode.unpack(values, pattern),
        "sparsekern": lambda: sk.ops.unpack(values, pattern),
    }
    return Work(ways, right, _bytes(right, values) + pattern.nbytes)


def transfer(pattern: sk.Pattern, values: Tensor) -> Work:
    """Values on another pattern of the same sparsity; ``copy`` moves as many in order."""
    generator = torch.Generator().manual_seed(1)
    target = sk.Pattern.random(
        pattern.shape, pattern.sparsity, generator=generator, tile_size=pattern.tile_size
    ).to(pattern.device)
    right, source_positions, positions = (
        pattern.transfer(values, target),
        _positions(pattern),
        _positions(target),
    )
    ways = {
        "copy": lambda: right.clone(),
        "scatter": lambda: values.new_zeros(pattern.numel).index_copy_(0, source_positions, values)[
            positions
        ],
        "sparsekern": lambda: sk.ops.transfer(values, pattern, target),
    }
    return Work(ways, right, _bytes(values, right) + pattern.nbytes + target.nbytes)


def linear(pattern: sk.Pattern, values: Tensor) -> Work:
    """The forward pass of a linear layer on a batch."""
    outputs, inputs = pattern.matrix_shape
    x = torch.randn(BATCH, inputs, dtype=values.dtype, device=values.device)
    weight = pattern.unpack(values)
    right = F.linear(x.double(), weight.double())
    ways = {
        "dense": lambda: F.linear(x, weight),
        "sparsekern": lambda: sk.ops.linear(x, values, pattern),
    }
    moved = _bytes(x, values) + BATCH * outputs * values.element_size() + pattern.nbytes
    return Work(ways, right, moved, ERRORS[values.dtype])


WORK = {"unpack": unpack, "transfer": transfer, "linear": linear}
# A way that has to do less than the op, as a yardstick; its result is not the op's.
YARDSTICKS = ("fill", "copy")


def timed(work: Work, clock: Callable[..., float], seconds: float) -> dict[str, dict[str, Any]]:
    """As `benchmarks.measure.compare` returns it, by way."""
    found: dict[str, dict[str, Any]] = {}
    for name, way in work.ways.items():
        try:
            error = 0.0 if name in YARDSTICKS else relative_error(way(), work.right)
        except (RuntimeError, ImportError, ValueError) as reason:
            found[name] = {"missing": first_line(reason)}
            continue
        found[name] = {"error": error} if error <= work.largest_error else {"wrong": error}
    right = {name: work.ways[name] for name, record in found.items() if "error" in record}
    for name, timing in interleave(right, seconds=seconds, calls=1, clock=clock).items():
        found[name] = {**timing.record(), **found[name]}
    return found


@torch.no_grad()
def measure(settings: Settings, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """One record for each op, shape, sparsity and dtype."""
    clock = CudaClock() if device == "cuda" else cpu_clock
    for shape in QUICK_SHAPES if settings.quick else SHAPES:
        for sparsity in settings.sparsities:
            pattern = sk.Pattern.random(shape, sparsity, generator=torch.Generator().manual_seed(0)).to(
                device
            )
            for dtype in DTYPES:
                values = torch.randn(pattern.nnz, dtype=dtype, device=device)
                for op, work_of in WORK.items():
                    case, dtype_name = f"{shape[0]}x{shape[1]}", str(dtype).removeprefix("torch.")
                    settings.progress(f"gpu, {op} {case}, {sparsity:.0%}, {dtype_name}")
                    work = work_of(pattern, values)
                    yield {
                        "op": op,
                        "case": case,
                        "sparsity": sparsity,
                        "dtype": dtype_name,
                        "bytes": work.bytes,
                        "times": timed(work, clock, settings.seconds),
                    }
