"""Each invariant of the packed format has its own message, and nothing that breaks one is accepted."""

import re

import numpy as np
import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.formats.known import layout_of
from sparsekern.formats.layout import Layout

T = 8


def example():
    """20 x 30 in 8 x 8 tiles, 3 x 4 of them; tiles (0, 3) and (2, 1) are empty, so that 10 are stored."""
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[:8, 24:] = False
    mask[16:, 8:16] = False
    return Pattern.from_mask(mask, tile_size=T)


EXAMPLE = example()


class Words:
    """A copy of the example's words, with its sections by name as views that can be written to."""

    def __init__(self):
        self.data = EXAMPLE.data.clone()
        for name in (
            "tile_start",
            "tile_row_ptr",
            "tile_col",
            "tile_ptr_t",
            "tile_order_t",
            "row_offset",
            "bits",
        ):
            section = getattr(EXAMPLE, name)
            first_word = section.storage_offset() * section.element_size() // 4
            words = section.numel() * section.element_size() // 4
            setattr(
                self, name, self.data[first_word : first_word + words].view(section.dtype).view(section.shape)
            )


def set_header(word, value):
    def corrupt(words):
        words.data[word] = value

    return corrupt


def set_section(name, index, value):
    def corrupt(words):
        getattr(words, name)[index] = value

    return corrupt


def cut_short(words):
    words.data = words.data[:-4].clone()


def too_long(words):
    words.data = torch.cat([words.data, torch.zeros(4, dtype=torch.int32)])


def only_half_a_header(words):
    words.data = words.data[:8].clone()


def swap_tile_cols(words):
    words.tile_col[:2] = words.tile_col[:2].flip(0).clone()


def swap_tile_order(words):
    words.tile_order_t[:2] = words.tile_order_t[:2].flip(0).clone()


def swap_tile_order_across_columns(words):
    words.tile_order_t[[0, 9]] = words.tile_order_t[[9, 0]]


def empty_a_tile(words):
    words.bits[4] = 0
    words.row_offset[4] = 0
    words.tile_start[5:] -= words.tile_start[5] - words.tile_start[4]


def row_below_the_matrix(words):
    words.bits[9, 5, 0] = 1


def column_right_of_the_matrix(words):
    words.bits[6, 2, 0] |= 1 << 7


def one_bit_more(words):
    words.bits[3, 7, 0] ^= 1


def nnz_one_too_many(words):
    words.data[8] += 1


def pad_after(name):
    def corrupt(words):
        section = getattr(words, name)
        last = (
            section.storage_offset() * section.element_size() // 4
            + section.numel() * section.element_size() // 4
        )
        words.data[last] = 7

    return corrupt


CORRUPTIONS = {
    "header_short": (only_half_a_header, "the data must hold at least the 16 words of a header"),
    "magic": (set_header(0, 0), "the first word is not the magic number of a pattern"),
    "version": (set_header(7, 2), "version must be 1, got 2"),
    "tile_size": (set_header(1, 12), "tile size must be 8, 16, 32 or 64, got 12"),
    "rows": (set_header(2, 0), "rows and columns must be at least 1"),
    "cols": (set_header(3, -30), "rows and columns must be at least 1"),
    "tile_rows": (set_header(4, 4), "the number of tile rows does not fit the rows and the tile size"),
    "tile_cols": (set_header(5, 3), "the number of tile columns does not fit the columns and the tile size"),
    "tiles_negative": (set_header(6, -1), "the number of tiles is out of range"),
    "tiles_too_many": (set_header(6, 13), "the number of tiles is out of range"),
    "tiles_fewer_than_stored": (set_header(6, 9), "the header needs 128 words, but the data holds 136"),
    "nnz_negative": (set_header(9, -1), "nnz is out of range"),
    "nnz_above_numel": (set_header(8, 601), "nnz is out of range"),
    "nnz_one_too_many": (nnz_one_too_many, "nnz must equal the number of bits set"),
    "dims": (set_header(10, 3), "dims must be 2 or 4"),
    "cin_zero": (set_header(11, 0), "cin, kh and kw must be at least 1"),
    "kernel_of_a_linear": (set_header(12, 2), "kh and kw must be 1 when dims is 2"),
    "cin_of_a_linear": (set_header(11, 15), "columns must equal kh * kw * cin"),
    "reserved": (set_header(15, 1), "the reserved header words must be zero"),
    "cut_short": (cut_short, "words, but the data holds"),
    "too_long": (too_long, "words, but the data holds"),
    "tile_row_ptr_first": (set_section("tile_row_ptr", 0, 1), "tile_row_ptr must start at 0"),
    "tile_row_ptr_falls": (
        set_section("tile_row_ptr", 1, 8),
        "tile_row_ptr must not decrease, but does at 2",
    ),
    "tile_row_ptr_last": (set_section("tile_row_ptr", 3, 9), "tile_row_ptr must end at the number of tiles"),
    "tile_col_negative": (set_section("tile_col", 3, -1), "tile_col is out of range at tile 3"),
    "tile_col_too_large": (set_section("tile_col", 9, 4), "tile_col is out of range at tile 9"),
    "tile_col_order": (swap_tile_cols, "tile_col must ascend within a tile row, but does not at tile 1"),
    "tile_col_twice": (set_section("tile_col", 1, 0), "tile_col must ascend within a tile row"),
    "tile_ptr_t_first": (set_section("tile_ptr_t", 0, 1), "tile_ptr_t must start at 0"),
    "tile_ptr_t_falls": (set_section("tile_ptr_t", 2, 1), "tile_ptr_t must not decrease, but does at 2"),
    "tile_ptr_t_last": (set_section("tile_ptr_t", 4, 9), "tile_ptr_t must end at the number of tiles"),
    "tile_order_t_negative": (set_section("tile_order_t", 2, -1), "tile_order_t is out of range at 2"),
    "tile_order_t_too_large": (set_section("tile_order_t", 9, 10), "tile_order_t is out of range at 9"),
    "tile_order_t_column": (
        swap_tile_order_across_columns,
        "tile_order_t names a tile of another tile column at 0",
    ),
    "tile_order_t_order": (
        swap_tile_order,
        "tile_order_t must ascend within a tile column, but does not at 1",
    ),
    "tile_start_first": (set_section("tile_start", 0, 1), "tile_start must start at 0"),
    "tile_start_inner": (set_section("tile_start", 4, 0), "tile_start does not match the bits of tile 3"),
    "row_offset": (set_section("row_offset", (6, 3), 63), "row_offset does not match the bits of tile 6"),
    "bits_below_the_matrix": (row_below_the_matrix, "bits outside the matrix are set in tile 9"),
    "bits_right_of_the_matrix": (column_right_of_the_matrix, "bits outside the matrix are set in tile 6"),
    "one_bit_more": (one_bit_more, "tile_start does not match the bits of tile 3"),
    "empty_tile": (empty_a_tile, "an empty tile is stored, but not all tiles are: tile 4"),
    "padding_tile_start": (pad_after("tile_start"), "the unused words between sections must be zero"),
    "padding_tile_col": (pad_after("tile_col"), "the unused words between sections must be zero"),
    "padding_tile_ptr_t": (pad_after("tile_ptr_t"), "the unused words between sections must be zero"),
    "padding_tile_order_t": (pad_after("tile_order_t"), "the unused words between sections must be zero"),
}


