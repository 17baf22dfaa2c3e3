"""Packing 2:4 weights in the extension: exactly the masks and layout that brute force in PyTorch finds."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsekern
from sparsekern import native
from sparsekern.cpp.two_four_packing import pack_two_four

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8]
FLOATS = DTYPES[:4]
# Around vectors of 8, 4 and 2 groups, strips of 64 rows and chunks of 1024 columns.
TILED = [(4, 4), (4, 8), (8, 4), (12, 36), (20, 12), (60, 64), (64, 60), (68, 100), (132, 1036), (8, 2052)]
ROWS = [(1, 4), (3, 8), (5, 12), (7, 36), (65, 100), (130, 1028), (2, 2052)]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).partition(".")[2])
def dtype(request):
    return request.param


def all_masks():
    """The 90 masks of a tile, those first whose string of 16 positions is the largest."""
    rows = [torch.tensor(row) for row in itertools.product([1, 0], repeat=4) if sum(row) == 2]
    masks = [torch.stack(mask) for mask in itertools.product(rows, repeat=4)]
    masks = [mask for mask in masks if mask.sum(0).tolist() == [2, 2, 2, 2]]
    masks.sort(key=lambda mask: mask.flatten().tolist(), reverse=True)
    return torch.stack(masks).bool()


MASKS = all_masks()


def magnitudes(weight):
    return weight.double().abs()


def tile_mask(weight):
    """The best mask of each tile: the totals of all 90, of equal ones the first."""
    rows, columns = weight.shape
    tiles = magnitudes(weight).view(rows // 4, 4, columns // 4, 4).transpose(1, 2)
    best = torch.full(tiles.shape[:2], -1.0, dtype=torch.float64)
    chosen = torch.zeros(tiles.shape[:2], dtype=torch.long)
    for index, mask in enumerate(MASKS):
        first, second = tiles[..., mask].view(*tiles.shape[:2], 4, 2).unbind(-1)
        row = first + second
        total = (row[..., 0] + row[..., 1]) + (row[..., 2] + row[..., 3])
        larger = total > best
        best[larger], chosen[larger] = total[larger], index
    return MASKS[chosen].transpose(1, 2).reshape(rows, columns)


def row_mask(weight):
    rows, columns = weight.shape
    groups = magnitudes(weight).view(rows, columns // 4, 4)
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, kept, True).view(rows, columns)


def layout(weight, mask):
    """Values and metadata of a weight whose mask is given."""
    rows, columns = weight.shape
    kept = mask.nonzero()[:, 1].view(rows, columns // 4, 2) % 4
    nibbles = (kept[..., 0] | kept[..., 1] << 2).to(torch.uint8)
    if columns % 8:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(rows, 1)], 1)
    return [weight[mask].view(rows, columns // 2), nibbles[:, ::2] | nibbles[:, 1::2] << 4]


def expected(weight, transposable):
    if not transposable:
        return layout(weight, row_mask(weight))
    mask = tile_mask(weight)
    return layout(weight, mask) + layout(weight.t().contiguous(), mask.t().contiguous())


def same_bits(got, right):
    assert len(got) == len(right)
    for tensor, other in zip(got, right):
        assert tensor.dtype == other.dtype
        assert tensor.shape == other.shape
        assert torch.equal(tensor.view(torch.uint8), other.contiguous().view(torch.uint8))


def check(weight, transposable):
    right = expected(weight, transposable)
    got = pack_two_four([weight], transposable, transposable)
    same_bits(got, right)
    if transposable:
        same_bits(pack_two_four([weight], True, False), right[:2])


def numbers(kind, shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    random = torch.randn(shape, generator=generator, dtype=torch.float64)
    if dtype == torch.int8:
        most = {"random": 127, "few": 2, "spread": 128}[kind]
        return (random * 60).round().clamp(-most, 127 if kind == "spread" else most).to(dtype)
    if kind == "few":
        return random.round().to(dtype)
    if kind == "spread":
        # All exponents that there are, subnormal and largest ones too, each a few times.
        info = torch.finfo(dtype)
        low, high = torch.tensor([info.smallest_normal * info.eps, info.max], dtype=torch.float64).log2()
        exponent = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        weight = torch.where(random > 0, 1.0, -1.0) * exponent.clamp(max=high - 1e-9).exp2()
        return weight.clamp(-info.max, info.max).to(dtype)
    return random.to(dtype)


def tiles_side_by_side(tiles, columns):
    """Tiles (count, 4, 4) as a matrix of that many tiles in a row."""
    return tiles.view(-1, columns, 4, 4).transpose(1, 2).reshape(-1, 4 * columns)


def test_the_oracle_knows_90_masks_in_their_order():
    strings = ["".join(map(str, mask.int().flatten().tolist())) for mask in MASKS]
    assert len(set(strings)) == 90
    assert strings[0] == "1100110000110011"
    assert strings[-1] == "0011001111001100"
    assert strings == sorted(strings, reverse=True)


def test_each_mask_wins_where_it_is_the_best(isa, dtype):
    """By one part in a hundred, and in each place of a vector."""
    generator = torch.Generator().manual_seed(0)
    for shift in range(8):
        masks = MASKS.roll(shift, 0)
        signs = torch.randint(0, 2, masks.shape, generator=generator) * 2 - 1
        weight = tiles_side_by_side(torch.where(masks, 101, 100) * signs, 9).to(dtype)
        mask = tiles_side_by_side(masks, 9)
        got = pack_two_four([weight], True, True)
        same_bits(got, layout(weight, mask) + layout(weight.t().contiguous(), mask.t().contiguous()))


def test_the_x87_unit_is_left_empty(isa, dtype):
    """A full one makes NaN of what NumPy computes with it: remainders, for one, which ticks of plots need."""
    weight = tiles_side_by_side(torch.where(MASKS, 101, 100), 9).to(dtype)
    for transposable in (False, True):
        pack_two_four([weight], transposable, transposable)
        assert np.float64(5.0) // np.float64(0.3) == 16
        assert np.fmod(np.float64(5.0), np.float64(3.0)) == 2


def test_every_pattern_of_ties_in_a_tile(isa):
    """All tiles of zeros and ones, with and without signs."""
    bits = torch.arange(1 << 16)[:, None] >> torch.arange(16) & 1
    for signs in (1, torch.where(torch.arange(16) % 3 == 0, -1, 1)):
        weight = tiles_side_by_side((bits * signs).view(-1, 4, 4), 256).float()
        check(weight, True)
        check(weight.to(torch.int8), True)


def test_every_order_and_tie_in_a_group(isa, dtype):
    groups = torch.tensor(list(itertools.product(range(4), repeat=4)))
    signed = groups * torch.tensor([1, -1, -1, 1])
    check(torch.cat([groups.view(8, -1), signed.view(8, -1)]).to(dtype), False)


@pytest.mark.parametrize("kind", ["random", "few", "spread"])
@pytest.mark.parametrize("shape", TILED, ids=str)
def test_transposable(isa, dtype, shape, kind):
    check(numbers(kind, shape, dtype), True)


@pytest.mark.parametrize("kind", ["random", "few", "spread"])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows(isa, dtype, shape, kind):
    check(numbers(kind, shape, dtype), False)


@pytest.mark.parametrize("shape", [(0, 4), (0, 1028), (4, 0), (64, 0), (0, 0)], ids=str)
def test_nothing(isa, dtype, shape):
    weight = torch.zeros(shape, dtype=dtype)
    for transposable in (False, True):
        same_bits(pack_two_four([weight], transposable, transposable), expected(weight, transposable))


def test_totals_are_compared_as_float64_rounds_them(isa):
    """2^60 hides whatever is below 2^8, so masks tie that would not in exact arithmetic: the first wins."""
    hidden = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3], [3, 4, 1, 2]])
    largest = torch.tensor([[1.0, 0, 0, 0]] + [[0.0] * 4] * 3) * 2.0**60
    weight = (hidden + largest).repeat(1, 9)
    check(weight, True)
    check(weight.double(), True)


def test_totals_that_overflow_tie(isa):
    weight = torch.tensor([[3.0, 1, 2, 1], [1, 2, 2, 1], [2, 1, 1, 2], [3, 1, 2, 1]], dtype=torch.float64)
    check(weight * 2.0**1021, True)


def test_negative_zero_is_zero(isa):
    for dtype in FLOATS:
        weight = torch.tensor([[0.0, -0.0, 0.0, -0.0], [-0.0, 0.0, -0.0, 1.0]] * 2, dtype=dtype)
        values, _ = pack_two_four([weight], False, False)
        assert torch.signbit(values).tolist() == [[False, True], [True, False]] * 2
        check(weight, False)
        check(weight, True)


def test_the_smallest_int8_is_the_largest(isa):
    weight = torch.tensor([[127, -128, 126, 127]] * 4, dtype=torch.int8)
    assert pack_two_four([weight], False, False)[0].tolist() == [[127, -128]] * 4
    check(weight, True)


@pytest.mark.parametrize("transposable", [False, True])
def test_same_bits_for_any_number_of_threads(isa, threads, transposable):
    weight = numbers("few", (516, 2100), torch.float32)
    right = expected(weight, transposable)
    for count in (1, 2, 3):
        threads(count)
        same_bits(pack_two_four([weight], transposable, transposable), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [2048, 2080])
def test_a_packing_beyond_the_caches(isa, dtype, rows):
    """From 16 MiB on it is written in another way, but for a last strip of rows that is not whole."""
    columns = (32 << 20) // dtype.itemsize // 2048
    part = numbers("random", (rows // 4, 256), dtype)
    times = (4, columns // 256)
    right = expected(part, True)
    got = pack_two_four([part.repeat(times)], True, True)
    same_bits(got[:2], [tensor.repeat(times) for tensor in right[:2]])
    same_bits(got[2:], [tensor.repeat(times[::-1]) for tensor in right[2:]])


def test_several_weights_and_other_memory_orders():
    weights = [numbers("random", shape, torch.float32) for shape in ((8, 12), (20, 8))]
    weights += [weights[0].t(), weights[1][:, ::2][:, :4].expand(20, 4)[::5]]
    got = pack_two_four(weights, True, True)
    same_bits(got, [tensor for weight in weights for tensor in expected(weight.contiguous(), True)])


FLUSHED = """
import torch
from sparsekern.cpp.two_four_packing import pack_two_four

