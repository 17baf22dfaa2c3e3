"""Pixels of images as the samples of a product: where they lie, and what a tap of a convolution reads there.

A *tap* is a position of the kernel. It reads, for the pixel (row, column) of a result, the pixel
(row * stride - pad + tap row * dilation, ...) of the source: the first tap's place, plus a shift.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "Divisor",
    "FirstTaps",
    "Grid",
    "Pixels",
    "Strides",
    "Window",
    "channel_run",
    "groups_in_tile",
    "is_channels_last",
    "is_wide",
    "tiles_in_group",
]

# Pixels of one image are counted in 32 bits, and blocks of them may end beyond the last.
MAX_PLANE = 2**31 - 1024


class Divisor(NamedTuple):
    """An integer from 1 to 2^31 - 1 to divide by with a multiplication; see `divide`.

    Granlund & Montgomery, Division by Invariant Integers using Multiplication (1994), section 4.
    """

    value: int
    multiplier: int
    shift: int

    @classmethod
    def of(cls, value: int) -> Divisor:
        shift = (value - 1).bit_length()
        multiplier = (2**32 * (2**shift - value)) // value + 1
        # The same 32 bits as a signed integer, so that the kernel's signature is the same for every value.
        return cls(value, multiplier - 2**32 if multiplier >= 2**31 else multiplier, shift)


class Strides(NamedTuple):
    """Elements from one image, channel, row and column of a tensor to the next."""

    image: int
    channel: int
    row: int
    column: int


class Window(NamedTuple):
    """Which pixels a result is made of, and what its taps read.

    Attributes
    ----------
    images : int
    plane, width : Divisor
        Pixels of one image, and of one of its rows.
    source_height, source_width : int
        Of what is read.
    stride_row, stride_column : int
        From one pixel's first tap to the next one's.
    pad_row, pad_column : int
        From the first tap of pixel (0, 0) to the source's first row and column.
    taps_row : int
        Taps in a row of the kernel.
    shift_row, shift_column : int
        From one tap to the next.
    """

    images: int
    plane: Divisor
    width: Divisor
    source_height: int
    source_width: int
    stride_row: int
    stride_column: int
    pad_row: int
    pad_column: int
    taps_row: int
    shift_row: int
    shift_column: int

    @classmethod
    def of_output(cls, x: Tensor, shape: tuple[int, ...], geometry: tuple[int, ...]) -> Window:
        """The pixels of a convolution's output, which read x. `shape` is the weight's."""
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = geometry
        images, _, height, width = x.shape
        out_h = (height + 2 * pad_h - dilation_h * (shape[2] - 1) - 1) // stride_h + 1
        out_w = (width + 2 * pad_w - dilation_w * (shape[3] - 1) - 1) // stride_w + 1
        return cls(
            images,
            plane_divisor(out_h, out_w),
            Divisor.of(out_w),
            height,
            width,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            shape[3],
            dilation_h,
            dilation_w,
        )

    @classmethod
    def of_classes(cls, grad_y: Tensor, grad_x: Tensor, taps: Any) -> Window:
        """The pixels of the largest class of a convolution's input, which read the output's gradient: each of
        its `Taps` further up and to the left. The first ones' places differ from class to class."""
        height, width = taps.rows.most_pixels, taps.columns.most_pixels
        return cls(
            grad_x.shape[0],
            plane_divisor(height, width),
            Divisor.of(width),
            *grad_y.shape[2:],
            1,
            1,
            0,
            0,
            taps.columns.most_taps,
            -taps.rows.dilation // taps.rows.common,
            -taps.columns.dilation // taps.columns.common,
        )

    @property
    def pixels(self) -> int:
        """Those of all images."""
        return self.images * self.plane.value


class Grid(NamedTuple):
    """How the programs of a product divide it.

    Attributes
    ----------
    blocks : int
        Of pixels.
    programs : int
        For each block.
    each : int
        Of those, for each group of the convolution.
    """

    blocks: int
    programs: int
    each: int


class Pixels(NamedTuple):
    """A block of pixels: the image (int64; it may be beyond the last), row and column of each."""

    image: Any
    row: Any
    column: Any


