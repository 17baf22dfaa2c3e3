"""The packed pattern in NumPy, as ARCHITECTURE.md describes it."""

from dataclasses import dataclass

import numpy as np

from tests.csrc.numerics import integer, pick

MAGIC, VERSION = 0x314B5053, 1
HEADER_WORDS = 16
TILE_SIZES = (8, 16, 32, 64)


@dataclass(frozen=True, repr=False)
class Packed:
    """A mask of a weight, its packed words, and where its values lie.

    Attributes
    ----------
    words : ndarray
        int32: header and sections.
    mask, matrix : ndarray
        bool: in the weight's own shape, and as a matrix with columns in (kh, kw, cin) order.
    rows, cols : ndarray
        Matrix row and column of each value.
    flat : ndarray
        Index of each value in the weight's own memory.
    """

    words: np.ndarray
    mask: np.ndarray
    matrix: np.ndarray
    tile_size: int
    rows: np.ndarray
    cols: np.ndarray
    flat: np.ndarray

    @property
    def nnz(self):
        return len(self.rows)

    def __repr__(self):
        return f"Packed(shape={self.mask.shape}, nnz={self.nnz}, tile_size={self.tile_size})"


def as_matrix(weight):
    if weight.ndim == 2:
        return weight
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def pack_mask(mask, tile_size, complete=False):
    """The pattern of a mask; `complete` stores empty tiles too."""
    matrix = as_matrix(mask)
    (rows, cols), t = matrix.shape, tile_size
    tile_rows, tile_cols = -(-rows // t), -(-cols // t)
    padded = np.zeros((tile_rows * t, tile_cols * t), bool)
    padded[:rows, :cols] = matrix
    grid = padded.reshape(tile_rows, t, tile_cols, t).transpose(0, 2, 1, 3)
    tile_row, tile_col = (grid.any((2, 3)) | complete).nonzero()
    tiles = grid[tile_row, tile_col]
    of_tile, of_row = tiles.sum((1, 2)), tiles.sum(2)
    cin, kh, kw = (*mask.shape[1:], 1, 1)[:3]
    nnz = int(of_tile.sum())
    header = [MAGIC, t, rows, cols, tile_rows, tile_cols, len(tiles), VERSION]
    header += [nnz, 0, mask.ndim, cin, kh, kw, 0, 0]
    sections = [
        np.array(header, np.int32),
        np.concatenate([[0], of_tile.cumsum()]).astype(np.int64),
        np.searchsorted(tile_row, np.arange(tile_rows + 1)).astype(np.int32),
        tile_col.astype(np.int32),
        np.searchsorted(np.sort(tile_col), np.arange(tile_cols + 1)).astype(np.int32),
        np.lexsort((tile_row, tile_col)).astype(np.int32),
        (of_row.cumsum(1) - of_row).astype(np.int16),
        np.packbits(tiles, axis=-1, bitorder="little"),
    ]
    data = b"".join(part.tobytes() + bytes(-part.nbytes % 16) for part in sections)
    tile, row, col = tiles.nonzero()
    row, col = tile_row[tile] * t + row, tile_col[tile] * t + col
    flat = row * cols + (col % cin) * (kh * kw) + col // cin
    return Packed(np.frombuffer(data, np.int32), mask, matrix, t, row, col, flat)


def random_mask(generator, shape, density):
    """Some rows and columns of positions may be empty or full as a whole."""
    mask = generator.random(shape) < density
    for axis in (0, 1):
        fate = generator.random(shape[axis])
        lines = [slice(None)] * len(shape)
        lines[axis] = fate < 0.1
        mask[tuple(lines)] = False
        lines[axis] = fate > 0.95
        mask[tuple(lines)] = True
    return mask


def draw_pattern(generator, dims=(2, 4), most=150):
    """A pattern of a weight of few rows and columns, at any sparsity.

    Parameters
    ----------
    generator : numpy.random.Generator
        What the mask is drawn from.
    dims : tuple of int
        Dimensions that the weight may have.
    most : int
        Rows and columns at most.
    """
    rows = integer(generator, 1, most)
    if pick(generator, dims) == 2:
        shape = rows, integer(generator, 1, most)
    else:
        kh, kw = integer(generator, 1, 4), integer(generator, 1, 4)
        shape = rows, integer(generator, 1, max(1, most // (kh * kw))), kh, kw
    density = pick(generator, (0.0, 0.02, 0.2, 0.5, 0.95, 1.0))
    mask = np.full(shape, density == 1.0) if density in (0.0, 1.0) else random_mask(generator, shape, density)
    return pack_mask(mask, pick(generator, TILE_SIZES), pick(generator, (False, True)))
