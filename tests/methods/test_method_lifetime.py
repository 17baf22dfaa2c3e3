"""From attaching a method to detaching it: layers that stop to train meanwhile, and what is left behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import sparsekern as sk


@pytest.mark.parametrize("grow_gradient", ["batch", "holdout"])
def test_updates_leave_nothing_behind(grow_gradient, network, loss_on, train):
    def hooks():
        gc.collect()
        return sum(type(found) is RemovableHandle for found in gc.get_objects())

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keywords = {"grow_gradient": grow_gradient}
    if grow_gradient == "holdout":
        keywords["holdout"] = lambda: loss_on(99)(model)
    method = sk.RigL(model, optimizer, update_every=4, **keywords)
    train(model, optimizer, 5)
    before = hooks()
    train(model, optimizer, 12, first=5)
    assert method.updates == 4
    assert hooks() == before


def test_a_holdout_batch_is_let_go_of_and_may_be_written_to():
    layer = sk.nn.SparseLinear(20, 12, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = torch.randn(3, 20)

    def holdout():
        batch = x.clone()
        seen.append(weakref.ref(batch))
        return layer(batch).square().sum() if len(seen) == 1 else layer(x).square().sum()

    seen = []
    keywords = {"grow_gradient": "holdout", "holdout": holdout, "nonfinite": "raise"}
    method = sk.RigL(nn.Sequential(layer), optimizer, update_every=1, **keywords)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(3, 20)).sum().backward()
        optimizer.step()
        assert seen[0]() is None
        x.normal_()
    assert method.updates == 3
