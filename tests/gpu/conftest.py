"""The device that tests run on: a GPU where there is one, and, small, the CPU, which proves the tests."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[pytest.param("cuda", marks=NEEDS_GPU)])
def cuda(request) -> torch.device:
    """For what only a GPU has: streams, graphs, much memory."""
    return torch.device(request.param)
