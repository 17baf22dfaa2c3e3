"""Launch configs: a rule by shape and architecture, and the few others worth a try when tuning."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels.launch import dot_precision

__all__ = [
    "Config",
    "Problem",
    "assumed_limits",
    "dense_configs",
    "padded",
    "product_configs",
    "settled_precision",
    "sum_configs",
]

MAX_CONFIGS = 8
# Up to this many samples, reading the weight takes longer than the arithmetic.
NARROW_SAMPLES = 64
# Bytes of shared memory that a block of threads can have, by compute capability (CUDA C++ Programming Guide,
# technical specifications); 99 KiB on all others.
SHARED_MEMORY = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}
# What the interpreter, which has no device, is told.
INTERPRETED = (90, 4)


def padded(size: int) -> int:
    """The least size of a block that matrix instructions take, where a tile has fewer rows."""
    return max(size, 16)


@dataclass(frozen=True)
class Config:
    """How a kernel cuts its problem.

    Attributes
    ----------
    samples : int
        Samples (pixels of a convolution) of a block: of outputs, or in a step of a sum over samples.
    group : int
        Rows (or columns) of tiles that a program owns, 1 or 2; 2 takes patterns whose tiles come in pairs.
    warps : int
    stages : int
        Blocks of inputs in flight, the one in use included.
    splits : int
        Parts of each sum, computed by different programs.
    narrow : bool
        The weight is the first operand of the product, and the samples are its columns: wastes nothing on a
        few samples.
    prefetch : bool
        Fetch the values of a tile while the product of the one before it runs; takes registers.
    depth : int
        Columns (or rows) of a tile, at most, that one step takes: 16, 32 or 64.
    """

    samples: int
    group: int
    warps: int
    stages: int
    splits: int = 1
    narrow: bool = False
    prefetch: bool = False
    depth: int = 64


@dataclass(frozen=True)
class Problem:
    """What the choice of a config depends on.

    Attributes
    ----------
    op : str
    samples : int
        Rows of x, or pixels of a convolution's result.
    outputs : int
        Rows of tiles of the result: of the weight or its transpose; for the gradient of the values, tiles.
    steps : int
        Tiles, at most, that are added up for one block of the result; for the gradient of the values, 0.
    tile_size, element_size : int
    precision : str
        See `dot_precision`.
    complete, paired, full : bool
        As in `TileIndex`.
    capability, processors : int
        Compute capability, 90 for 9.0; number of multiprocessors.
    """

    op: str
    samples: int
    outputs: int
    steps: int
    tile_size: int
    element_size: int
    precision: str
    complete: bool
    paired: bool
    full: bool
    capability: int
    processors: int

    @classmethod
    def of(cls, op: str, x: Tensor, samples: int, outputs: int, steps: int, index: Any) -> Problem:
        """The problem of `op` on tensors like `x` and a pattern's `TileIndex`."""
        return cls(
            op,
            samples,
            outputs,
            steps,
            index.layout.tile_size,
            x.element_size(),
            dot_precision(x.dtype),
            index.complete,
            index.paired,
            index.full,
            *device_limits(x.device),
        )


_assumed: ContextVar[tuple[int, int] | None] = ContextVar("sparsekern_limits", default=None)


@contextmanager
def assumed_limits(capability: int, processors: int) -> Iterator[None]:
    """Choose configs inside the block as for another GPU, which need not be there."""
    token = _assumed.set((capability, processors))
    try:
        yield
    finally:
        _assumed.reset(token)


def device_limits(device: torch.device) -> tuple[int, int]:
    """Compute capability and number of multiprocessors of a device."""
    return _assumed.get() or _limits(device)


def settled_precision(precision: str, device: torch.device) -> str:
    """The `dot_precision` of convolutions on a device.

    On data-centre Blackwell, Triton computes blocks of 64 rows in TF32 where IEEE float32 is asked for. Three
    products of TF32 come within some 1e-6 of it.
    """
    on_blackwell = device_limits(device)[0] // 10 in (10, 11)
    return "tf32x3" if precision == "ieee" and on_blackwell else precision


