"""The tile decode: right in the interpreter, and lean when compiled for each GPU generation."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparsekern.kernels import tile_decode  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MASKS = {
    "90-percent": lambda rng, shape: rng.random(shape) < 0.1,
    "half": lambda rng, shape: rng.random(shape) < 0.5,
    "all-active": lambda rng, shape: np.ones(shape, dtype=bool),
    "none-active": lambda rng, shape: np.zeros(shape, dtype=bool),
    "last-position-only": lambda rng, shape: np.indices(shape).sum(axis=0) == sum(shape) - 2,
    "one-tile-row-empty": lambda rng, shape: (rng.random(shape) < 0.3) & (np.arange(shape[0]) >= 64)[:, None],
}


def dense_of(values: torch.Tensor, pattern) -> torch.Tensor:
    dense = torch.zeros(pattern.matrix_shape, dtype=values.dtype)
    dense[pattern.positions] = values
    return dense


@pytest.mark.parametrize("tile_size", [32, 64])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 127), (130, 33)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("kind", MASKS)
def test_unpack_is_exact(interpreter, pack, kind, shape, tile_size):
    rng = np.random.default_rng(0)
    pattern = pack(MASKS[kind](rng, shape), tile_size)
    values = torch.from_numpy(rng.standard_normal(pattern.nnz)).float()
    dense = interpreter.submit(tile_decode.unpack, values, pattern).result()
    assert torch.equal(dense, dense_of(values, pattern))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_unpack_keeps_every_bit_of_a_dtype(interpreter, pack, dtype):
    rng = np.random.default_rng(1)
    pattern = pack(rng.random((70, 90)) < 0.2, 64)
    values = torch.from_numpy(rng.standard_normal(pattern.nnz)).to(dtype)
    dense = interpreter.submit(tile_decode.unpack, values, pattern).result()
    assert dense.dtype == dtype
    assert torch.equal(dense, dense_of(values, pattern))


def test_non_contiguous_values(interpreter, pack):
    rng = np.random.default_rng(2)
    pattern = pack(rng.random((40, 40)) < 0.2, 32)
    values = torch.from_numpy(rng.standard_normal((pattern.nnz, 2)))[:, 0]
    dense = interpreter.submit(tile_decode.unpack, values, pattern).result()
    assert torch.equal(dense, dense_of(values, pattern))


def test_wrong_number_of_values_is_refused(pack):
    pattern = pack(np.eye(32, dtype=bool), 32)
    with pytest.raises(ValueError, match=r"values: expected shape \(32,\) .* got \(31,\)"):
        tile_decode.unpack(torch.zeros(31), pattern)


def test_small_tiles_are_refused(pack):
    pattern = pack(np.eye(16, dtype=bool), 16)
    with pytest.raises(ValueError, match="pattern: expected a tile size of 32 or 64, got 16"):
        tile_decode.unpack(torch.zeros(16), pattern)


def compiled_for(capability: int, tile_size: int, dtype: str):
    """`unpack_kernel` compiled for a GPU that need not be here."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set, so nothing can be compiled in this process")
    pointers = {"tile_start": "*i64", "row_offset": "*i16", "values": f"*{dtype}", "dense": f"*{dtype}"}
    sizes = {"rows": "i32", "cols": "i32", "TILE": "constexpr", "STEPS": "constexpr"}
    names = tile_decode.unpack_kernel.arg_names
    signature = {name: ({**pointers, **sizes}).get(name, "*i32") for name in names}
    source = ASTSource(tile_decode.unpack_kernel, signature, constexprs={"TILE": tile_size, "STEPS": 7})
    options = {"num_warps": tile_size // 8, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cuobjdump(cubin: bytes, folder, option: str) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tile_size", [32, 64])
@pytest.mark.parametrize("capability", [80, 90, 100], ids=lambda capability: f"sm_{capability}")
def test_compiled_kernel_counts_bits_in_hardware_and_spills_nothing(capability, tile_size, dtype, tmp_path):
    kernel = compiled_for(capability, tile_size, dtype)
    assert "popc.b32" in kernel.asm["ptx"]
    machine_code = cuobjdump(kernel.asm["cubin"], tmp_path, "-sass")
    assert "POPC" in machine_code
    assert "STL" not in machine_code
    assert "LDL" not in machine_code
    resources = cuobjdump(kernel.asm["cubin"], tmp_path, "-res-usage")
    assert "STACK:0 " in resources
    assert "LOCAL:0 " in resources


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("tile_size", [32, 64])
def test_unpack_on_a_gpu(pack, tile_size, dtype):
    rng = np.random.default_rng(3)
    pattern = pack(rng.random((1000, 777)) < 0.1, tile_size)
    values = torch.from_numpy(rng.standard_normal(pattern.nnz)).to(dtype)
    expected = dense_of(values, pattern)
    for name in ("tile_start", "tile_row_ptr", "tile_col", "row_offset", "bits"):
        setattr(pattern, name, getattr(pattern, name).cuda())
    assert torch.equal(tile_decode.unpack(values.cuda(), pattern).cpu(), expected)