def test_the_example_is_what_the_corruptions_assume():
    assert EXAMPLE.tile_col.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 2, 3]
    assert EXAMPLE.tile_order_t.tolist() == [0, 3, 7, 1, 4, 2, 5, 8, 6, 9]
    assert Pattern(Words().data) == EXAMPLE


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_each_broken_invariant_has_its_message(corrupt, message):
    words = Words()
    corrupt(words)
    with pytest.raises(ValueError, match="^pattern: .*" + re.escape(message)):
        Pattern(words.data)


def test_a_convolution_needs_the_columns_of_its_kernel():
    data = Pattern.random((4, 3, 2, 5), 0.5).data.clone()
    data[11:14] = torch.tensor([3, 5, 2])
    assert Pattern(data).shape == (4, 3, 5, 2)
    data[11:14] = torch.tensor([2**31 - 1, 2**31 - 1, 2**31 - 1])
    with pytest.raises(ValueError, match=r"columns must equal kh \* kw \* cin"):
        Pattern(data)


def test_whatever_random_change_is_accepted_is_a_pattern_in_its_one_form():
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        data = EXAMPLE.data.clone()
        word = int(rng.integers(len(data)))
        data[word] ^= int(np.int32(rng.integers(1, 2**31)) >> int(rng.integers(31)) or 1)
        try:
            pattern = Pattern(data)
        except ValueError:
            continue
        accepted += 1
        assert Pattern.from_mask(pattern.to_mask(), tile_size=T).data.equal(data)
    # A bit that moves within its row leaves all counts as they are; few random changes do just that.
    assert accepted < 300


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(EXAMPLE.data.long(), id="int64"),
        pytest.param(EXAMPLE.data.view(-1, 4), id="2d"),
        pytest.param(EXAMPLE.data.tolist(), id="list"),
    ],
)
def test_data_of_another_type(data):
    with pytest.raises(TypeError, match="data must be a 1-D int32 tensor, got"):
        Pattern(data)


def test_data_on_the_meta_device():
    with pytest.raises(ValueError, match="data must be a tensor with contents, got one on the meta device"):
        Pattern(EXAMPLE.data.to("meta"))


def test_validate_sees_what_was_written_to_the_data_afterwards():
    pattern = Pattern(EXAMPLE.data)
    pattern.validate()
    pattern.data[6] = 9
    with pytest.raises(ValueError, match="the header needs"):
        pattern.validate()


def test_a_complete_grid_may_hold_empty_tiles():
    mask = EXAMPLE.to_mask()
    grid = Pattern.from_mask(mask, tile_size=T, complete=True)
    assert grid.num_tiles == 12
    assert (grid.tile_start.diff() == 0).sum() == 2
    assert Pattern(grid.data) == grid
    assert grid != EXAMPLE
    full = Pattern.from_mask(torch.ones(20, 30, dtype=torch.bool), tile_size=T)
    assert full == Pattern.from_mask(full.to_mask(), tile_size=T, complete=True)
    data = grid.data.clone()
    data[6] = 11
    with pytest.raises(ValueError, match="the header needs"):
        Pattern(data)


@pytest.mark.parametrize("shape", [(20, 30), (1, 1), (7, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("tile_size", [8, 64])
def test_the_layout_of_a_complete_grid_is_known_without_its_bits(shape, tile_size):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.1
    grid = Pattern.from_mask(mask, tile_size=tile_size, complete=True)
    layout = Layout.complete(shape, tile_size, grid.nnz)
    assert layout == layout_of(grid.data) == layout_of(grid.data.clone())
    assert layout.words == grid.data.numel()
    with pytest.raises(TypeError, match="complete must be True or False, got 1"):
        Pattern.from_mask(mask, complete=1)