tiny = 2.0 ** -140
generator = torch.Generator().manual_seed(0)
weight = (torch.randint(1, 100, (512, 512), generator=generator).double() * tiny).float()
right = pack_two_four([weight], True, True)
assert torch.set_flush_denormal(True)
for threads in (1, 2):
    torch.set_num_threads(threads)
    got = pack_two_four([weight], True, True)
    assert all(map(torch.equal, (t.view(torch.uint8) for t in got), (t.view(torch.uint8) for t in right)))
# The caller's setting is as it was.
assert (torch.tensor([tiny]) + 0).item() == 0
"""


def test_subnormal_numbers_count_where_they_are_flushed_to_zero():
    environment = {**os.environ, "PYTHONPATH": str(Path(sparsekern.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


@pytest.mark.parametrize("transposable", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_not_finite(isa, dtype, name, transposable):
    for row, column in [(0, 0), (3, 17), (67, 99), (64, 96), (2, 64), (66, 3)]:
        weight = numbers("spread", (68, 100), dtype)
        weight[row, column] = BAD[name]
        message = rf"^weight: expected finite values, got {name} at row {row}, column {column}$"
        with pytest.raises(ValueError, match=message):
            pack_two_four([weight], transposable, transposable)


@pytest.mark.parametrize("transposable", [False, True])
def test_names_the_first_of_several_that_are_not_finite(isa, threads, transposable):
    weight = numbers("random", (516, 2100), torch.float32)
    weight[400, 3], weight[70, 2099], weight[70, 2098], weight[71, 0] = BAD["nan"], *[BAD["inf"]] * 3
    for count in (1, 2, 3):
        threads(count)
        with pytest.raises(ValueError, match="got inf at row 70, column 2098"):
            pack_two_four([weight], transposable, transposable)


def test_the_largest_finite_numbers_pass(isa):
    for dtype in FLOATS:
        check(torch.full((4, 8), torch.finfo(dtype).max, dtype=dtype), True)
        check(-torch.full((4, 8), torch.finfo(dtype).max, dtype=dtype), False)


def test_transposes_only_transposable_masks():
    with pytest.raises(ValueError, match=r"^transpose: expected transposable masks, got those of rows$"):
        pack_two_four([torch.ones(4, 4)], False, True)


def test_instruction_sets_agree():
    """Also where exponents differ so much that every total is rounded."""
    weight = numbers("spread", (260, 1100), torch.float64)
    packed = []
    for level in native.isa_levels():
        with native.isa(level):
            packed.append(pack_two_four([weight], True, True))
    for other in packed[1:]:
        same_bits(other, packed[0])