@functools.cache
def _limits(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


# Blocks, large ones first: a large block reads the inputs less often and decodes a tile for more samples, but
# there have to be enough of them to go round. None of them spills registers, which the tests hold them to.
HALF_BLOCKS = (
    Config(samples=128, group=2, warps=8, stages=3, prefetch=True),
    Config(samples=256, group=2, warps=16, stages=3),
    Config(samples=256, group=1, warps=8, stages=3, prefetch=True),
    Config(samples=128, group=1, warps=8, stages=3),
    Config(samples=64, group=2, warps=8, stages=3),
    Config(samples=64, group=1, warps=4, stages=3),
)
TF32_BLOCKS = (
    Config(samples=128, group=2, warps=8, stages=2),
    Config(samples=128, group=1, warps=8, stages=2),
    Config(samples=64, group=1, warps=8, stages=3),
)
# Products of IEEE float32 run on the ordinary units, which hold their operands in registers.
IEEE_BLOCKS = (
    Config(samples=64, group=1, warps=8, stages=3, depth=16),
    Config(samples=32, group=1, warps=4, stages=3, depth=16),
)
# For the gradient of the values, where `samples` are those of one step.
HALF_SUMS = (
    Config(samples=64, group=2, warps=8, stages=3),
    Config(samples=128, group=2, warps=8, stages=2),
    Config(samples=64, group=1, warps=4, stages=3),
)
TF32_SUMS = (
    Config(samples=64, group=1, warps=8, stages=2),
    Config(samples=32, group=1, warps=8, stages=3),
)
IEEE_SUMS = (
    Config(samples=32, group=1, warps=8, stages=2),
    Config(samples=16, group=1, warps=4, stages=2),
)
# For dense blocks of sums over samples: 64 x 64, or 128 x 128 where `group` is 2.
HALF_DENSE = (
    Config(samples=64, group=2, warps=8, stages=3),
    Config(samples=64, group=1, warps=4, stages=3),
)
TF32_DENSE = (
    Config(samples=32, group=2, warps=8, stages=3),
    Config(samples=32, group=1, warps=4, stages=3),
)
IEEE_DENSE = (Config(samples=16, group=1, warps=8, stages=3),)


def product_configs(problem: Problem) -> tuple[Config, ...]:
    """Configs for a product along tiles, `linear` and its like: the best guess first, at most 8."""
    return _few(_narrow(problem) if problem.samples <= NARROW_SAMPLES else _wide(problem), problem)


def sum_configs(problem: Problem) -> tuple[Config, ...]:
    """Configs for sums over samples, the gradient of the values: as `product_configs`."""
    return _few(_sums(problem), problem)


def dense_configs(problem: Problem) -> tuple[Config, ...]:
    """Configs for dense sums over samples, which no pattern restricts; `outputs` are blocks of 64 x 64.

    The best guess comes first. Nothing is tuned: several passes have to agree on one config.
    """
    problem = replace(problem, tile_size=64, paired=True)
    configs = _by_precision(problem, HALF_DENSE, TF32_DENSE, IEEE_DENSE)
    # Older chips hold the operands in registers too, which do not suffice for four tiles.
    largest = 1 if problem.capability < 90 else 2
    configs = [config for config in configs if _fits(config, problem) and config.group <= largest]
    enough = [config for config in configs if problem.outputs >= config.group**2 * problem.processors]
    return _few(iter([*enough, *reversed(configs)]), problem)


def _by_precision(problem: Problem, half: Any, tf32: Any, ieee: Any) -> Any:
    if problem.element_size == 2:
        return half
    return tf32 if problem.precision == "tf32" else ieee


def _narrow(problem: Problem) -> Iterator[Config]:
    samples = padded(1 << (problem.samples - 1).bit_length())
    stages = 4 if problem.element_size == 2 else 3
    # Bytes are fetched fastest by several programs on each multiprocessor, each on its part of the weight.
    splits = _fill(problem.outputs, problem.steps, 4 * problem.processors)
    depth = 16 if problem.precision == "ieee" else 64
    # Four warps hold more of the block each, for which there are not always registers.
    few = problem.element_size == 2 and (problem.capability >= 90 or samples == 16)
    for warps, factor in ((4, 1), (4, 2), (8, 1), (8, 2)) if few else ((8, 1), (8, 2)):
        parts = max(1, min(problem.steps, splits * factor))
        yield Config(samples, 1, warps, stages, parts, True, prefetch=True, depth=depth)


def _wide(problem: Problem) -> Iterator[Config]:
    blocks = _by_precision(problem, HALF_BLOCKS, TF32_BLOCKS, IEEE_BLOCKS)
    # Where the place of a tile has to be read first, its inputs come two stages later, if there is room.
    for wait in (0,) if problem.complete else (2, 0):
        later = [replace(config, stages=config.stages + wait) for config in blocks]
        if configs := [config for config in later if _fits(config, problem)]:
            break
    enough = [config for config in configs if _programs(config, problem) >= problem.processors]
    if enough:
        yield enough[0]
        yield replace(enough[0], stages=enough[0].stages + 1)
    for config in configs:
        programs = _programs(config, problem)
        yield replace(config, splits=_fill(programs, problem.steps, problem.processors))


def _sums(problem: Problem) -> Iterator[Config]:
    for config in _by_precision(problem, HALF_SUMS, TF32_SUMS, IEEE_SUMS):
        if _fits(config, problem):
            # Every second row and column of programs ends at once where a program owns a group.
            programs = -(-problem.outputs // config.group**2)
            steps = -(-problem.samples // config.samples)
            yield replace(config, splits=_fill(programs, steps // 4, 2 * problem.processors))


def _programs(config: Config, problem: Problem) -> int:
    return -(-problem.samples // config.samples) * -(-problem.outputs // config.group)


def _fill(programs: int, steps: int, wanted: int) -> int:
    """Splits that bring `programs` programs of `steps` steps up to `wanted`."""
    return max(1, min(steps, wanted // max(programs, 1), 64))


def _fits(config: Config, problem: Problem) -> bool:
    if config.group == 2 and not problem.paired:
        return False
    # Triton computes blocks of 64 samples in TF32 on data-centre Blackwell, whatever precision is asked for.
    wide = problem.steps > 0 and not config.narrow and config.samples >= 64
    if problem.precision == "ieee" and problem.capability // 10 in (10, 11) and wide:
        return False
    # Older chips take operands from registers, of which the accumulators of a large block leave too few.
    if problem.capability < 90 and config.samples * config.group > _largest(problem):
        return False
    return _shared_bytes(config, problem) <= SHARED_MEMORY.get(problem.capability, 99 << 10)


def _largest(problem: Problem) -> int:
    if problem.steps == 0:
        return 128
    return 256 if problem.element_size == 2 else 128


def _shared_bytes(config: Config, problem: Problem) -> int:
    """Shared memory of a program, about: inputs in flight, and the decoded tiles."""
    tile = min(padded(problem.tile_size), config.depth)
    if problem.steps == 0:
        return 2 * config.stages * config.samples * config.group * tile * problem.element_size
    inputs = config.stages * config.samples * tile
    weights = config.group * tile * tile * (config.stages if problem.full else 1)
    return (inputs + weights) * problem.element_size


def _few(configs: Iterator[Config], problem: Problem) -> tuple[Config, ...]:
    fitting = [config for config in dict.fromkeys(configs) if _fits(config, problem)]
    return tuple(fitting[:MAX_CONFIGS])
