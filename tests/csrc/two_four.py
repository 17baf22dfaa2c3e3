"""2:4 packing in NumPy, as two_four.h describes it."""

import itertools

import numpy as np

PAIRS = np.array(list(itertools.combinations(range(4), 2)))


def largest_pairs(magnitudes):
    """The columns of the two largest of each group, ascending; the lowest columns of equal ones."""
    rows, columns = magnitudes.shape
    groups = magnitudes.reshape(rows, columns // 4, 4)
    return np.sort(np.argsort(-groups, axis=-1, kind="stable")[..., :2], axis=-1)


def tile_masks():
    """The 90 masks of four by four with two in each row and column, those with earlier positions first."""
    rows = np.zeros((6, 4), bool)
    rows[np.arange(6)[:, None], PAIRS] = True
    chosen = (rows[list(four)] for four in itertools.product(range(6), repeat=4))
    return np.stack([mask for mask in chosen if (mask.sum(0) == 2).all()])


def largest_tiles(magnitudes):
    """The columns that the mask with the largest sum keeps of each group, tile by tile."""
    rows, columns = magnitudes.shape
    tiles = magnitudes.reshape(rows // 4, 4, columns // 4, 4).transpose(0, 2, 1, 3)
    masks = tile_masks()
    chosen = masks[np.einsum("abij,mij->abm", tiles, masks.astype(float)).argmax(-1)]
    kept = chosen.transpose(0, 2, 1, 3).reshape(rows, columns // 4, 4)
    return np.nonzero(kept)[-1].reshape(rows, columns // 4, 2)


def as_metadata(pairs):
    """Columns (rows, groups, 2) as bytes: a nibble for each group, the first in the low one."""
    nibbles = pairs[..., 0] | pairs[..., 1] << 2
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8)


def gathered(dense, pairs):
    rows, groups, _ = pairs.shape
    return np.take_along_axis(dense.reshape(rows, groups, 4), pairs, -1).reshape(rows, 2 * groups)


def spread(values, pairs):
    """The matrix that a packing is of."""
    rows, groups, _ = pairs.shape
    dense = np.zeros((rows, groups, 4), values.dtype)
    np.put_along_axis(dense, pairs, values.reshape(rows, groups, 2), -1)
    return dense.reshape(rows, 4 * groups)
