"""pack_two_four on the GPU: launcher and kernels run on the host, bit for bit what trying all masks gives."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import multiprocessing
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsekern import cuda
from tests.kernels.two_four_masks import MASKS, expected, in_rows, row_mask, transposable_mask

STATUS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "sparsekern" / "cuda_status.h"
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.int8: 4}
LAYOUTS = {"rows": 0, "cutlass": 1}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


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


def special(kind: str, shape, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Finite numbers of a floating-point type that are hard to add up, or all that there are."""
    integers = torch.randint(0, 2 ** (8 * dtype.itemsize), shape, generator=generator)
    if kind == "tiny":
        # Zeros and the smallest numbers, subnormal ones among them.
        integers = integers % 1024
    elif kind == "small":
        # Those whose scale is hardly a number itself.
        first, last = {2: (12 << 7, 26 << 7), 4: (30 << 23, 60 << 23)}[dtype.itemsize]
        integers = first + integers % (last - first)
    weight = integers.to(BITS[dtype.itemsize]).view(dtype)
    if kind == "apart":
        # So many powers of two apart that bits fall off sums in float64.
        powers = torch.randint(-14 if dtype == torch.float16 else -60, 60, shape, generator=generator)
        weight = torch.ldexp(torch.randn(shape, generator=generator), powers).to(dtype)
    elif kind == "near-range":
        # One large weight in each tile, of which the others are just as far away as the fast way reaches.
        reach = 13 if dtype == torch.bfloat16 else 17
        powers = -torch.randint(reach - 2, reach + 3, shape, generator=generator)
        weight = torch.ldexp(1 + torch.rand(shape, generator=generator), powers)
        weight[1::4, 2::4] = 1.75
        weight = weight.to(dtype)
    return torch.where(weight.isfinite(), weight, torch.zeros((), dtype=dtype))


