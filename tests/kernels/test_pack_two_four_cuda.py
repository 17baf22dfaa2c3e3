"""pack_two_four on the GPU: launcher and kernels run on the host, bit for bit against masks tried one by one."""

from __future__ import annotations

import ctypes
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

STATUS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "sparsekern" / "cuda_status.h"
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.int8: 4}
HALVES = (torch.float16, torch.bfloat16)
LAYOUTS = {"rows": 0, "cutlass": 1}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
PAIRS = list(itertools.combinations(range(4), 2))


@pytest.fixture(scope="module")
def on_host(host_library):
    return host_library("pack_two_four_on_host")


class Given(ctypes.Structure):
    """As the test's C++ side declares it."""

    _fields_ = (
        ("type", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
        ("values_t", ctypes.c_void_p),
        ("metadata_t", ctypes.c_void_p),
    )


# Four pairs of columns, one for each row: those that keep two of each column, and the earlier positions first.
MASKS = [
    pairs
    for pairs in itertools.product(PAIRS, repeat=4)
    if all(sum(column in pair for pair in pairs) == 2 for column in range(4))
]


def magnitudes(weight: torch.Tensor) -> np.ndarray:
    return weight.double().abs().numpy()


def transposable_mask(weight: torch.Tensor) -> torch.Tensor:
    """Every mask of every tile tried, the first of the best taken."""
    rows, columns = weight.shape
    tiles = magnitudes(weight).reshape(rows // 4, 4, columns // 4, 4).transpose(0, 2, 1, 3).reshape(-1, 4, 4)
    totals = []
    for pairs in MASKS:
        s = [tiles[:, row, first] + tiles[:, row, second] for row, (first, second) in enumerate(pairs)]
        totals.append((s[0] + s[1]) + (s[2] + s[3]))
    # The first of equal ones.
    best = np.argmax(np.stack(totals), axis=0)
    kept = np.zeros((len(MASKS), 4, 4), dtype=bool)
    for mask, (row, pair) in itertools.product(range(len(MASKS)), enumerate(range(4))):
        kept[mask, row, list(MASKS[mask][pair])] = True
    grid = kept[best].reshape(rows // 4, columns // 4, 4, 4).transpose(0, 2, 1, 3)
    return torch.from_numpy(grid.reshape(rows, columns).copy())


def row_mask(weight: torch.Tensor) -> torch.Tensor:
    groups = magnitudes(weight).reshape(-1, 4)
    order = np.argsort(-groups, axis=1, kind="stable")[:, :2]
    kept = np.zeros_like(groups, dtype=bool)
    np.put_along_axis(kept, order, True, axis=1)
    return torch.from_numpy(kept.reshape(weight.shape))


def in_rows(weight: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and metadata, put together one group at a time."""
    rows, columns = weight.shape
    places = mask.view(rows, columns // 4, 4).nonzero()[:, 2].view(rows, columns // 4, 2)
    nibbles = places[..., 0] | places[..., 1] << 2
    nibbles = torch.nn.functional.pad(nibbles, (0, (columns // 4) % 2))
    return weight[mask].view(rows, columns // 2), (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)


def expected(weight, mask, layout) -> tuple[torch.Tensor, torch.Tensor]:
    if layout == "rows":
        return in_rows(weight, mask)
    # As torch.where puts it: what is not kept is 0.0, and a kept -0.0 stays.
    masked = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype)).contiguous()
    return sparse_semi_structured_from_dense_cutlass(masked)


def empty_results(weight, layout):
    """Memory for values and metadata, every byte of it wrong, in front of memory that must stay."""
    rows, columns = weight.shape
    size = weight.element_size()
    sizes = rows * columns // 2 * size, rows * (-(-columns // 8))
    return [torch.full((bytes_ + 64,), 0xA5, dtype=torch.uint8) for bytes_ in sizes]


def pack(on_host, weights, transposable, transpose, layout="rows"):
    """For each weight the bytes of values and metadata, and those of the transpose."""
    found = []
    array = (Given * len(weights))()
    for given, weight in zip(array, weights):
        results = empty_results(weight, layout)
        results += empty_results(weight.T, layout) if transpose else []
        found.append(results)
        addresses = [result.data_ptr() for result in results] + [None] * (4 - len(results))
        fields = (TYPES[weight.dtype], *weight.shape, weight.data_ptr(), *addresses)
        for (name, _), value in zip(Given._fields_, fields):
            setattr(given, name, value)
    count = ctypes.c_int64(len(weights))
    assert on_host.run_pack_two_four(array, count, int(transposable), LAYOUTS[layout], 1) == 0
    for results in found:
        assert all((result[-64:] == 0xA5).all() for result in results)
    return [[result[:-64] for result in results] for results in found]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def check(on_host, weights, transposable=True, transpose=True, layout="rows"):
    found = pack(on_host, weights, transposable, transpose, layout)
    for weight, results in zip(weights, found, strict=True):
        mask = (transposable_mask if transposable else row_mask)(weight)
        right = list(expected(weight, mask, layout))
        if transpose:
            right += expected(weight.T.contiguous(), mask.T.contiguous(), layout)
        for got, wanted in zip(results, right, strict=True):
            assert torch.equal(got, as_bytes(wanted))


def special(kind: str, dtype: torch.dtype, generator: torch.Generator, shape) -> torch.Tensor:
    """Finite numbers of a floating-point type: all there are, or those that are hard to add up."""
    bits = torch.randint(0, 2 ** (8 * dtype.itemsize), shape, generator=generator)
    integers = BITS[dtype.itemsize]
    if kind == "tiny":
        # Zeros and the smallest numbers, subnormal ones among them.
        bits = bits % 1024
    weight = bits.to(integers).view(dtype)
    if kind == "apart":
        # Of two sizes with a power of two between them at which some of their bits fall off a sum in float64.
        exponents = {torch.float16: (-14, 15), torch.bfloat16: (-100, 90), torch.float32: (-60, 60)}[dtype]
        choice = torch.randint(exponents[0], exponents[1], shape, generator=generator)
        weight = torch.ldexp(torch.randn(shape, generator=generator), choice.clamp(-60, 60)).to(dtype)
    return torch.where(weight.isfinite(), weight, torch.zeros((), dtype=dtype))


def numbers(kind: str, shape, dtype: torch.dtype, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind in ("all", "tiny", "apart") and dtype.is_floating_point:
        return special(kind, dtype, generator, shape)
    x = torch.randn(shape, generator=generator)
    if kind == "few":
        x = (x * 2).round() / 2
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    elif kind == "mostly-zeros":
        x = torch.where(x > 0.5, x, -0.0)
    elif kind == "equal":
        x = torch.full(shape, -0.75)
    elif kind == "near-range":
        # Weights of a tile that fit the fast way just so, or just not.
        x = torch.sign(x) * torch.exp2(torch.randint(-22, 1, shape, generator=generator).float()) * (1 + x.abs() / 8)
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator).to(torch.int8) if kind in ("all", "random") else (
            x * 40
        ).round().clamp(-128, 127).to(torch.int8)
    return x.to(dtype)


KINDS = ["random", "few", "zeros", "mostly-zeros", "equal", "near-range", "all", "tiny", "apart"]
SHAPES = [(4, 4), (4, 8), (8, 4), (12, 20), (128, 64), (136, 72), (132, 68), (260, 136)]


def names(dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


def test_there_are_ninety_masks():
    assert len(MASKS) == 90


@names(TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers(on_host, kind, dtype):
    """Some thousand tiles; among them such as are added up exactly, and such as are not."""
    for seed in range(2):
        check(on_host, [numbers(kind, (192, 200), dtype, seed)])


@names(TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(on_host, shape, dtype):
    check(on_host, [numbers("few", shape, dtype)])
    check(on_host, [numbers("few", shape, dtype)], transpose=False)


@names(TYPES)
@pytest.mark.parametrize("kind", ["random", "few", "mostly-zeros", "all"])
@pytest.mark.parametrize("shape", [(1, 4), (5, 12), (131, 68), (127, 136)], ids=str)
def test_rows_alone(on_host, shape, kind, dtype):
    check(on_host, [numbers(kind, shape, dtype)], transposable=False, transpose=False)


@names([torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", ["random", "few", "zeros", "mostly-zeros", "all"])
@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
def test_the_layout_of_cutlass_is_pytorchs(on_host, transposable, kind, dtype):
    """Also where kept weights are zero, which PyTorch does not tell from others."""
    for shape in ((128, 128), (256, 384), (384, 256)):
        weight = numbers(kind, shape, dtype)
        check(on_host, [weight], transposable, transposable, "cutlass")


def test_the_layout_of_cutlass_with_rows_of_one_block(on_host):
    check(on_host, [numbers("few", (32, 64), torch.bfloat16)], False, False, "cutlass")
    check(on_host, [numbers("few", (16, 128), torch.int8)], False, False, "cutlass")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_weights_at_once(on_host, layout):
    """More than one launch carries, of several types; some are empty."""
    dtypes = [torch.bfloat16, torch.int8, torch.float16 if layout == "cutlass" else torch.float32]
    shapes = [(128, 128)] * 38 + [(256, 128), (128, 384)] * 2
    weights = [numbers("few", shape, dtypes[max(0, i - 38) % 3], i) for i, shape in enumerate(shapes)]
    if layout == "rows":
        weights[5:5] = [numbers("few", shape, torch.bfloat16) for shape in ((0, 128), (128, 0), (4, 4))]
    check(on_host, weights, layout=layout)


NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


@names([torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
@pytest.mark.parametrize("bad", NOT_FINITE, ids=str)
def test_what_is_not_finite_is_kept(on_host, bad, transposable, dtype):
    """One in each tile: some mask keeps it, and that one is taken however large the others are."""
    weight = numbers("all", (64, 64), dtype)
    place = torch.randint(0, 4, (16, 16, 2), generator=torch.Generator().manual_seed(1))
    rows, columns = torch.arange(16)[:, None] * 4 + place[..., 0], torch.arange(16)[None] * 4 + place[..., 1]
    weight[rows, columns] = bad
    (values, _, *others) = pack(on_host, [weight], transposable, transposable)[0]
    for found in [values, *others[:1]]:
        assert int((~found.view(dtype).isfinite()).sum()) == 256


@names([torch.bfloat16, torch.float32])
def test_nan_is_larger_than_infinity(on_host, dtype):
    weight = torch.full((4, 4), float("inf"), dtype=dtype)
    weight[2, 1:3] = float("nan")
    weight[3, 0] = float("nan")
    for transposable in (False, True):
        values = pack(on_host, [weight], transposable, False)[0][0].view(dtype)
        assert int(values.isnan().sum()) == 3


def status(name: str) -> int:
    return int(re.search(rf"    {name} = (-?\d+),", STATUS.read_text())[1])


def refused(on_host, change, transposable=True, layout="rows", is_device=1, dtype=torch.bfloat16):
    weight = numbers("random", (128, 128), dtype)
    results = [*empty_results(weight, layout), *empty_results(weight, layout)]
    array = (Given * 1)()
    fields = (TYPES[dtype], *weight.shape, weight.data_ptr(), *(result.data_ptr() for result in results))
    for (name, _), value in zip(Given._fields_, fields):
        setattr(array[0], name, value)
    for name, value in change.items():
        setattr(array[0], name, value(getattr(array[0], name)) if callable(value) else value)
    layout_number = LAYOUTS.get(layout, layout)
    got = on_host.run_pack_two_four(array, ctypes.c_int64(1), int(transposable), layout_number, is_device)
    assert all((result == 0xA5).all() for result in results)
    return got


@pytest.mark.parametrize(
    ("name", "change", "how"),
    [
        ("bad_layout", {}, {"layout": 2}),
        ("bad_weight_type", {"type": 3}, {}),
        ("bad_weight_type", {"type": 5}, {}),
        ("bad_weight_type", {"type": 2}, {"layout": "cutlass"}),
        ("bad_weight_sizes", {"columns": 126}, {}),
        ("bad_weight_sizes", {"rows": 126}, {}),
        ("bad_weight_sizes", {"rows": -4}, {}),
        ("bad_weight_sizes", {"rows": 96}, {"layout": "cutlass"}),
        ("bad_weight_sizes", {"columns": 96}, {"layout": "cutlass"}),
        ("bad_weight_sizes", {"columns": 192}, {"layout": "cutlass", "dtype": torch.int8}),
        ("bad_transpose", {"values_t": None}, {}),
        ("bad_transpose", {"metadata_t": None}, {}),
        ("bad_transpose", {}, {"transposable": False}),
        ("null_pointer", {"weight": None}, {}),
        ("null_pointer", {"values": None}, {}),
        ("null_pointer", {"metadata": None}, {}),
        ("misaligned_pointer", {"weight": lambda place: place + 8}, {}),
        ("misaligned_pointer", {"values": lambda place: place + 2}, {}),
        ("misaligned_pointer", {"metadata_t": lambda place: place + 4}, {}),
        ("not_device_memory", {}, {"is_device": 0}),
    ],
    ids=str,
)
def test_launcher_refuses(on_host, name, change, how):
    assert refused(on_host, change, **how) == status(name)


def test_launcher_refuses_to_write_over_the_weight(on_host):
    weight = numbers("random", (128, 128), torch.bfloat16)
    before = weight.clone()
    values, metadata = empty_results(weight, "rows")
    array = (Given * 1)(
        Given(1, 128, 128, weight.data_ptr(), weight.data_ptr() + 64, metadata.data_ptr(), None, None)
    )
    assert on_host.run_pack_two_four(array, ctypes.c_int64(1), 1, 0, 1) == status("overlapping_buffers")
    assert torch.equal(weight, before)
