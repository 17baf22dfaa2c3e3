"""The packed words of a pattern, word for word against a NumPy construction, and back to the mask."""

import numpy as np
import pytest
import torch

from sparsekern import native
from sparsekern.formats import Pattern, default_tile_size

TILE_SIZES = [8, 16, 32, 64]

SHAPES = {
    "1x1": (1, 1),
    "1x200": (1, 200),
    "200x1": (200, 1),
    "6x25": (6, 25),
    "7x9": (7, 9),
    "64x64": (64, 64),
    "65x63": (65, 63),
    "100x300": (100, 300),
    "129x128": (129, 128),
    "conv_6x1x5x5": (6, 1, 5, 5),
    "conv_16x6x5x5": (16, 6, 5, 5),
    "conv_9x7x1x1": (9, 7, 1, 1),
    "conv_40x3x3x2": (40, 3, 3, 2),
    "conv_33x65x3x3": (33, 65, 3, 3),
}


def all_false(shape):
    return np.zeros(shape, dtype=bool)


def all_true(shape):
    return np.ones(shape, dtype=bool)


def only_last(shape):
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[-1] = True
    return mask


def half(shape):
    return np.random.default_rng(0).random(shape) < 0.5


def few(shape):
    return np.random.default_rng(1).random(shape) < 0.02


