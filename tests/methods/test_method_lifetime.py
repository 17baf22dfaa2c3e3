"""From attaching a method to detaching it: layers that stop to train meanwhile, and what is left behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
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


@pytest.mark.parametrize("method", ["SET", "RigL", "RigLInverted", "SNFS", "holdout"])
def test_a_layer_that_is_frozen_for_a_while_stays_as_it_is(method, network, loss_on, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if method == "holdout":
        keywords = {"grow_gradient": "holdout", "holdout": lambda: loss_on(99)(model)}
        attached = sk.RigL(model, optimizer, update_every=2, **keywords)
    else:
        attached = getattr(sk, method)(model, optimizer, update_every=2)
    train(model, optimizer, 2)
    pattern, values = model[5].pattern, model[5].values.detach().clone()
    model[5].values.requires_grad_(False)
    train(model, optimizer, 4, first=2)
    assert model[5].pattern == pattern
    assert torch.equal(model[5].values, values)
    assert attached.last_update.layers["5"].dropped == 0
    assert attached.last_update.grown > 0
    model[5].values.requires_grad_(True)
    train(model, optimizer, 4, first=6)
    assert attached.updates == 5
    assert model[5].pattern != pattern


@pytest.mark.parametrize("method", ["SET", "RigL", "RigLInverted", "SNFS"])
def test_on_update_may_detach(method, network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keywords = {"update_every": 1, "on_update": lambda statistics: attached.detach()}
    attached = getattr(sk, method)(model, optimizer, exclude=["0"], **keywords)
    # Another one on the same optimizer, whose hook comes next.
    other = sk.RigL(model, optimizer, update_every=2, exclude=["2", "5", "7"])
    train(model, optimizer, 4)
    assert (attached.steps, attached.updates, other.steps, other.updates) == (1, 1, 4, 2)
    assert not model[5].values._post_accumulate_grad_hooks
    other.detach()
    attached.load_state_dict(attached.state_dict())
    assert not model[5].values._post_accumulate_grad_hooks
    sk.RigL(model, optimizer, update_every=2)
    train(model, optimizer, 2)


def test_gradients_withheld_from_a_step_that_failed_do_not_come_back(network, loss_on, train):
    def fail(*_):
        raise KeyboardInterrupt

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=2, update="replaces_step")
    train(model, optimizer, 1)
    handle = optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, 1, first=1)
    handle.remove()
    optimizer.zero_grad()
    loss_on(2)(model).backward()
    expected = model[0].bias.grad.clone()
    optimizer.step()
    assert method.updates == 1
    assert torch.equal(model[0].bias.grad, expected)


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("method", ["SET", "RigL", "RigLInverted", "SNFS"])
def test_a_model_may_change_its_dtype(method, storage, network, loss_on):
    model = network(storage, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    attached = getattr(sk, method)(model, optimizer, update_every=2)
    for step, dtype in enumerate([torch.float32, torch.float64, torch.float64, torch.bfloat16]):
        model.to(dtype)
        optimizer.zero_grad()
        loss_on(step, dtype=dtype)(model).backward()
        optimizer.step()
    assert attached.updates == 2
    for layer in attached.layers:
        assert layer.parameter.dtype == torch.bfloat16
        if storage == "masked":
            assert not layer.parameter[~layer.layer.mask].any()


def test_a_method_may_be_collected_while_another_optimizer_steps(network):
    collecting = register_optimizer_step_pre_hook(lambda *arguments: gc.collect() and None)
    gc.disable()
    try:
        model = network()
        sk.SET(model, torch.optim.SGD(model.parameters(), 0.1))
        layer = nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        before = layer.weight.detach().clone()
        torch.optim.SGD(layer.parameters(), 0.1).step()
        assert not torch.equal(layer.weight, before)
    finally:
        gc.enable()
        collecting.remove()


def test_gradients_that_are_only_asked_for_are_not_collected(network, loss_on, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=1)
    train(model, optimizer, 1)
    for _ in range(5):
        torch.autograd.grad(loss_on(0)(model), list(model.parameters()))
        assert all(not layer.watch._pending and not layer.watch.kept for layer in method.layers)
    train(model, optimizer, 1, first=1)
    assert [layer.passes for layer in method.layers] == [1] * len(method.layers)


def test_a_holdout_loss_without_some_layer_leaves_that_one_alone(network, loss_on, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def holdout():
        x = torch.ones(3, 48, dtype=torch.float64)
        return model[5:](x).square().sum()

    method = sk.RigL(model, optimizer, update_every=1, grow_gradient="holdout", holdout=holdout)
    before = {layer.name: layer.pattern for layer in method.layers}
    train(model, optimizer, 1)
    changes = method.last_update.layers
    assert [changes[name].dropped > 0 for name in before] == [False, False, True, True]
    assert [layer.pattern == before[layer.name] for layer in method.layers] == [True, True, False, False]