class FirstTaps(NamedTuple):
    """What the first taps of a block of pixels read: place in memory, row and column of each."""

    place: Any
    row: Any
    column: Any


def plane_divisor(height: int, width: int) -> Divisor:
    """The pixels of an image.

    Raises
    ------
    ValueError
        When they are too many to be counted in 32 bits.
    """
    if height * width > MAX_PLANE:
        raise ValueError(f"an image must have at most {MAX_PLANE} pixels, got {height} x {width}")
    return Divisor.of(height * width)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the results of an op on `tensor` are to have channels last in memory."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def is_wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors takes more than 32 bits."""
    spans = [sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t.numel()]
    return max(spans, default=0) >= 2**31


def channel_run(channels: int) -> int:
    """The largest power of two, up to 8, that divides the channels: elements of a vector that share a tap."""
    return min(channels & -channels, 8)


def tiles_in_group(rows: int, tile_size: int) -> int:
    """Rows of tiles, at most, that hold rows of one group of a convolution with `rows` rows in each."""
    if rows % tile_size == 0:
        return rows // tile_size
    return 1 if tile_size % rows == 0 else (rows + tile_size - 2) // tile_size + 1


def groups_in_tile(rows: int, groups: int, tile_size: int) -> int:
    """Groups of `rows` rows, at most, that a row of tiles holds rows of."""
    if rows % tile_size == 0:
        return 1
    most = tile_size // rows if tile_size % rows == 0 else (tile_size + rows - 2) // rows + 1
    return min(most, groups)


@triton.jit
def divide(number, divisor):
    """number // divisor for 0 <= number < 2^31 in 32 bits; see `Divisor`."""
    number = number.to(tl.uint32)
    high = tl.umulhi(number, tl.cast(divisor.multiplier, tl.uint32))
    return ((high + number) >> divisor.shift).to(tl.int32)


@triton.jit
def first_pixel(block, window, SAMPLES: tl.constexpr):
    """(image, place in the image) of the first pixel of a block; the image is int64, the place is not."""
    first = block.to(tl.int64) * SAMPLES
    image = first // window.plane.value
    return image, (first - image * window.plane.value).to(tl.int32)


@triton.jit
def next_pixel(image, place, window, SAMPLES: tl.constexpr):
    """(image, place in the image) of the first pixel of the next block."""
    place += SAMPLES
    images = divide(place, window.plane)
    return image + images, place - images * window.plane.value


@triton.jit
def pixels_from(image, place, window, SAMPLES: tl.constexpr):
    """The `Pixels` of a block that begins at a place of an image."""
    place += tl.arange(0, SAMPLES)
    images = divide(place, window.plane)
    place -= images * window.plane.value
    row = divide(place, window.width)
    return Pixels(image + images, row, place - row * window.width.value)


@triton.jit
def as_offset(number, C):
    """A number that is to be multiplied with a stride, in as many bits as the result takes."""
    if C.WIDE:
        return number.to(tl.int64)
    else:
        return number.to(tl.int32)


@triton.jit
def places_of_pixels(image, row, column, strides, C):
    """Offsets of pixels in memory; those outside an image have one too, which is not to be read."""
    place = as_offset(image, C) * strides.image + as_offset(row, C) * strides.row
    return place + as_offset(column, C) * strides.column


@triton.jit
def first_taps(pixels, window, strides, C):
    """The `FirstTaps` of pixels; those of pixels beyond the last image lie outside of any."""
    row = pixels.row * window.stride_row - window.pad_row
    row = tl.where(pixels.image < window.images, row, -(1 << 30))
    column = pixels.column * window.stride_column - window.pad_column
    return FirstTaps(places_of_pixels(pixels.image, row, column, strides, C), row, column)


