"""Bitmap tiles to blocks of weights in registers: the step that every kernel on sparse weights begins with.

An *octet* is a byte of bits: eight columns of one row of one tile. `load_octets` fetches a block of them,
which is little, and counts the values before each; `decode_octets` fetches the values.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def popcount(word):
    """Set bits of a 32-bit word.

    The halves are summed in parallel, which the compiler recognizes and replaces by the one instruction POPC;
    Triton has no operation for it that the interpreter runs too.
    """
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def load_octets(pattern, tile, row, octet, valid, TILE: tl.constexpr):
    """As `octets_of`, with the tiles' first values from the pattern."""
    start = tl.load(pattern.tile_start + tile, mask=valid, other=0)
    return octets_of(pattern, tile, start, row, octet, valid, TILE)


@triton.jit
def octets_of(pattern, tile, start, row, octet, valid, TILE: tl.constexpr):
    """Bits of the octets (tile, row, octet), 0 where not `valid`, and the index of the first value of each.

    `tile` and `start`, the index of its first value, are int64; `row` and `octet` are places within the tile.
    The four broadcast to the block's shape.
    """
    line = tile * TILE + row
    # Only the tile's own place needs 64 bits; within a tile every index is small.
    offset = tl.load(pattern.row_offset + line, mask=valid, other=0).to(tl.int32)
    if TILE == 64:
        line = line * 2 + octet // 4
    word = tl.load(pattern.bits + line, mask=valid, other=0).to(tl.int32)
    shift = octet % 4 * 8
    offset += popcount(word & ((1 << shift) - 1))
    if TILE == 64:
        offset += popcount(tl.load(pattern.bits + line - 1, mask=valid & (octet >= 4), other=0))
    return (word >> shift) & 0xFF, start + offset


@triton.jit
def as_words(values):
    """Their bits, as integers of their size."""
    if values.dtype.primitive_bitwidth == 8:
        return values.to(tl.int8, bitcast=True)
    elif values.dtype.primitive_bitwidth == 16:
        return values.to(tl.int16, bitcast=True)
    elif values.dtype.primitive_bitwidth == 32:
        return values.to(tl.int32, bitcast=True)
    else:
        return values.to(tl.int64, bitcast=True)


@triton.jit
def load_value(place, counts, octets, column: tl.constexpr):
    """The values of one column of a block of octets, as words, 0 where not active."""
    below = (counts >> (column % 4 * 8)) & 0xFF
    # Loaded whether active or not: a thread has fewer predicates than columns, and would store them away.
    return tl.where((octets & (1 << column)) != 0, as_words(tl.load(place + below)), 0)


