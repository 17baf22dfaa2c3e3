"""The report on compiled kernels: what it reads, and how it says it. Compiling is tested with the kernels."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import compiled, kernels_report
from benchmarks.compiled import CudaKernel, Resources, Wanted, parse_resources, short_name
from sparsekern.kernels.configs import Config

USAGE = """
Fatbin elf code:
arch = sm_80
 Function void sparsekern::cuda::(anonymous namespace)::move<float, 2>(sparsekern::Vectors (*)(int), long):
  REG:32 STACK:8 SHARED:1664 LOCAL:4 CONSTANT[2]:8 CONSTANT[0]:648 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_100
 Function sparsekern::cuda::grow_kernel(long):
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:824 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def row(**fields) -> Resources:
    entry = Wanted(90, "bf16", 0, "linear", "compact", Config(128, 2, 8, 3, narrow=True, prefetch=True))
    return Resources(entry, **fields)


def test_usage_of_cuda_kernels_is_read():
    assert parse_resources(USAGE) == [
        CudaKernel(80, "move<float, 2>", 32, 12, 1664),
        CudaKernel(100, "grow_kernel", 40, 0, 0),
    ]


@pytest.mark.parametrize(
    ("signature", "short"),
    [
        ("sparsekern::cuda::grow_kernel(sparsekern::cuda::Table, long)", "grow_kernel"),
        ("void (anonymous namespace)::f<(Kind)1>(int)", "f<(Kind)1>"),
        ("_Z4moveIfEvl", "_Z4moveIfEvl"),
    ],
)
def test_short_names(signature, short):
    assert short_name(signature) == short


@pytest.mark.parametrize(
    ("counts", "instruction"),
    [
        ({"HGMMA": 4, "HMMA": 1, "FFMA": 9}, "HGMMA"),
        ({"HMMA": 2, "FFMA": 9}, "HMMA"),
        ({"FFMA": 9}, "FFMA"),
        ({}, "-"),
    ],
)
def test_the_instruction_is_the_newest_that_multiplies(counts, instruction):
    assert row(counts=counts).instruction == instruction


def test_a_row_says_all_and_fits_the_screen():
    entry = Wanted(100, "ieee", 0, "linear_grad_values", "compact", Config(128, 2, 8, 5, 4, True, True, 64))
    wide = Resources(entry, 255, 1024, 232448, 32, 1.0, {"UTCHMMA": 1})
    table = kernels_report.triton_table(
        90, [row(registers=224, shared=65536, blocks=1, occupancy=0.125), wide]
    )
    text = table.text()
    assert max(map(len, text.splitlines())) <= 120
    assert "128x2 8w 3s d64 np" in text
    assert "12%" in text


def test_a_kernel_that_does_not_compile_is_a_row_with_a_reason_and_counts():
    rows = [row(error="OutOfResources: shared memory"), row(spilled=8, counts={})]
    assert "does not compile: OutOfResources" in kernels_report.triton_table(90, rows).text()
    assert kernels_report.totals(rows, [CudaKernel(90, "move", 32, 12, 0)]) == (
        "1 Triton launches compiled, 1 spilling, 1 failed; 1 CUDA C++ kernels, 1 spilling"
    )


@pytest.mark.parametrize(("spilled", "status"), [(0, 0), (4, 1)])
def test_the_exit_status_tells_of_spills(monkeypatch, capsys, spilled, status):
    monkeypatch.setattr(kernels_report, "compiled", lambda wanted, workers: [row(spilled=spilled, counts={})])
    monkeypatch.setattr(kernels_report, "cuda_kernels", list)
    assert kernels_report.main(["--capability", "90", "--arithmetic", "bf16"]) == status
    assert "1 Triton launches compiled" in capsys.readouterr().out


def test_alike_cuda_kernels_share_a_row():
    kernels = [CudaKernel(capability, "move", 32, 0, 8) for capability in (80, 90)] + [
        CudaKernel(100, "move", 33, 0, 8)
    ]
    text = kernels_report.cuda_table(kernels).text()
    assert "sm_80, sm_90" in text
    assert text.count("move") == 2


def test_the_catalog_is_listed_without_compiling():
    found = compiled.listed((90,), ("bf16",))
    assert {entry.name for entry in found} >= {
        "linear",
        "linear_grad_input",
        "linear_grad_values",
        "pack",
        "unpack",
    }
    assert len(set(map(str, found))) == len(found)
