"""update_topology on the GPU: launcher and kernels run on the host, against the C++ backend bit for bit."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.ops import Candidates, update_topology

STATUS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "sparsekern" / "cuda_status.h"
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
ORDERS = {"magnitude": 0, "value": 1}
NUMBERS = ["random", "few", "equal", "zeros", "special"]


@pytest.fixture(scope="module")
def on_host(host_library):
    library = host_library("update_topology_on_host")
    library.workspace_bytes.restype = ctypes.c_int64
    return library


class Given(ctypes.Structure):
    """As the test's C++ side declares it."""

    _fields_ = (
        ("pattern", ctypes.c_void_p),
        ("value_type", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("score_type", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
        ("score_count", ctypes.c_int64),
        ("active", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("result", ctypes.c_void_p),
    )


def address(tensor):
    """An empty tensor has none, but an empty list of candidates is one."""
    return tensor.data_ptr() or 16


def given(values, pattern, scores, count, result):
    listed = isinstance(scores, Candidates)
    dense = scores.scores if listed else scores
    return Given(
        pattern.data.data_ptr(),
        TYPES[values.dtype],
        address(values),
        TYPES[dense.dtype],
        address(dense),
        dense.numel(),
        address(scores.active) if listed else None,
        address(scores.positions) if listed else None,
        count,
        result.data_ptr(),
    )


def result_like(values, pattern, scores, count):
    """Memory for the new pattern, every word of it wrong."""
    words = Pattern.from_mask(pattern.to_mask(), tile_size=pattern.tile_size, complete=True).data.numel()
    return torch.full((words,), -7, dtype=torch.int32)


def run(on_host, layers, by="magnitude", threads=1):
    results = [result_like(*layer) for layer in layers]
    array = (Given * len(layers))(*(given(*layer, result) for layer, result in zip(layers, results)))
    count = ctypes.c_int64(len(layers))
    size = on_host.workspace_bytes(array, count)
    # What was there before must not matter, and nothing behind the end is written.
    workspace = torch.full((size + 64,), 0xA5, dtype=torch.uint8)
    status = on_host.run_update_topology(
        array, count, ORDERS[by], ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(size), threads
    )
    assert status == 0
    assert (workspace[size:] == 0xA5).all()
    return results


def check(on_host, layers, by="magnitude", threads=1):
    right = update_topology(*map(list, zip(*layers)), by=by)
    for got, pattern in zip(run(on_host, layers, by, threads), right, strict=True):
        assert torch.equal(got, pattern.data)


# NaN in their smallest and largest forms, the latter negative: all are one to an order.
NANS = {
    torch.float16: torch.tensor([0x7C01, -1], dtype=torch.int16),
    torch.bfloat16: torch.tensor([0x7F81, -1], dtype=torch.int16),
    torch.float32: torch.tensor([0x7F800001, -1], dtype=torch.int32),
    torch.float64: torch.tensor([0x7FF0000000000001, -1], dtype=torch.int64),
}


def numbers(kind, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "few":
        x = (x * 2).round() / 2
    elif kind == "equal":
        x = torch.full(shape, -0.75)
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    elif kind == "special":
        others = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype)
        special = torch.cat([others, NANS[dtype].view(dtype)])
        return special[torch.randint(len(special), shape, generator=generator)]
    return x.to(dtype)


def layer(shape, density, *, kind="random", dtype=torch.float32, tile_size=None, share=0.3, complete=False):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < density
    pattern = Pattern.from_mask(mask, tile_size=tile_size, complete=complete)
    values = numbers(kind, (pattern.nnz,), dtype)
    return values, pattern, numbers(kind, shape, dtype, seed=1), round(share * pattern.nnz)


def listed(values, pattern, scores, count, share=1.0):
    """The layer with candidates in place of dense scores: some or all inactive positions, in no order."""
    as_matrix = (
        (lambda t: t) if scores.dim() == 2 else (lambda t: t.permute(0, 2, 3, 1).flatten(1).contiguous())
    )
    inactive = (~as_matrix(pattern.to_mask())).flatten().nonzero()[:, 0]
    order = torch.randperm(len(inactive), generator=torch.Generator().manual_seed(3))
    inactive = inactive[order][: max(count, round(share * len(inactive)))]
    return (
        values,
        pattern,
        Candidates(pattern.pack(scores), inactive, as_matrix(scores).flatten()[inactive]),
        count,
    )


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.3, 1.0])
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64])
def test_densities_and_tiles(on_host, tile_size, density, share, threads):
    for shape in ((65, 130), (12, 5, 3, 2)):
        for complete in (False, True):
            one = layer(shape, density, tile_size=tile_size, share=share, complete=complete)
            check(on_host, [one], threads=threads)
            check(on_host, [listed(*one, share=0.5)], threads=threads)


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers(on_host, dtype, kind, by):
    for shape in ((65, 130), (9, 70, 3, 3)):
        one = layer(shape, 0.4, kind=kind, dtype=dtype)
        check(on_host, [one], by)
        check(on_host, [listed(*one)], by)


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(700, 901), (130, 67, 3, 3)], ids=str)
def test_sizes_at_which_scores_are_sampled(on_host, shape, dtype, kind, threads):
    """Few are collected; where most are equal, the list overflows and all are searched."""
    check(on_host, [layer(shape, 0.05, kind=kind, dtype=dtype)], threads=threads)


