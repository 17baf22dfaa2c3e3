"""Bytes of tensors that are alive, counted as ops return them."""

from __future__ import annotations

import torch
from torch import nn

import sparsekern as sk
from sparsekern.bench.live_bytes import LiveBytes, measure_bytes


def test_storages_count_from_their_making_to_their_end():
    before = torch.zeros(100)
    with LiveBytes() as counted:
        first = torch.zeros(10)
        assert (counted.live, counted.peak) == (40, 40)
        second = first + 1
        view = second[2:]
        assert counted.live == 80
        del second
        assert counted.live == 80
        del view
        assert counted.live == 40
        before.add_(1)
        before[3:].mul_(2)
        assert (counted.live, counted.peak) == (40, 80)
    del first
    assert (counted.live, counted.peak) == (0, 80)


def test_what_the_backward_pass_keeps_is_alive():
    x = torch.ones(50, requires_grad=True)
    with LiveBytes() as counted:
        y = x.exp().exp()
        # Each result is kept for the gradient.
        assert counted.live == 400
        y.sum().backward()
        assert counted.peak >= 600
        del y
    assert counted.live == 200
    assert x.grad is not None


def test_a_step_of_a_sparse_layer():
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    sk.sparsify_(model, 0.75)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(16, 64)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(x).sum().backward()
        optimizer.step()

    step()
    found = measure_bytes(model, optimizer, step, torch.device("cpu"))
    nnz = 512
    assert (found.weights, found.gradients, found.optimizer) == (4 * nnz, 4 * nnz, 4 * nnz)
    assert found.pattern == model[0].pattern.nbytes
    assert found.held == 3 * 4 * nnz + found.pattern
    # The result and its gradient, which is one number expanded, and the sum.
    least = found.weights + found.optimizer + found.pattern + 4 * nnz
    assert least <= found.peak <= least + 4 * 16 * 32 * 2 + 64
