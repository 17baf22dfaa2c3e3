"""transfer on the GPU: its code run on the host. And every CUDA source compiled for each GPU generation."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
DTYPES = {2: np.uint16, 4: np.float32, 8: np.float64}


@pytest.fixture(scope="module")
def on_host(host_library):
    """The kernel's source compiled as host code."""
    return host_library("transfer_on_host")


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 16 bytes, as device memory does."""
    buffer = np.empty(array.nbytes + 16, dtype=np.uint8)
    start = -buffer.ctypes.data % 16
    copy = buffer[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


class Vector(ctypes.Structure):
    """As the header declares `TransferVector`."""

    _fields_ = (
        ("from_values", ctypes.c_void_p),
        ("to_values", ctypes.c_void_p),
        ("element_size", ctypes.c_int64),
    )


def vectors_of(*vectors):
    """(from_values, to_values, element_size) of each, as an array of `Vector`; and how many there are."""
    made = (Vector * len(vectors))(*(Vector(address(a), address(b), size) for a, b, size in vectors))
    return made, ctypes.c_int64(len(vectors))


def values_for(pattern, dtype, rng: np.random.Generator) -> np.ndarray:
    return aligned(rng.integers(1, 60000, pattern.nnz).astype(dtype))


def transferred(from_values: np.ndarray, from_pattern, to_pattern) -> np.ndarray:
    dense = np.zeros(from_pattern.matrix_shape, dtype=from_values.dtype)
    dense[from_pattern.positions] = from_values
    return dense[to_pattern.positions]


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("element_size", DTYPES)
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64])
@pytest.mark.parametrize("densities", [(0.1, 0.1), (0.002, 0.5), (1.0, 0.05), (0.0, 0.3), (0.3, 0.0)])
def test_transfer_kernel_is_exact(on_host, pack, densities, tile_size, element_size, blocks, threads):
    rng = np.random.default_rng(0)
    from_pattern, to_pattern = (pack(rng.random((203, 131)) < density, tile_size) for density in densities)
    from_values = values_for(from_pattern, DTYPES[element_size], rng)
    from_data, to_data = aligned(from_pattern.data), aligned(to_pattern.data)
    to_values = aligned(np.full(to_pattern.nnz, 65000, dtype=from_values.dtype))
    vectors = vectors_of((from_values, to_values, element_size))
    assert on_host.run_transfer(pointer(from_data), pointer(to_data), *vectors, blocks, threads) == 0
    np.testing.assert_array_equal(to_values, transferred(from_values, from_pattern, to_pattern))


@pytest.mark.parametrize("count", [2, 8, 9, 17])
def test_several_vectors_of_several_sizes(on_host, pack, count):
    """More than a launch takes, too."""
    rng = np.random.default_rng(0)
    from_pattern, to_pattern = (pack(rng.random((75, 131)) < 0.3, 16) for _ in range(2))
    from_data, to_data = aligned(from_pattern.data), aligned(to_pattern.data)
    sizes = [(2, 4, 8)[i % 3] for i in range(count)]
    old = [values_for(from_pattern, DTYPES[size], rng) for size in sizes]
    new = [aligned(np.full(to_pattern.nnz, 65000, dtype=values.dtype)) for values in old]
    assert (
        on_host.run_transfer(pointer(from_data), pointer(to_data), *vectors_of(*zip(old, new, sizes)), 5, 1)
        == 0
    )
    for before, after in zip(old, new):
        np.testing.assert_array_equal(after, transferred(before, from_pattern, to_pattern))


def status_names() -> dict[str, int]:
    header = (ROOT / "csrc" / "include" / "sparsekern" / "cuda_status.h").read_text()
    return {name: int(value) for name, value in re.findall(r"^    (\w+) = (-?\d+),", header, re.MULTILINE)}


def broken(case: str, pack) -> tuple[tuple, int]:
    """(from, from_values, to, to_values) and the element size, right but for one thing."""
    rng = np.random.default_rng(1)
    shape = (40, 48) if case == "different_shapes" else (40, 40)
    from_pattern = pack(rng.random(shape) < 0.2, 16 if case == "different_tile_sizes" else 32)
    to_pattern = pack(rng.random((40, 40)) < 0.2, 32)
    from_data, to_data = aligned(from_pattern.data), aligned(to_pattern.data)
    from_values = values_for(from_pattern, np.float32, rng)
    to_values = values_for(to_pattern, np.float32, rng)
    if case == "bad_pattern_sizes":
        to_data[6] = 5
    if case == "null_pointer":
        from_values = None
    if case == "misaligned_pointer":
        from_data = aligned(np.append(np.int32(0), from_data))[1:]
    if case == "overlapping_buffers":
        to_values = from_values
    return (from_data, from_values, to_data, to_values), 3 if case == "bad_element_size" else 4


@pytest.mark.parametrize(
    "case",
    [
        "bad_element_size",
        "bad_pattern_sizes",
        "different_shapes",
        "different_tile_sizes",
        "null_pointer",
        "misaligned_pointer",
        "overlapping_buffers",
        "not_device_memory",
    ],
)
def test_launcher_refuses(on_host, pack, case):
    (from_data, from_values, to_data, to_values), element_size = broken(case, pack)
    vectors = vectors_of((from_values, to_values, element_size))
    status = on_host.launcher_status(pointer(from_data), pointer(to_data), *vectors)
    assert status == status_names()[case]


def test_nothing_to_write_is_a_success(on_host, pack):
    from_pattern, empty = pack(np.eye(8, dtype=bool), 8), pack(np.zeros((8, 8), dtype=bool), 8)
    from_data, to_data, values = map(aligned, (from_pattern.data, empty.data, np.ones(8, dtype=np.float32)))
    patterns, vectors = (pointer(from_data), pointer(to_data)), vectors_of((values, None, 4))
    assert on_host.launcher_status(*patterns, *vectors) == 0
    assert on_host.launcher_status(*patterns, None, ctypes.c_int64(0)) == 0


def test_every_status_has_a_message():
    messages = (ROOT / "csrc" / "cuda" / "status.cu").read_text()
    assert all(f"case Status::{name}:" in messages for name in status_names())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "arch",
    # The build compiles for all three, wherever there is an nvcc.
    [pytest.param("80", marks=pytest.mark.slow), "90", pytest.param("100", marks=pytest.mark.slow)],
    ids=lambda arch: f"sm_{arch}",
)
def test_cuda_compiles_without_a_warning_or_a_spill(source, arch, tmp_path):
    command = ["nvcc", "-std=c++17", "-O3", "-Xcompiler", "-Wall,-Wextra", "-Werror", "all-warnings"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v"]
    command += ["-I", str(ROOT / "csrc" / "include"), "-c", str(source), "-o", str(tmp_path / "object.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", result.stderr)
    assert len(spills) > 0 or "__global__" not in source.read_text()
    assert all(int(count) == 0 for count in spills)
