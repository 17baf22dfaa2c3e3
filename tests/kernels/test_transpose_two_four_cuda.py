"""transpose_two_four on the GPU: launcher and kernels run on the host, bit for bit what packing gives."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsekern import cuda
from tests.kernels.two_four_masks import in_rows, transposable_mask

STATUS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "sparsekern" / "cuda_status.h"
DTYPES = [torch.int8, torch.bfloat16, torch.float32]
SHAPES = [(4, 4), (4, 8), (8, 4), (12, 20), (128, 64), (136, 72), (132, 68), (260, 136)]


class Given(ctypes.Structure):
    """As the header declares `PackedWeight`."""

    _fields_ = (
        ("element_size", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
        ("values_t", ctypes.c_void_p),
        ("metadata_t", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def on_host(host_library):
    return host_library("transpose_two_four_on_host")


@pytest.fixture
def as_backend(on_host, monkeypatch):
    """The CUDA backend on CPU tensors: its launcher is the one that runs on the host."""

    def launch(tuples, stream):
        array = (Given * len(tuples))()
        for given, (size, rows, columns, *packings) in zip(array, tuples):
            addresses = [address for packing in packings for address, _ in packing]
            for (name, _), value in zip(Given._fields_, (size, rows, columns, *addresses)):
                setattr(given, name, value)
        assert on_host.run_transpose_two_four(array, ctypes.c_int64(len(tuples)), 1) == 0

    extension = SimpleNamespace(cuda=SimpleNamespace(transpose_two_four=launch))
    monkeypatch.setattr(cuda, "_C", extension)
    monkeypatch.setattr(cuda, "_stream", lambda tensor: 0)
    return cuda


def packings(shape, dtype, seed=0):
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 40).to(dtype)
    mask = transposable_mask(weight)
    return in_rows(weight, mask), in_rows(weight.T.contiguous(), mask.T.contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(as_backend, shape, dtype):
    (values, metadata), right = packings(shape, dtype)
    found = as_backend.transpose_two_four([values], [metadata])
    assert all(map(torch.equal, found, right))
    again = as_backend.transpose_two_four([found[0]], [found[1]])
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], metadata)


def test_many_weights_at_once(as_backend):
    """More than one launch carries, of several types; one is empty, one begins where vectors do not."""
    given = [packings(SHAPES[i % 8], DTYPES[i % 3], i) for i in range(50)]
    values = [packed[0] for packed, _ in given]
    values[3] = torch.cat([values[3].flatten()[:1], values[3].flatten()])[1:].view(values[3].shape)
    metadata = [packed[1] for packed, _ in given]
    values[7:7], metadata[7:7] = [torch.empty(0, 4)], [torch.empty(0, 1, dtype=torch.uint8)]
    found = as_backend.transpose_two_four(values, metadata)
    assert found[14].shape == (8, 0)
    del found[14:16]
    right = [tensor for _, transposed in given for tensor in transposed]
    assert all(map(torch.equal, found, right))
    assert as_backend.transpose_two_four([], []) == []


def test_any_metadata_stays_inside(as_backend):
    """Of another mask the result means nothing, and it is written to nowhere else."""
    generator = torch.Generator().manual_seed(0)
    metadata = torch.randint(0, 256, (20, 5), generator=generator).to(torch.uint8)
    values_t, metadata_t = as_backend.transpose_two_four([torch.ones(20, 20)], [metadata])
    assert values_t.shape == (40, 10)
    assert metadata_t.shape == (40, 3)


def in_words(value):
    """A test's name, the same in every process: an address that is moved is a function."""
    if isinstance(value, str):
        return value
    return " ".join(f"{key}={'moved' if callable(to) else to}" for key, to in value.items()) or "as it is"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bad_element_size", {"element_size": 8}),
        ("bad_weight_sizes", {"rows": 18}),
        ("bad_weight_sizes", {"columns": 18}),
        ("bad_weight_sizes", {"rows": -4}),
        ("null_pointer", {"metadata": None}),
        ("null_pointer", {"values_t": None}),
        ("misaligned_pointer", {"values": lambda place: place + 4}),
        ("overlapping_buffers", {"values_t": "values"}),
        ("overlapping_buffers", {"metadata_t": "metadata"}),
        ("not_device_memory", {"is_device": 0}),
    ],
    ids=in_words,
)
def test_launcher_refuses(on_host, name, change):
    (values, metadata), (values_t, metadata_t) = packings((16, 16), torch.float32)
    before = values_t.clone()
    pointers = [tensor.data_ptr() for tensor in (values, metadata, values_t, metadata_t)]
    array = (Given * 1)(Given(4, 16, 16, *pointers))
    is_device = change.get("is_device", 1)
    for field, value in change.items():
        if field != "is_device":
            old = getattr(array[0], field)
            new = getattr(array[0], value) if isinstance(value, str) else value
            setattr(array[0], field, new(old) if callable(new) else new)
    wanted = int(re.search(rf"    {name} = (-?\d+),", STATUS.read_text())[1])
    assert on_host.run_transpose_two_four(array, ctypes.c_int64(1), is_device) == wanted
    assert torch.equal(values_t, before)
