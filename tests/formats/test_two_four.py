"""`TwoFour`: what it holds, and what it refuses to hold."""

from __future__ import annotations

import itertools

import pytest
import torch

import sparsekern as sk
from sparsekern.formats.two_four import columns_of, metadata_of

VALUES, METADATA = torch.zeros(3, 6), torch.full((3, 2), 0x44, dtype=torch.uint8)
METADATA[:, 1] = 0x04


def test_every_nibble():
    """The documented code of each of the six pairs, low half byte first."""
    codes = {(0, 1): 0b0100, (0, 2): 0b1000, (0, 3): 0b1100, (1, 2): 0b1001, (1, 3): 0b1101, (2, 3): 0b1110}
    for (first, low), (second, high) in itertools.product(codes.items(), repeat=2):
        columns = torch.tensor([[first, second]])
        metadata = metadata_of(columns)
        assert metadata.tolist() == [[low | high << 4]]
        assert torch.equal(columns_of(metadata, 8), columns)


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 9])
def test_columns_and_metadata_are_inverse(groups):
    pairs = torch.tensor(list(itertools.combinations(range(4), 2)))
    columns = pairs[torch.randint(6, (5, groups), generator=torch.manual_seed(0))]
    metadata = metadata_of(columns)
    assert metadata.shape == (5, (groups + 1) // 2)
    assert torch.equal(columns_of(metadata, 4 * groups), columns)
    packed = sk.TwoFour(torch.randn(5, 2 * groups), metadata).check()
    assert packed.to_mask().nonzero()[:, 1].view(5, groups, 2).remainder(4).equal(columns)


def test_sizes():
    packed = sk.TwoFour(
        torch.zeros(64, 32, dtype=torch.bfloat16), torch.full((64, 8), 0x44, dtype=torch.uint8)
    )
    assert packed.shape == (64, 64)
    assert packed.nbytes == 64 * 32 * 2 + 64 * 8
    # 2:4 with int8: half a byte for the value and an eighth for its columns, 6.4 times less than float32.
    small = sk.TwoFour(packed.values.to(torch.int8), packed.metadata)
    assert 4 * 64 * 64 / small.nbytes == 6.4


def test_check_finds_the_first_group_that_is_not_two_four():
    metadata = METADATA.clone()
    metadata[1, 0] = 0x54
    with pytest.raises(
        ValueError, match="two ascending columns for each group of 4, got 1 and 1 in row 1, group 1"
    ):
        sk.TwoFour(VALUES, metadata).check()
    metadata = METADATA.clone()
    metadata[2, 1] |= 0x40
    with pytest.raises(ValueError, match="end in a half byte of 0 where columns are 12, got others in row 2"):
        sk.TwoFour(VALUES, metadata).check()


def test_check_of_a_transpose_that_is_another_matrix():
    packed = sk.ops.pack_two_four(torch.randn(8, 8, generator=torch.manual_seed(0)), transposable=True)
    other = sk.ops.pack_two_four(torch.randn(8, 8, generator=torch.manual_seed(1)), transposable=True)
    packed.check()
    with pytest.raises(ValueError, match="transposed must store the transpose's positions"):
        sk.TwoFour(packed.values, packed.metadata, other.transposed).check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": None}, "values must be a tensor"),
        ({"values": torch.zeros(6)}, r"values must be a tensor of shape \(N, K / 2\)"),
        ({"values": torch.zeros(3, 5)}, "K a multiple of 4"),
        ({"metadata": METADATA.int()}, "metadata must be a uint8 tensor"),
        ({"metadata": METADATA[:, :1]}, r"of shape \(3, 2\) for values of shape \(3, 6\), got"),
        ({"layout": "cutlass", "metadata": "x"}, r"metadata must be a tensor, got 'x' \(str\)"),
        ({"transposed": "x"}, r"transposed must be a sparsekern\.TwoFour, got 'x'"),
        ({"layout": "columns"}, "layout must be one of rows, cutlass, cusparselt, got 'columns'"),
        (
            {"transposed": sk.TwoFour(VALUES, METADATA)},
            r"transposed must have shape \(12, 3\), got \(3, 12\)",
        ),
    ],
)
def test_bad_parts(arguments, message):
    with pytest.raises(ValueError, match=message):
        sk.TwoFour(**{"values": VALUES, "metadata": METADATA, **arguments})


def test_parts_move_together():
    packed = sk.ops.pack_two_four(torch.randn(8, 4), transposable=True)
    moved = packed.to("meta")
    assert moved.device == moved.transposed.device == torch.device("meta")
    other = packed.with_values(packed.values + 1)
    assert other.transposed is None
    assert other.metadata is packed.metadata
