"""An update of RigL takes memory of the order of the active weights, not of the dense gradient."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The dense gradient alone would be 256 MiB. The peak is Linux's VmHWM, in KiB: ru_maxrss of a new process
# begins with that of its parent.
SCRIPT = """
import sys
import torch
import sparsekern as sk

torch.set_num_threads(1)
layer = sk.nn.SparseLinear(8192, 8192, bias=False, sparsity=0.98)
model = torch.nn.Sequential(layer)
optimizer = torch.optim.AdamW(model.parameters())
method = getattr(sk, sys.argv[1])(model, optimizer, update_every=3, process_group=None)
x = torch.randn(8, 8192)

def steps(count):
    for _ in range(count):
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()

def peak():
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

steps(2)
before = peak()
steps(1)
assert method.updates == 1
assert method.last_update.grown > 0.2 * layer.pattern.nnz
print(peak() - before)
"""


def peak_of(method):
    """MiB that the peak of the step with the update exceeds that of the steps before."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, method], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return int(run.stdout) / 1024


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_an_update_holds_no_dense_gradient(method):
    # 1.3 million weights: a few vectors of 5 to 10 MiB, and candidates for 30 % of them.
    assert peak_of(method) < 90


def test_the_measurement_sees_a_dense_gradient():
    assert peak_of("RigLInverted") > 200