def test_scores_that_are_not_aligned_for_vectors(on_host):
    values, pattern, scores, count = layer((700, 901), 0.05)
    shifted = torch.cat([torch.zeros(1), scores.flatten()])[1:].view(scores.shape)
    assert shifted.data_ptr() % 16 != 0
    check(on_host, [(values, pattern, shifted, count)])


@pytest.mark.parametrize("threads", [1, 4])
def test_many_layers_at_once(on_host, threads):
    """More than one launch carries, of several dtypes, with and without candidates; some do nothing."""
    shapes = [(65, 130), (12, 5, 3, 2), (1, 1), (70, 9, 1, 1), (300, 400)]
    dtypes = list(TYPES)
    layers = [
        layer(shapes[i % 5], (0.3, 0.0, 1.0)[i % 3], dtype=dtypes[i % 4], share=(0.3, 0.0, 1.0, 0.5)[i % 4])
        for i in range(30)
    ]
    layers = [listed(*one) if i % 7 == 3 else one for i, one in enumerate(layers)]
    check(on_host, layers, "value", threads)
    values, pattern, scores, count = layers[0]
    check(on_host, [(values.double(), pattern, scores.to(torch.bfloat16), count)])


def test_listed_positions_that_cannot_grow_are_passed_over(on_host):
    values, pattern, candidates, count = listed(*layer((65, 130), 0.3))
    active = (pattern.value_rows() * 130 + pattern.value_cols())[:3]
    wrong = torch.cat([torch.tensor([-1, 65 * 130, 2**40]), active])
    extended = Candidates(
        candidates.active,
        torch.cat([wrong, candidates.positions]),
        torch.cat([torch.full((6,), 1e9), candidates.scores]),
    )
    (got,) = run(on_host, [(values, pattern, extended, count)])
    (right,) = update_topology([values], [pattern], [candidates], [count])
    assert torch.equal(got, right.data)


def status(name):
    return int(re.search(rf"    {name} = (-?\d+),", STATUS.read_text())[1])


def arguments_of(on_host, one, change):
    result = result_like(*one)
    array = (Given * 1)(given(*one, result))
    size = on_host.workspace_bytes(array, ctypes.c_int64(1))
    workspace = torch.zeros(size + 16, dtype=torch.uint8)
    how = {"order": 0, "workspace": workspace.data_ptr(), "bytes": size, "threads": 1}
    for name, value in change.items():
        if name in how:
            how[name] = value(how[name]) if callable(value) else value
        else:
            setattr(array[0], name, value)
    keep = (result, workspace, one)
    order, address_, bytes_, threads = how.values()
    return (array, ctypes.c_int64(1), order, ctypes.c_void_p(address_), ctypes.c_int64(bytes_), threads), keep


REFUSED = {
    "bad_order": {"order": 2},
    "bad_type": {"value_type": 4},
    "bad_count": {"count": 10**6},
    "bad_count of scores": {"score_count": 5},
    "null_pointer": {"values": None},
    "null_pointer of scores": {"scores": None},
    "misaligned_pointer": {"scores": 18},
    "overlapping_buffers": {"result": "pattern"},
    "bad_workspace": {"workspace": 0},
    "bad_workspace of few bytes": {"bytes": lambda size: size - 1},
    "bad_workspace unaligned": {"workspace": lambda place: place + 4},
    "not_device_memory": {"threads": 0},
}


@pytest.mark.parametrize(("case", "change"), REFUSED.items(), ids=REFUSED)
def test_launcher_refuses(on_host, case, change):
    one = layer((65, 130), 0.3)
    change = {name: one[1].data.data_ptr() if value == "pattern" else value for name, value in change.items()}
    arguments, kept = arguments_of(on_host, one, change)
    assert on_host.run_update_topology(*arguments) == status(case.split()[0])
    assert (kept[0] == -7).all()


def test_launcher_refuses_too_few_candidates(on_host):
    values, pattern, candidates, count = listed(*layer((65, 130), 0.3))
    few = Candidates(candidates.active, candidates.positions[:5], candidates.scores[:5])
    arguments, _ = arguments_of(on_host, (values, pattern, few, count), {})
    assert on_host.run_update_topology(*arguments) == status("too_few_candidates")