def numbers(kind: str, shape, dtype: torch.dtype, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind in SPECIAL:
        return special(kind, shape, dtype, generator)
    x = torch.randn(shape, generator=generator)
    if kind == "few":
        x = (x * 2).round() / 2
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    elif kind == "mostly-zeros":
        x = torch.where(x > 0.5, x, -0.0)
    elif kind == "equal":
        x = torch.full(shape, -0.75)
    return (x * 60).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


SPECIAL = ["near-range", "all", "tiny", "small", "apart"]
KINDS = ["random", "few", "zeros", "mostly-zeros", "equal"]
FLOATS = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [(4, 4), (4, 8), (8, 4), (12, 20), (128, 64), (136, 72), (132, 68), (260, 136)]


def names(dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


def test_there_are_ninety_masks():
    assert len(MASKS) == 90


@names(TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers(on_host, kind, dtype):
    for seed in range(2):
        check(on_host, [numbers(kind, (192, 200), dtype, seed)])


@names(FLOATS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_numbers_that_are_hard_to_add_up(on_host, kind, dtype):
    """Some thousand tiles each; some can be added up the fast way, some only as the definition says."""
    for seed in range(2):
        check(on_host, [numbers(kind, (192, 200), dtype, seed)])


def test_all_int8(on_host):
    integers = torch.arange(-128, 128).repeat(200)
    order = torch.randperm(len(integers), generator=torch.Generator().manual_seed(0))
    check(on_host, [integers[order].to(torch.int8).view(200, 256)])


@names(TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(on_host, shape, dtype):
    check(on_host, [numbers("few", shape, dtype)])
    check(on_host, [numbers("few", shape, dtype)], transpose=False)


@names(TYPES)
@pytest.mark.parametrize("kind", ["random", "few", "mostly-zeros"])
@pytest.mark.parametrize("shape", [(1, 4), (5, 12), (131, 68), (127, 136)], ids=str)
def test_rows_alone(on_host, shape, kind, dtype):
    check(on_host, [numbers(kind, shape, dtype)], transposable=False, transpose=False)


@names([torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", ["random", "few", "zeros", "mostly-zeros"])
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


@names(FLOATS)
@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_what_is_not_finite_is_kept(on_host, bad, transposable, dtype):
    """Two in each tile, in no row or column twice: some masks keep both, and one of them is taken."""
    weight = torch.where(torch.rand(64, 64) < 0.5, torch.finfo(dtype).max, 0.0).to(dtype)
    place = torch.randint(0, 4, (16, 16, 2), generator=torch.Generator().manual_seed(1))
    for i in range(2):
        within = (place + i) % 4
        rows = torch.arange(16)[:, None] * 4 + within[..., 0]
        weight[rows, torch.arange(16)[None] * 4 + within[..., 1]] = bad
    (values, _, *others) = pack(on_host, [weight], transposable, transposable)[0]
    for found in [values, *others[:1]]:
        assert int((~found.view(dtype).isfinite()).sum()) == 512


@names(FLOATS)
@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
@pytest.mark.parametrize("case", ["infinity-among-the-largest", "nan-among-infinities"])
def test_what_is_not_finite_outweighs_all_others(on_host, case, transposable, dtype):
    """It is kept although two others each of its row and column add up to more than it and one of each."""
    infinity = float("inf")
    center, around = (infinity, torch.finfo(dtype).max) if "largest" in case else (float("nan"), infinity)
    for row, column in itertools.product(range(4), repeat=2):
        weight = torch.zeros(4, 4, dtype=dtype)
        weight[row, [(column + 1) % 4, (column + 2) % 4]] = around
        weight[[(row + 1) % 4, (row + 2) % 4], column] = around
        weight[row, column] = center
        values = pack(on_host, [weight], transposable, False)[0][0].view(dtype)
        assert int((values.isnan() if center != infinity else values.isinf()).sum()) == 1


def in_the_last_bytes_of_a_page(tensor: torch.Tensor) -> torch.Tensor:
    """A copy between pages that must not be touched, not a byte before the second."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE)
    region = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for edge in (start, start + (pages + 1) * mmap.PAGESIZE):
        assert libc.mprotect(edge, mmap.PAGESIZE, 0) == 0
    offset = (pages + 1) * mmap.PAGESIZE - size
    copy = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(
        tensor.shape
    )
    return copy.copy_(tensor)


def pack_guarded(library: str) -> None:
    """In a process of its own, which a read out of bounds ends."""
    on_host = ctypes.CDLL(library)
    for dtype, shape in itertools.product(TYPES, [(16, 32), (100, 64), (128, 68), (132, 80)]):
        weight = in_the_last_bytes_of_a_page(numbers("few", shape, dtype))
        if weight.data_ptr() % 16 == 0:
            check(on_host, [weight])
            check(on_host, [weight], False, False)


def test_nothing_outside_of_the_weight_is_read(on_host):
    process = multiprocessing.get_context("spawn").Process(target=pack_guarded, args=(on_host._name,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.fixture
def as_backend(on_host, monkeypatch):
    """The CUDA backend on CPU tensors: its launcher is the one that runs on the host."""

    def launch(tuples, transposable, layout, stream):
        array = (Given * len(tuples))()
        for given, (type_, rows, columns, weight, elements, packing, transposed) in zip(array, tuples):
            assert elements == rows * columns
            addresses = [place for packed in (packing, transposed) if packed for place, _ in packed]
            addresses += [None] * (4 - len(addresses))
            for (name, _), value in zip(Given._fields_, (type_, rows, columns, weight, *addresses)):
                setattr(given, name, value)
        count = ctypes.c_int64(len(tuples))
        assert on_host.run_pack_two_four(array, count, int(transposable), layout, 1) == 0

    extension = SimpleNamespace(cuda=SimpleNamespace(pack_two_four=launch))
    monkeypatch.setattr(cuda, "_C", extension)
    monkeypatch.setattr(cuda, "_stream", lambda tensor: 0)
    return cuda


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backend_returns_what_is_packed(as_backend, layout):
    weights = [numbers("few", (256, 128), torch.bfloat16), numbers("few", (128, 128), torch.int8)]
    # One that begins between multiples of 16 bytes, and one that is not contiguous.
    weights.append(torch.cat([torch.zeros(1), torch.randn(128 * 128)]).half()[1:].view(128, 128))
    weights.append(numbers("few", (128, 256), torch.float16).T)
    found = iter(as_backend.pack_two_four(weights, True, True, layout))
    for weight in weights:
        mask = transposable_mask(weight)
        for w, m in ((weight, mask), (weight.T.contiguous(), mask.T.contiguous())):
            for wanted in expected(w.contiguous(), m, layout):
                got = next(found)
                assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
                assert torch.equal(as_bytes(got), as_bytes(wanted))
    assert next(found, None) is None


def test_the_backend_packs_rows_and_nothing(as_backend):
    weight = numbers("few", (5, 12), torch.float32)
    values, metadata = as_backend.pack_two_four([weight], False, False)
    right = in_rows(weight, row_mask(weight))
    assert torch.equal(values, right[0])
    assert torch.equal(metadata, right[1])
    assert as_backend.pack_two_four([], True, True) == []
    with pytest.raises(ValueError, match="transpose: expected transposable masks"):
        as_backend.pack_two_four([weight], False, True)


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


def in_words(value):
    """A test's name, the same in every process: an address that is moved is a function."""
    if isinstance(value, str):
        return value
    return " ".join(f"{key}={'moved' if callable(to) else to}" for key, to in value.items()) or "as it is"


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
    ids=in_words,
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
