"""`Launch`: one kernel with all that a run of it needs, which is also all that compiling it needs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "Constants",
    "Launch",
    "LaunchError",
    "Sections",
    "add_parts",
    "at_least_one",
    "dot_precision",
    "split_parts",
]


class LaunchError(RuntimeError):
    """A kernel could not be compiled for the device, or its launch failed."""


class Sections(NamedTuple):
    """What kernels read of a pattern; see `TileIndex`."""

    tile_start: Tensor
    tile_row_ptr: Tensor
    tile_col: Tensor
    tile_ptr_t: Tensor
    tile_order_t: Tensor
    tile_row: Tensor
    row_offset: Tensor
    bits: Tensor

    @classmethod
    def of(cls, index: Any) -> Sections:
        return cls(*(getattr(index, name) for name in cls._fields))


class Constants(NamedTuple):
    """What a kernel is compiled for, beside the types of its arguments.

    Attributes
    ----------
    TILE : int
        Tile size.
    GROUP : int
        Tiles side by side that a program owns.
    ROWS, COLUMNS : int
        The block of weights of one step, at least 16 x 16.
    PARTS : int
        Steps that a tile takes.
    SAMPLES, SPLITS, NARROW, PREFETCH :
        As in `Config`.
    COMPLETE, FULL : bool
        As in `TileIndex`.
    EVEN : bool
        No tile is cut off at the last row or column.
    MASKED : bool
        The weight is dense, and the bits apply to it.
    HAS_BIAS : bool
    PRECISION : str
        See `dot_precision`.
    ALIGNED : bool
        Of a convolution: the columns of one step share a tap.
    RUN : int
        Of a convolution: so many columns side by side, from a multiple of it on, share a tap.
    WIDE : bool
        Of a convolution: offsets into images take 64 bits.
    WIDTH, SPAN, RUNS, SEARCH : int
        Of the gradient of a convolution's input: channels that a program owns; columns of tiles, at most,
        that they lie in at one tap; those of all taps, or the next power of two; halvings that find a row of
        tiles in a column of them, 0 where there is one group and nothing has to be found.
    """

    TILE: int
    GROUP: int
    PARTS: int
    SAMPLES: int
    SPLITS: int
    NARROW: bool
    PREFETCH: bool
    COMPLETE: bool
    FULL: bool
    EVEN: bool
    MASKED: bool
    PRECISION: str
    ROWS: int = 16
    COLUMNS: int = 16
    HAS_BIAS: bool = False
    ALIGNED: bool = True
    RUN: int = 1
    WIDE: bool = False
    WIDTH: int = 16
    SPAN: int = 1
    RUNS: int = 1
    SEARCH: int = 0

    @classmethod
    def of(cls, index: Any, weight: Tensor, dtype: torch.dtype, config: Any) -> Constants:
        """Constants for a pattern's `TileIndex`, a weight in either storage and a `Config`."""
        layout = index.layout
        masked = weight.dim() > 1
        return cls(
            TILE=layout.tile_size,
            GROUP=config.group,
            PARTS=max(layout.tile_size // config.depth, 1),
            SAMPLES=config.samples,
            SPLITS=config.splits,
            NARROW=config.narrow,
            PREFETCH=config.prefetch and not masked and not index.full,
            COMPLETE=index.complete,
            FULL=index.full,
            EVEN=layout.rows % layout.tile_size == 0 and layout.cols % layout.tile_size == 0,
            MASKED=masked,
            PRECISION=dot_precision(dtype),
        )


@dataclass(frozen=True)
class Launch:
    """A kernel, the number of its programs, and its arguments.

    Attributes
    ----------
    kernel : triton.JITFunction
        Its last argument are the constants.
    programs : int
        0 launches nothing.
    arguments : tuple
        Tensors, numbers, None and `Sections`.
    constants : NamedTuple
        `Constants`, or those of a kernel that needs others.
    warps, stages : int
        As in `Config`.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: Any
    warps: int
    stages: int

    @property
    def device(self) -> torch.device:
        """Where the arguments are."""
        return next(value.device for value in self.arguments if isinstance(value, Tensor))

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options; whether multiplies and adds may fuse is stated because its default changes."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        if self.constants.PRECISION in ("ieee", "tf32", "tf32x3"):
            # The compiler would rather spill some of float32's many registers than run fewer blocks.
            options["maxnreg"] = 255
        return options

    @property
    def compiled_arguments(self) -> tuple[Any, ...]:
        """All arguments as the kernel takes them."""
        return *self.arguments, type(self.constants)(*map(tl.constexpr, self.constants))

    def run(self) -> None:
        """Launch on the device's current stream.

        Raises
        ------
        LaunchError
            When the kernel does not compile for the device or needs more than it has.
        """
        if self.programs == 0:
            return
        device = self.device
        on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with on_device:
                self.kernel[(self.programs,)](*self.compiled_arguments, **self.options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            name = getattr(self.kernel, "__name__", self.kernel)
            raise LaunchError(
                f"{name} on {device}, {self.warps} warps, {self.stages} stages, {self.constants}: {error}"
            ) from error


def dot_precision(dtype: torch.dtype) -> str:
    """How products are computed; those of float32 as PyTorch is told to compute its own matrix products.

    "half" for 16-bit operands, "ieee" or "tf32" for float32, and "widened" for bfloat16 in the interpreter,
    which takes its bits for integers.
    """
    if dtype != torch.float32:
        return "widened" if dtype == torch.bfloat16 and triton.knobs.runtime.interpret else "half"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def at_least_one(values: Tensor) -> Tensor:
    """`values`, or a zero where there are none: a decode reads the first value in place of those it drops."""
    return values if values.numel() else values.new_zeros(1)


def split_parts(result: Tensor, splits: int, *, zeroed: bool = False) -> Tensor:
    """Where a kernel writes: `result` itself, or a float32 buffer with a part for each split."""
    if splits == 1:
        return result
    empty = torch.zeros if zeroed else torch.empty
    return empty((splits, *result.shape), dtype=torch.float32, device=result.device)


def add_parts(parts: Tensor, result: Tensor, bias: Tensor | None = None) -> None:
    """The parts of all splits added up into `result`, in order, so that it has the same bits every time."""
    if parts is result:
        return
    total = parts.sum(0)
    result.copy_(total if bias is None else total.add_(bias))
