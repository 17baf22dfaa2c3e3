"""What the ops' tests share: instruction sets, poisoned outputs, masks of every kind, the bound on errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern import native

# Allowed beside twice the dense op's own error, for sums that the dense op happens to get exactly right; in
# units in the last place of the terms' root sum of squares. bfloat16 is rounded once by both, float64 is the
# oracle itself.
FLOOR = {torch.float32: 4.0, torch.float64: 500.0, torch.bfloat16: 0.05}


@pytest.fixture(params=native.isa_levels())
def isa(request):
    """Each instruction set that this machine runs, in turn."""
    with native.isa(request.param):
        yield request.param


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def poisoned():
    """Uninitialized tensors are full of NaN, so an output that is not written in full shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def threads():
    """Sets the number of threads; the number before comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def make_mask():
    """A mask by its kind. Its rows and columns are those of the weight's matrix, of any shape."""

    def make(kind, shape, tile_size=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(shape, generator=generator)
        mask = {
            "all": uniform >= 0,
            "none": uniform < 0,
            "half": uniform < 0.5,
            "tenth": uniform < 0.1,
            "hundredth": uniform < 0.01,
            "one element": uniform == uniform.max(),
        }.get(kind)
        if kind == "empty rows":
            mask = uniform < 0.5
            mask[::3] = False
        elif kind == "empty tiles":
            mask = uniform < 0.5
            for row in range(0, shape[0], tile_size):
                mask[row : row + tile_size, row % (2 * tile_size) :: 2 * tile_size] = False
                mask[row : row + tile_size, : shape[1] // 2] = False
        return mask

    return make


@pytest.fixture
def pack_two_four():
    """Values, metadata and mask of a weight whose two largest magnitudes of each group of four are kept."""

    def pack(weight):
        rows, columns = weight.shape
        size = weight.double().abs().unflatten(1, (-1, 4))
        kept = size.topk(2, -1).indices.sort(-1).values
        mask = torch.zeros_like(size, dtype=torch.bool).scatter_(-1, kept, True).view(rows, columns)
        nibbles = torch.zeros(rows, (columns + 7) // 8 * 2, dtype=torch.uint8)
        nibbles[:, : columns // 4] = kept[..., 0] | kept[..., 1] << 2
        metadata = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
        return weight[mask].view(rows, columns // 2), metadata, mask

    return pack


@pytest.fixture
def assert_accurate():
    """At most twice the error of the dense op in the same dtype; both are measured against float64.

    `dense_results(inputs)` is what `got` should be; with squared inputs it gives the sums of squared terms.
    """

    def check(got, inputs, dense_results, names):
        dense = dense_results(inputs)
        exact = dense_results([tensor.double() for tensor in inputs])
        squares = dense_results([tensor.double().square() for tensor in inputs])
        for result, peer, truth, square, name in zip(got, dense, exact, squares, names, strict=True):
            assert result.shape == truth.shape, name
            assert result.dtype == peer.dtype, name
            assert torch.isfinite(result).all(), name
            if result.numel() == 0:
                continue
            error, peer_error = ((tensor.double() - truth).abs().max().item() for tensor in (result, peer))
            floor = FLOOR[result.dtype] * torch.finfo(result.dtype).eps * square.max().sqrt().item()
            assert error <= 2 * peer_error + floor, f"{name}: {error:.3g}, dense op {peer_error:.3g}"

    return check


# Each case in a process of its own: one that crashes or hangs is one failure, not the end of the tests.
RUN_CASES = """
import json, os, signal
outcomes = {}
for name, case in CASES.items():
    read, write = os.pipe()
    if os.fork() == 0:
        signal.alarm(60)
        try:
            case()
            outcome = "returned"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(write, outcome.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        outcome = pipe.read()
    _, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    outcomes[name] = outcome or ended
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="session")
def run_isolated():
    """Runs the functions in the dict CASES of some source; gives "returned" or the error of each."""

    def run(source):
        command = [sys.executable, "-c", source + RUN_CASES]
        # The package that is tested here, also where it is not installed.
        environment = {**os.environ, "PYTHONPATH": str(Path(sparsekern.__file__).parents[1])}
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run