@triton.jit
def load_tap(source, first, tap_row, tap_column, channel, valid, window, strides, C):
    """A block (pixel, channel) of what one tap reads, 0 outside; (channel, pixel) if `C.NARROW`.

    `first` are the pixels' first taps, and the tap is a scalar. `channel` is that of the tensor, and `valid`
    its mask.
    """
    row = first.row + tap_row * window.shift_row
    column = first.column + tap_column * window.shift_column
    inside = (row >= 0) & (row < window.source_height) & (column >= 0) & (column < window.source_width)
    place = first.place + as_offset(tap_row * window.shift_row, C) * strides.row
    place += as_offset(tap_column * window.shift_column, C) * strides.column
    offset = as_offset(channel, C) * strides.channel
    if C.NARROW:
        place = place[None, :] + offset[:, None]
        inside = inside[None, :] & valid[:, None]
    else:
        place = place[:, None] + offset[None, :]
        inside = inside[:, None] & valid[None, :]
    return tl.load(source + place, mask=inside, other=0)


@triton.jit
def load_taps(source, first, weight_column, offset, channels, valid, window, strides, C):
    """A block (pixel, column of the weight) of what the columns' taps read; otherwise as `load_tap`.

    Each column has its own tap and channel; the first channel of the weight is the tensor's `offset`.
    """
    tap = weight_column // channels
    channel = tl.max_contiguous(tl.multiple_of(weight_column % channels, C.RUN), C.RUN)
    shift_row = tl.max_constancy(tap // window.taps_row * window.shift_row, C.RUN)
    shift_column = tl.max_constancy(tap % window.taps_row * window.shift_column, C.RUN)
    valid = tl.max_constancy(valid, C.RUN)
    shift = as_offset(shift_row, C) * strides.row + as_offset(shift_column, C) * strides.column
    shift = tl.max_constancy(shift, C.RUN) + as_offset(offset + channel, C) * strides.channel
    if C.NARROW:
        row = first.row[None, :] + shift_row[:, None]
        column = first.column[None, :] + shift_column[:, None]
        place = first.place[None, :] + shift[:, None]
        valid = valid[:, None]
    else:
        row = first.row[:, None] + shift_row[None, :]
        column = first.column[:, None] + shift_column[None, :]
        place = first.place[:, None] + shift[None, :]
        valid = valid[None, :]
    inside = (row >= 0) & (row < window.source_height) & (column >= 0) & (column < window.source_width)
    return tl.load(source + place, mask=inside & valid, other=0)


@triton.jit
def load_columns(source, first, first_column, width, offset, sizes, window, strides, C):
    """What the columns [first_column, first_column + width) of the weight read: `load_taps`, or `load_tap`
    where the tap of all is the same. A block may be wider; the rest is 0, and not read."""
    in_block = tl.arange(0, C.COLUMNS)
    valid = in_block < width
    if C.ALIGNED:
        tap = first_column // sizes.channels
        tap_row = tap // window.taps_row
        tap_column = tap - tap_row * window.taps_row
        # The compiler does not follow the division.
        channel = tl.multiple_of(offset + first_column % sizes.channels, C.RUN) + in_block
        return load_tap(source, first, tap_row, tap_column, channel, valid, window, strides, C)
    else:
        column = first_column + in_block
        valid &= column < sizes.columns
        return load_taps(source, first, column, offset, sizes.channels, valid, window, strides, C)


@triton.jit
def pixel_block(tensor, pixels, images, channel, valid, strides, C):
    """Pointers to a block (pixel, channel), or (channel, pixel) if `C.NARROW`, and which to use: those in one
    of `images` whose channel is `valid`."""
    place = places_of_pixels(pixels.image, pixels.row, pixels.column, strides, C)
    offset = as_offset(channel, C) * strides.channel
    inside = pixels.image < images
    if C.NARROW:
        place = place[None, :] + offset[:, None]
        inside = inside[None, :] & valid[:, None]
    else:
        place = place[:, None] + offset[None, :]
        inside = inside[:, None] & valid[None, :]
    return tensor + place, inside


@triton.jit
def load_pixels(tensor, pixels, images, channel, valid, strides, C):
    """A `pixel_block` of a tensor, 0 where there is none."""
    place, inside = pixel_block(tensor, pixels, images, channel, valid, strides, C)
    return tl.load(place, mask=inside, other=0)


@triton.jit
def store_pixels(tensor, block, pixels, images, channel, valid, strides, C):
    """Writes a `pixel_block` of a tensor."""
    place, inside = pixel_block(tensor, pixels, images, channel, valid, strides, C)
    tl.store(place, block.to(tensor.dtype.element_ty), mask=inside)
