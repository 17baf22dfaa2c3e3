"""`gather_two_four` and `unpack_two_four` in Triton: between a dense matrix and the kept of its groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import Launch

# Elements are moved as integers of their size, whatever they are.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WARPS = 4
MOST_ELEMENTS = 1024


class Constants(NamedTuple):
    """What a kernel is compiled for: elements of a row of the result that are a program's."""

    ELEMENTS: int
    PRECISION: str = "none"


@triton.jit
def place_in_row(width, C):
    """The row, int64, and the places in it of a program's elements; a row has `width`."""
    across = tl.cdiv(width, C.ELEMENTS)
    row = (tl.program_id(0) // across).to(tl.int64)
    return row, tl.program_id(0) % across * C.ELEMENTS + tl.arange(0, C.ELEMENTS)


@triton.jit
def nibble_of(metadata, row, group, groups, inside):
    """The nibbles of groups of a row, which has `groups`."""
    byte = tl.load(metadata + row * tl.cdiv(groups, 2) + group // 2, mask=inside, other=0)
    return byte.to(tl.int32) >> (group % 2 * 4) & 15


@triton.jit
def gather_two_four_kernel(dense, metadata, values, groups, C):
    row, place = place_in_row(groups * 2, C)
    inside = place < groups * 2
    nibble = nibble_of(metadata, row, place // 2, groups, inside)
    column = tl.where(place % 2 == 0, nibble & 3, nibble >> 2)
    moved = tl.load(dense + row * groups * 4 + (place // 2 * 4 + column), mask=inside, other=0)
    tl.store(values + row * groups * 2 + place, moved, mask=inside)


@triton.jit
def unpack_two_four_kernel(values, metadata, dense, groups, C):
    """Each element of `dense` is written once."""
    row, place = place_in_row(groups * 4, C)
    inside = place < groups * 4
    nibble = nibble_of(metadata, row, place // 4, groups, inside)
    column = place % 4
    is_second = nibble >> 2 == column
    kept = is_second | ((nibble & 3) == column)
    value = place // 4 * 2 + is_second.to(tl.int32)
    moved = tl.load(values + row * groups * 2 + value, mask=inside & kept, other=0)
    tl.store(dense + row * groups * 4 + place, moved, mask=inside)


def _launch(kernel: object, source: Tensor, metadata: Tensor, result: Tensor) -> Launch:
    rows, width = result.shape
    constants = Constants(min(MOST_ELEMENTS, triton.next_power_of_2(max(width, 1))))
    groups = width // (2 if kernel is gather_two_four_kernel else 4)
    integers = INTEGERS[result.element_size()]
    arguments = (source.view(integers), metadata, result.view(integers), groups)
    programs = rows * triton.cdiv(width, constants.ELEMENTS)
    return Launch(kernel, programs, arguments, constants, WARPS, 1)


def plan_gather(dense: Tensor, metadata: Tensor, values: Tensor) -> Launch:
    """The launch of `gather_two_four`."""
    return _launch(gather_two_four_kernel, dense, metadata, values)


def plan_unpack(values: Tensor, metadata: Tensor, dense: Tensor) -> Launch:
    """The launch of `unpack_two_four`."""
    return _launch(unpack_two_four_kernel, values, metadata, dense)


def gather_two_four(dense: Tensor, metadata: Tensor) -> Tensor:
    """What the metadata keeps of a contiguous ``(N, K)``, as ``(N, K/2)``: any dtype, bit for bit."""
    values = dense.new_empty(dense.shape[0], dense.shape[1] // 2)
    plan_gather(dense, metadata, values).run()
    return values


def unpack_two_four(values: Tensor, metadata: Tensor) -> Tensor:
    """``(N, K)`` with contiguous `values` ``(N, K/2)`` where the metadata keeps them, and 0 elsewhere."""
    dense = values.new_empty(values.shape[0], 2 * values.shape[1])
    plan_unpack(values, metadata, dense).run()
    return dense
