"""What the kernels' tests share: patterns packed by NumPy alone, and a process that interprets Triton."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BIT_DTYPES = {8: np.uint8, 16: np.int16, 32: np.int32, 64: np.int32}


def _tiles(mask: np.ndarray, size: int) -> tuple[np.ndarray, int, int]:
    """The mask as (tile_rows, tile_cols, size, size), padded with False."""
    rows, cols = mask.shape
    tile_rows, tile_cols = -(-rows // size), -(-cols // size)
    padded = np.zeros((tile_rows * size, tile_cols * size), dtype=bool)
    padded[:rows, :cols] = mask
    return padded.reshape(tile_rows, size, tile_cols, size).transpose(0, 2, 1, 3), tile_rows, tile_cols


def _pack(mask: np.ndarray, tile_size: int) -> SimpleNamespace:
    grid, tile_rows, tile_cols = _tiles(mask, tile_size)
    stored = grid.any(axis=(2, 3))
    tile_row, tile_col = np.nonzero(stored)
    tiles = grid[tile_row, tile_col]
    per_row = tiles.sum(axis=2)
    order = np.lexsort((tile_row, tile_col))
    sections = {
        "tile_start": np.concatenate([[0], per_row.sum(axis=1).cumsum()]).astype(np.int64),
        "tile_row_ptr": np.concatenate([[0], stored.sum(axis=1).cumsum()]).astype(np.int32),
        "tile_col": tile_col.astype(np.int32),
        "tile_ptr_t": np.concatenate([[0], stored.sum(axis=0).cumsum()]).astype(np.int32),
        "tile_order_t": order.astype(np.int32),
        "row_offset": (per_row.cumsum(axis=1) - per_row).astype(np.int16),
        "bits": np.packbits(tiles, axis=2, bitorder="little").view(BIT_DTYPES[tile_size]),
    }
    rows, cols = mask.shape
    nnz = int(mask.sum())
    header = [0x314B5053, tile_size, rows, cols, tile_rows, tile_cols, len(tiles), 1, nnz, 0, 2, cols, 1, 1]
    words = np.array([*header, 0, 0], dtype=np.int32).tobytes()
    for section in sections.values():
        words += section.tobytes()
        words += bytes(-len(words) % 16)
    # Value i belongs to the i-th active position, tile by tile and row by row within a tile.
    tile, row, column = np.nonzero(tiles)
    return SimpleNamespace(
        tile_size=tile_size,
        matrix_shape=mask.shape,
        num_tiles=len(tiles),
        nnz=nnz,
        data=np.frombuffer(words, dtype=np.int32),
        positions=(tile_row[tile] * tile_size + row, tile_col[tile] * tile_size + column),
        **{name: torch.from_numpy(section) for name, section in sections.items()},
    )


@pytest.fixture(scope="session")
def pack():
    """pack(mask, tile_size): the pattern of a 2-D mask; `positions` is the (rows, columns) of its values."""
    return _pack


def _numbers(module) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


def _broken_interpreter(triton: tuple[int, ...], numpy: tuple[int, ...]) -> str | None:
    """Why nothing can be interpreted beside these versions, which compile."""
    if triton < (3, 7) and numpy >= (2, 4):
        return "Triton's interpreter converts arrays to numbers in a way that NumPy 2.4 refuses"
    if triton == (3, 9):
        return "Triton 3.9's interpreter refuses masks that are the conjunction of two comparisons"
    return None


@pytest.fixture(scope="session")
def interpreter():
    """A process in which Triton kernels are interpreted, and memory that is not yet written holds NaN.

    The variable counts when a kernel is decorated, so one process either interprets or compiles. Compiling is
    what this one does.
    """
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if reason := _broken_interpreter(_numbers(triton), _numbers(np)):
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        assert pool.submit(os.getenv, "TRITON_INTERPRET").result() == "1"
    with pool:
        pool.submit(torch.use_deterministic_algorithms, True).result()
        assert pool.submit(torch.empty, 3).result().isnan().all()
        yield pool


def _kinds() -> dict:
    def random(sparsity):
        return lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)) >= sparsity

    def last(shape):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[-1] = True
        return mask

    def empty_tile_row(shape):
        mask = random(0.7)(shape)
        mask[: min(64, shape[0] - 1)] = False
        return mask

    return {
        "90-percent": random(0.9),
        "half": random(0.5),
        "all-active": lambda shape: torch.ones(shape, dtype=torch.bool),
        "none-active": lambda shape: torch.zeros(shape, dtype=torch.bool),
        "last-position-only": last,
        "tile-rows-empty": empty_tile_row,
    }


# How masks look, by name: a function of the shape.
KINDS = _kinds()


@pytest.fixture(params=KINDS)
def mask_of(request):
    """mask_of(shape): a mask of each kind."""
    return KINDS[request.param]


@pytest.fixture(scope="session")
def host_library(tmp_path_factory):
    """host_library(name): the source ``name.cpp`` of this folder, and the CUDA source in it, as host code."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    here, csrc = Path(__file__).parent, Path(__file__).resolve().parents[2] / "csrc"

    def build(name):
        library = tmp_path_factory.mktemp("host") / f"{name}.so"
        include = ["-I", here / "host_cuda", "-I", csrc / "include", "-I", csrc / "cuda"]
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", *include, here / f"{name}.cpp"]
        subprocess.run([*map(str, command), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))

    return build
