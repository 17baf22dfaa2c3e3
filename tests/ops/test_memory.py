"""Memory: no dense weight is ever made, and nothing is touched out of bounds or read before it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsekern

GUARDED = Path(__file__).with_name("guarded.py")

PEAK = """
import json, sys, torch
from sparsekern import native
from sparsekern.formats import Pattern
from sparsekern.ops import linear, update_topology

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(2)
pattern = Pattern.random((8192, 8192), 0.99, generator=torch.Generator().manual_seed(0))
values = torch.randn(pattern.nnz).requires_grad_()
x = torch.randn(16, 8192).requires_grad_()
growth = {}
for backend in ("cpp", "reference"):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the peak starts anew
    linear(x, values, pattern, backend=backend).sum().backward()
    growth[backend] = status("VmHWM") - before
scores = torch.randn(8192, 8192)
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")
update_topology([values], [pattern], [scores], [pattern.nnz // 3])
growth["update_topology"] = status("VmHWM") - before
print(json.dumps(growth))
"""

OUT_OF_MEMORY = """
import resource, sys, torch
from sparsekern.formats import Pattern
from sparsekern.ops import linear, linear_grad_values

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
pattern = Pattern.random((64, 200_000), 0.999)
values, x, grad_y = torch.randn(pattern.nnz), torch.randn(128, 200_000), torch.randn(128, 64)
small = Pattern.random((64, 64), 0.5)
linear(torch.randn(64, 64), torch.randn(small.nnz), small)  # threads and their stacks are there
with open("/proc/self/status") as lines:
    mapped = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 20),) * 2)
for call in (
    lambda: linear(x, values, pattern),
    lambda: linear(x[:8], values, pattern),
    lambda: linear_grad_values(grad_y, x, pattern),
):
    try:
        call()
    except MemoryError as error:
        print(error)
"""


UPDATE_OUT_OF_MEMORY = """
import resource, sys, torch
from sparsekern.formats import Pattern
from sparsekern.ops import update_topology

torch.set_num_threads(int(sys.argv[1]))
pattern, scores = Pattern.random((64, 200_000), 0.5), torch.randn(64, 200_000)
values = torch.randn(pattern.nnz)
update_topology([values], [pattern], [scores], [1])
with open("/proc/self/status") as lines:
    mapped = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 20),) * 2)
try:
    update_topology([values], [pattern], [scores], [pattern.nnz])
except MemoryError as error:
    print(error)
"""


def run(*command, **environment):
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        # The package that is tested here, also where it is not installed.
        env={**os.environ, "PYTHONPATH": str(Path(sparsekern.__file__).parents[1]), **environment},
    )
    assert result.returncode == 0, result.stderr or f"ended by signal {-result.returncode}"
    return result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("threads", [1, 2])
def test_out_of_memory_is_an_exception(threads):
    """Also where a thread of a team runs out: it must not leave the parallel region by throwing."""
    lines = run("-c", OUT_OF_MEMORY, str(threads)).splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"no memory for \d{7,} bytes of scratch", line) for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_update_of_a_topology_out_of_memory(threads):
    line = run("-c", UPDATE_OUT_OF_MEMORY, str(threads)).strip()
    assert re.fullmatch(r"no memory for \d{7,} bytes of scratch", line)


def test_a_large_layer_never_makes_its_dense_weight():
    """256 MiB dense, 2.6 MiB of values. The reference, which makes one, shows that it would be seen."""
    growth = json.loads(run("-c", PEAK))
    assert growth["reference"] > 256 << 20
    assert growth["cpp"] < 64 << 20
    assert growth["update_topology"] < 64 << 20


@pytest.mark.parametrize("side", ["before", "behind"])
def test_nothing_is_touched_out_of_bounds(side):
    run(str(GUARDED), side)


POISON = """
#include <cstdlib>
#include <cstring>
extern "C" {
void* __libc_malloc(size_t);
void* __libc_memalign(size_t, size_t);
static void* poisoned(void* memory, size_t bytes) { return memory ? memset(memory, 0xff, bytes) : memory; }
void* malloc(size_t bytes) { return poisoned(__libc_malloc(bytes), bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) {
    return poisoned(__libc_memalign(alignment, bytes), bytes);
}
}
"""


def test_no_scratch_memory_is_read_before_it_is_written(tmp_path):
    """All memory that the kernels ask for is full of NaN."""
    source, library = tmp_path / "poison.cpp", tmp_path / "poison.so"
    source.write_text(POISON)
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    run(str(GUARDED), "behind", LD_PRELOAD=str(library))