def empty_rows_and_tiles(shape):
    rng = np.random.default_rng(2)
    keep = np.repeat(rng.random(-(-shape[0] // 9)) < 0.5, 9)[: shape[0]]
    mask = (rng.random(shape) < 0.3) & keep.reshape(-1, *[1] * (len(shape) - 1))
    mask[:, : shape[1] // 2] = False
    return mask


MASKS = [all_false, all_true, only_last, half, few, empty_rows_and_tiles]


def as_matrix(mask):
    """The weight's own shape to (N, kh * kw * cin)."""
    return mask if mask.ndim == 2 else mask.transpose(0, 2, 3, 1).reshape(len(mask), -1)


def packed_words(mask, t):
    """The whole packed pattern, by the definition of the format."""
    matrix = as_matrix(mask)
    rows, cols = matrix.shape
    tile_rows, tile_cols = -(-rows // t), -(-cols // t)
    padded = np.zeros((tile_rows * t, tile_cols * t), dtype=bool)
    padded[:rows, :cols] = matrix
    grid = padded.reshape(tile_rows, t, tile_cols, t).swapaxes(1, 2)
    tile_row, tile_col = np.nonzero(grid.any(axis=(2, 3)))
    tiles = grid[tile_row, tile_col]
    in_row = tiles.sum(axis=2)
    ends = in_row.cumsum(axis=1)
    nnz = int(matrix.sum())
    cin, kh, kw = (cols, 1, 1) if mask.ndim == 2 else mask.shape[1:]
    header = [0x314B5053, t, rows, cols, tile_rows, tile_cols, len(tiles), 1]
    header += [nnz, 0, mask.ndim, cin, kh, kw, 0, 0]
    sections = [
        np.array(header, "<i4"),
        np.append(0, in_row.sum(axis=1).cumsum()).astype("<i8"),
        np.append(0, np.bincount(tile_row, minlength=tile_rows).cumsum()).astype("<i4"),
        tile_col.astype("<i4"),
        np.append(0, np.bincount(tile_col, minlength=tile_cols).cumsum()).astype("<i4"),
        np.lexsort((tile_row, tile_col)).astype("<i4"),
        (ends - in_row).astype("<i2"),
        np.packbits(tiles, axis=2, bitorder="little"),
    ]
    padded_bytes = (part.tobytes() + bytes(-part.nbytes % 16) for part in sections)
    return np.frombuffer(b"".join(padded_bytes), dtype="<i4")


def value_order(mask, t):
    """Matrix rows and columns of the active positions: by tile row, tile column, row, column."""
    rows, cols = np.nonzero(as_matrix(mask))
    order = np.lexsort((cols, rows, cols // t, rows // t))
    return rows[order], cols[order]


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("make", MASKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_words_and_positions_follow_the_format(shape, make, tile_size):
    mask = make(shape)
    pattern = Pattern.from_mask(torch.from_numpy(mask), tile_size=tile_size)

    np.testing.assert_array_equal(pattern.data.numpy(), packed_words(mask, tile_size))
    np.testing.assert_array_equal(pattern.to_mask().numpy(), mask)
    rows, cols = value_order(mask, tile_size)
    np.testing.assert_array_equal(pattern.value_rows().numpy(), rows)
    np.testing.assert_array_equal(pattern.value_cols().numpy(), cols)
    assert (pattern.shape, pattern.matrix_shape) == (shape, as_matrix(mask).shape)
    assert (pattern.nnz, pattern.tile_size) == (mask.sum(), tile_size)
    assert (pattern.numel, pattern.sparsity) == (mask.size, 1 - mask.sum() / mask.size)
    pattern.validate()


@pytest.mark.parametrize("tile_size", TILE_SIZES)
def test_section_views_give_the_index_of_every_value(tile_size):
    mask = few((150, 170)) | empty_rows_and_tiles((150, 170))
    pattern = Pattern.from_mask(torch.from_numpy(mask), tile_size=tile_size)
    t = tile_size
    byte_bits = pattern.bits.contiguous().view(torch.uint8).view(pattern.num_tiles, t, t // 8).numpy()
    active = np.unpackbits(byte_bits, axis=2, bitorder="little").astype(bool)

    found = []
    for tile_row in range(-(-150 // t)):
        for tile in range(*pattern.tile_row_ptr[tile_row : tile_row + 2].tolist()):
            for r, c in np.argwhere(active[tile]):
                before = int(active[tile, r, :c].sum())
                index = int(pattern.tile_start[tile]) + int(pattern.row_offset[tile, r]) + before
                found.append((index, tile_row * t + r, int(pattern.tile_col[tile]) * t + c))
    index, rows, cols = map(list, zip(*found))
    assert index == list(range(pattern.nnz))
    assert rows == pattern.value_rows().tolist()
    assert cols == pattern.value_cols().tolist()

    by_column = [
        pattern.tile_order_t[slice(*pattern.tile_ptr_t[j : j + 2].tolist())].tolist()
        for j in range(-(-170 // t))
    ]
    expected = [np.flatnonzero(pattern.tile_col.numpy() == j).tolist() for j in range(-(-170 // t))]
    assert by_column == expected


@pytest.mark.parametrize("tile_size", TILE_SIZES)
def test_words_do_not_depend_on_the_number_of_threads(monkeypatch, tile_size):
    mask = torch.from_numpy(half((1000, 300, 3, 3)))
    patterns = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        patterns.append(Pattern.from_mask(mask, tile_size=tile_size))
    assert patterns[0] == patterns[1] == patterns[2]


def test_a_mask_that_is_not_contiguous():
    mask = torch.from_numpy(half((40, 60)))
    assert torch.equal(Pattern.from_mask(mask.T).to_mask(), mask.T)
    assert torch.equal(Pattern.from_mask(mask[1::3, 5:41:2]).to_mask(), mask[1::3, 5:41:2])


def test_a_channels_last_mask():
    mask = torch.from_numpy(half((5, 6, 3, 2)))
    assert Pattern.from_mask(mask.to(memory_format=torch.channels_last)) == Pattern.from_mask(mask)


def test_true_may_be_any_byte_but_zero():
    raw = torch.randint(0, 256, (30, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw[raw < 100] = 0
    assert Pattern.from_mask(raw.view(torch.bool)) == Pattern.from_mask(raw != 0)


def test_the_default_tile_size_is_that_of_the_weight_matrix():
    assert (
        Pattern.from_mask(torch.ones(6, 1, 5, 5, dtype=torch.bool)).tile_size == default_tile_size(6, 25) == 8
    )
    assert Pattern.from_mask(torch.ones(64, 64, 3, 3, dtype=torch.bool)).tile_size == 64


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        pytest.param(
            [[True]], TypeError, r"mask must be a tensor of dtype torch.bool, got \[\[True\]\]", id="list"
        ),
        pytest.param(
            torch.ones(2, 3), TypeError, r"got a torch.float32 tensor of shape \(2, 3\)", id="float_mask"
        ),
        pytest.param(
            torch.ones(3, dtype=torch.bool),
            ValueError,
            r"mask.shape must be \(out, in\) or .* got \(3,\)",
            id="1d",
        ),
        pytest.param(torch.ones(3, 0, dtype=torch.bool), ValueError, "dimensions of at least 1", id="empty"),
        pytest.param(
            torch.ones(2, 3, dtype=torch.bool).to_sparse(),
            TypeError,
            "mask must be a tensor of layout torch.strided, got torch.sparse_coo",
            id="sparse",
        ),
        pytest.param(
            torch.ones(2, 3, dtype=torch.bool, device="meta"),
            ValueError,
            "mask must be a tensor with contents, got one on the meta device",
            id="meta",
        ),
    ],
)
def test_bad_mask(mask, error, message):
    with pytest.raises(error, match=message):
        Pattern.from_mask(mask)


@pytest.mark.parametrize(
    ("tile_size", "error"), [(12, ValueError), (128, ValueError), (8.0, TypeError), (True, TypeError)]
)
def test_bad_tile_size(tile_size, error):
    with pytest.raises(error, match=f"tile_size must be 8, 16, 32 or 64, got {tile_size}"):
        Pattern.from_mask(torch.ones(2, 3, dtype=torch.bool), tile_size=tile_size)
