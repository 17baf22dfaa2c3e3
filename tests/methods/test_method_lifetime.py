"""From attaching a method to detaching it: layers that stop to train meanwhile, and what is left behind."""

from __future__ import annotations

import gc

import pytest
import torch
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