@triton.jit
def decode_octets(values, octets, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The weights of a block of octets, (ROWS, COLUMNS), 0 where not active. There must be a value.

    A thread decodes whole octets. A multiplication spreads four bits over four bytes, and another one gives
    each byte the sum of those below it, the place of its value. What is decoded goes to shared memory in one
    piece. Until then it is words: Triton 3.6 fails on operands of a product that come from a reshape.
    """
    octets = octets.to(tl.uint32)
    low = ((octets & 0xF) * 0x00204081) & 0x01010101
    high = ((octets >> 4) * 0x00204081) & 0x01010101
    # An inactive position reads the first value of its octet, an empty octet the first of all.
    place = values + tl.where(octets != 0, first, 0)
    high_counts = (high * 0x01010100 + (low * 0x01010101 >> 24) * 0x01010101) & (high * 0xFF)
    low_counts = (low * 0x01010100) & (low * 0xFF)
    w0 = load_value(place, low_counts, octets, 0)
    w1 = load_value(place, low_counts, octets, 1)
    w2 = load_value(place, low_counts, octets, 2)
    w3 = load_value(place, low_counts, octets, 3)
    w4 = load_value(place, high_counts, octets, 4)
    w5 = load_value(place, high_counts, octets, 5)
    w6 = load_value(place, high_counts, octets, 6)
    w7 = load_value(place, high_counts, octets, 7)
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    return tl.reshape(tl.join(even, odd), (ROWS, COLUMNS)).to(values.dtype.element_ty, bitcast=True)


@triton.jit
def active_octets(octets, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether each position of a block of octets is active, (ROWS, COLUMNS)."""
    bit = tl.full((1, 1, 8), 1, tl.int32) << tl.arange(0, 8)[None, None, :]
    return tl.reshape((tl.expand_dims(octets, 2) & bit) != 0, (ROWS, COLUMNS))


@triton.jit
def value_places(values, octets, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to the values of a block of octets, (ROWS, COLUMNS); they mean something where active."""
    bit = tl.full((1, 1, 8), 1, tl.int32) << tl.arange(0, 8)[None, None, :]
    below = popcount(tl.expand_dims(octets, 2) & (bit - 1))
    return tl.reshape(tl.expand_dims(values + first, 2) + below, (ROWS, COLUMNS))


@triton.jit
def dense_places(weight, row, column, columns, channels, positions):
    """Pointers to the positions (row, column) of a weight matrix in masked storage.

    The memory of a dense weight is in (row, channel, kernel position) order; the matrix has its columns in
    (kernel position, channel) order.
    """
    place = (column % channels) * positions + column // channels
    return weight + row.to(tl.int64) * columns + place


@triton.jit
def full_places(weight, pattern, tile, row, column, columns, inside, C):
    """Pointers to the positions (row, column) of tiles that are active wherever they lie inside the matrix.

    No bit is read. Where no tile is cut off (`EVEN`), the place of a value follows from its tile's index.
    """
    in_row = row % C.TILE
    in_column = column % C.TILE
    if C.EVEN:
        return weight + tile * (C.TILE * C.TILE) + (in_row * C.TILE + in_column)
    else:
        width = tl.minimum(columns - column // C.TILE * C.TILE, C.TILE)
        first = tl.load(pattern.tile_start + tile, mask=inside, other=0)
        return weight + first + (in_row * width + in_column)


@triton.jit
def load_weights(weight, pattern, octets, start, tile, row, column, columns, channels, positions, inside, C):
    """The weights (ROWS, COLUMNS) at the positions (row, column), 0 where not active or not `inside`.

    They are read in the cheapest way that the constants `C` allow: whole tiles, a dense weight with the bits
    applied, or values found by their octets.
    """
    if C.MASKED:
        weights = tl.load(
            dense_places(weight, row, column, columns, channels, positions), mask=inside, other=0
        )
        if not C.FULL:
            weights = tl.where(active_octets(octets, C.ROWS, C.COLUMNS), weights, 0)
        return weights
    elif C.FULL:
        return tl.load(
            full_places(weight, pattern, tile, row, column, columns, inside, C), mask=inside, other=0
        )
    else:
        return decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)


@triton.jit
def store_gradients(
    grad, block, pattern, tile, tile_row, tile_col, row, rows, column, columns, channels, positions, C
):
    """Writes a block of gradients (ROWS, COLUMNS) to the active positions of a tile, or of a group of four.

    `tile` is the first of the group, at (tile_row, tile_col); `row` and `column` are those of the matrix.
    """
    below = tl.arange(0, C.ROWS)[:, None] // C.TILE
    aside = tl.arange(0, C.COLUMNS // 8)[None, :] // (C.TILE // 8)
    first = tile.to(tl.int64) + aside
    if C.GROUP == 2:
        # The tile below is as far into its row as this one is into its own.
        here = tl.load(pattern.tile_row_ptr + tile_row)
        next_row = tl.load(pattern.tile_row_ptr + tile_row + 1)
        first += tl.where(below == 1, next_row - here, 0)
    tile_valid = (aside < C.GROUP) & (tile_col + aside < tl.cdiv(columns, C.TILE)) & (row < rows)[:, None]
    in_row = tl.arange(0, C.ROWS)[:, None] % C.TILE
    octet = tl.arange(0, C.COLUMNS // 8)[None, :] % (C.TILE // 8)
    octets, start = load_octets(pattern, first, in_row, octet, tile_valid, C.TILE)
    if C.MASKED:
        place = dense_places(grad, row[:, None], column[None, :], columns, channels, positions)
    else:
        place = value_places(grad, octets, start, C.ROWS, C.COLUMNS)
    active = active_octets(octets, C.ROWS, C.COLUMNS)
    tl.store(place, block.to(grad.dtype.element_ty), mask=active)


@triton.jit
def tile_row_of(pattern, tile, tile_cols, C):
    """The row of tiles that a stored tile is in: int32."""
    if C.COMPLETE:
        return (tile // tile_cols).to(tl.int32)
    else:
        return tl.load(pattern.tile_row + tile)


@triton.jit
def find_tile(pattern, tile_row, wanted, steps):
    """Index of the tile at (tile_row, wanted), or -1 where none is stored; `steps` halvings find it."""
    low = tl.load(pattern.tile_row_ptr + tile_row)
    end = tl.load(pattern.tile_row_ptr + tile_row + 1)
    high = end
    for _ in range(steps):
        middle = (low + high) // 2
        below = tl.load(pattern.tile_col + middle, mask=low < high, other=wanted) < wanted
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    found = tl.load(pattern.tile_col + low, mask=low < end, other=-1) == wanted
    return tl.where(found, low, -1)
