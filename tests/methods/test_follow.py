"""Copies of a model, such as an EMA, move along with its patterns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsekern as sk
from sparsekern.nn import SparseLayer


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_an_average_is_that_of_the_dense_weights(storage, network, train):
    model = network(storage)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    method.follow(average)
    dense = None
    for step in range(7):
        train(model, optimizer, 1, first=step)
        average.update_parameters(model)
        now = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
        # The dense average, of which only what is active is ever kept.
        dense = now if dense is None else {n: 0.5 * dense[n] * (w != 0) + 0.5 * w for n, w in now.items()}
        for name, layer in sparse_layers(average.module).items():
            assert layer.pattern == sparse_layers(model)[name].pattern
            torch.testing.assert_close(layer.to_dense().detach(), dense[name])
    assert method.updates == 3


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_a_copy_made_before_the_method_follows(storage):
    """A method stores empty tiles too, so that sizes never change: the copy's pattern has fewer tiles."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(70, 40)).double()
    mask = torch.rand(40, 70) < 0.2
    mask[8:24] = False
    sk.sparsify_(model, masks={"0": mask}, storage=storage)
    first, dense = copy.deepcopy(model), model[0].to_dense().detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    method = sk.SET(model, optimizer, update_every=1)
    pattern = model[0].pattern
    assert (first[0].pattern.num_tiles, pattern.num_tiles) == (27, 45)
    assert torch.equal(pattern.to_mask(), mask)
    assert torch.equal(model[0].to_dense(), dense)
    method.follow(first)
    model(torch.randn(3, 70).double()).sum().backward()
    optimizer.step()
    assert method.last_update.grown > 0
    assert first[0].pattern == model[0].pattern != pattern
    assert model[0].pattern.data.shape == pattern.data.shape
    assert torch.equal(first[0].to_dense(), model[0].to_dense())
    sk.sparsify_(static := torch.nn.Sequential(torch.nn.Linear(70, 40)), masks={"0": mask})
    sk.Static(static, torch.optim.SGD(static.parameters(), 0.1))
    assert static[0].pattern.num_tiles == 27


def test_only_a_copy_on_the_same_patterns_can_follow(network):
    model = network()
    method = sk.RigL(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
        method.follow(3)
    with pytest.raises(
        ValueError, match=r"model must be a copy, got one that shares the weight of layer '0'"
    ):
        method.follow(model)
    with pytest.raises(ValueError, match=r"model must have layer '0' on the pattern it is to follow"):
        method.follow(network(seed=1))
    with pytest.raises(ValueError, match=r"model must have a sparse layer '0' with storage='compact'"):
        method.follow(network("masked"))
    dense = copy.deepcopy(model)
    sk.densify_(dense)
    with pytest.raises(ValueError, match=r"model must have a sparse layer '0' .* got Conv2d"):
        method.follow(dense)
    assert not any(layer.followers for layer in method.layers)
