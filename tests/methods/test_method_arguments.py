"""Bad input to the methods: one clear error each, before anything is attached."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import sparsekern as sk

OPTIONS = {
    "update_every 0": ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
    "update_every 1.5": (
        {"update_every": 1.5}, TypeError,
        "update_every must be an integer, got 1.5 (float)",
    ),
    "drop_fraction 0": (
        {"drop_fraction": 0}, ValueError,
        "drop_fraction must be a number above 0 and at most 1, got 0",
    ),
    "drop_fraction 1.1": (
        {"drop_fraction": 1.1}, ValueError,
        "drop_fraction must be a number above 0 and at most 1, got 1.1",
    ),
    "drop_fraction text": (
        {"drop_fraction": "0.3"}, TypeError,
        "drop_fraction must be a number above 0 and at most 1, got '0.3' (str)",
    ),
    "drop_fraction nan": (
        {"drop_fraction": float("nan")}, ValueError,
        "drop_fraction must be a number above 0 and at most 1, got nan",
    ),
    "stop_at first": (
        {"stop_at": 100}, ValueError, "stop_at must be beyond the first update, after step 100, got 100",
    ),
    "stop_at text": ({"stop_at": "end"}, TypeError, "stop_at must be an integer, got 'end' (str)"),
    "cosine": (
        {"schedule": "cosine"}, ValueError, "stop_at must be given with schedule='cosine', which falls to 0",
    ),
    "schedule": (
        {"schedule": "linear"}, ValueError,
        "schedule must be 'cosine' or 'constant' or 'lr', got 'linear'",
    ),
    "update": (
        {"update": "before"}, ValueError,
        "update must be 'after_step' or 'replaces_step', got 'before'",
    ),
    "regrow_dropped": (
        {"regrow_dropped": 1}, TypeError,
        "regrow_dropped must be True or False, got 1 (int)",
    ),
    "grow_gradient": (
        {"grow_gradient": "test"}, ValueError,
        "grow_gradient must be 'batch' or 'holdout'",
    ),
    "no holdout": (
        {"grow_gradient": "holdout"}, TypeError,
        "holdout must be a function that returns the loss of a fixed batch, for grow_gradient='holdout'",
    ),
    "needless holdout": (
        {"holdout": lambda: None}, ValueError,
        "holdout must be left out unless grow_gradient='holdout', got <function",
    ),
    "holdout of another type": (
        {"holdout": 3}, ValueError,
        "holdout must be left out unless grow_gradient='holdout', got 3 (int)",
    ),
    "new_values": (
        {"new_values": "one"}, ValueError,
        "new_values must be 'zero' or 'per_neuron', got 'one'",
    ),
    "nonfinite": (
        {"nonfinite": "ignore"}, ValueError,
        "nonfinite must be 'skip' or 'raise', got 'ignore'",
    ),
    "on_update": (
        {"on_update": 3}, TypeError,
        "on_update must be a function of the update's statistics, got 3",
    ),
    "exclude": (
        {"exclude": ["fc9"]}, ValueError,
        "exclude must be names or glob patterns of modules, got 'fc9'",
    ),
    "seed": ({"seed": -1}, ValueError, "seed must be an integer from 0 to 2**63 - 1, got -1 (int)"),
    "process_group": (
        {"process_group": "all"}, TypeError,
        "process_group must be 'world', None or a ProcessGroup, got 'all'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["Static", "SET", "RigL", "RigLInverted", "SNFS"])
@pytest.mark.parametrize("case", OPTIONS)
def test_options_out_of_range_are_refused(case, method, network):
    options, error, message = OPTIONS[case]
    if method == "SNFS" and "grow_gradient" in options:
        error, message = ValueError, "grow_gradient must be 'batch' for SNFS, which follows every step's"
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(error, match=re.escape(message)):
        getattr(sk, method)(model, optimizer, **options)
    assert not optimizer._optimizer_step_post_hooks
    sk.RigL(model, optimizer)  # nothing was claimed


@pytest.mark.parametrize("momentum", [-0.1, 1.0, "0.9"])
def test_snfs_refuses_a_momentum_out_of_range(momentum, network):
    model = network()
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\), got"):
        sk.SNFS(model, torch.optim.SGD(model.parameters(), 0.1), momentum=momentum)


def test_what_is_no_model_or_optimizer_is_refused(network):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
        sk.RigL(3, optimizer)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got \[SGD"):
        sk.RigL(model, [optimizer])


def test_a_model_without_sparse_layers_is_refused(network):
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"model must have a sparse layer to move, got Sequential with none"):
        sk.RigL(model, torch.optim.SGD(model.parameters(), 0.1))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"got Sequential with 4 that are excluded or frozen"):
        sk.RigL(model, optimizer, exclude=["*"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"got Sequential with 4 that are excluded or frozen"):
        sk.RigL(model, optimizer)


def test_an_optimizer_without_a_weight_is_refused(network):
    model = network()
    optimizer = torch.optim.Adam(list(model.parameters())[2:], 0.1)
    with pytest.raises(ValueError, match=r"optimizer must hold the weights .* got Adam without that of '0'"):
        sk.RigL(model, optimizer)
    method = sk.RigL(model, optimizer, exclude=["0"])
    assert [layer.name for layer in method.layers] == ["2", "5", "7"]


def test_a_layer_has_one_method(network):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    sk.RigL(model, optimizer)
    with pytest.raises(
        ValueError, match=r"layer '0' must not be moved by two methods, got one that RigL moves"
    ):
        sk.SET(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_weight_in_two_optimizers_is_refused_before_the_second_one_steps(network, loss_on):
    model = network()
    adam = torch.optim.Adam(model.parameters(), 0.1)
    sk.RigL(model, adam)
    other = torch.optim.SGD(model[2].parameters(), 0.1)
    loss_on(0)(model).backward()
    before = model[2].values.detach().clone()
    with pytest.raises(ValueError, match=r"the weight of layer '2', which RigL moves with Adam; got SGD"):
        other.step()
    assert torch.equal(model[2].values, before)
    elsewhere = nn.Linear(2, 2)
    elsewhere(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(elsewhere.parameters(), 0.1).step()


def test_an_optimizer_around_the_method_s_own_may_step(network, loss_on):
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner
            self.param_groups = inner.param_groups

        def step(self, closure=None):
            return self.inner.step(closure)

    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = Around(inner)
    method = sk.RigL(model, inner, update_every=2)
    for step in range(2):
        optimizer.zero_grad()
        loss_on(step)(model).backward()
        optimizer.step()
    assert (method.steps, method.updates) == (2, 1)


def test_a_method_ends_with_its_optimizer(network, loss_on):
    model = network()
    sk.RigL(model, torch.optim.SGD(model.parameters(), 0.1), update_every=1)
    hooks = len(_global_optimizer_pre_hooks)
    sk.SET(model, optimizer := torch.optim.SGD(model.parameters(), 0.1), update_every=1)  # at once
    assert len(_global_optimizer_pre_hooks) == hooks
    loss_on(0)(model).backward()
    optimizer.step()


@pytest.mark.parametrize("method", ["SET", "RigL", "RigLInverted", "SNFS"])
def test_nothing_is_left_of_a_model_that_is_gone(method, network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    getattr(sk, method)(model, optimizer, update_every=1)
    train(model, optimizer, 2)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, optimizer
    gc.collect()
    assert [weight() for weight in weights] == [None] * len(weights)


@pytest.mark.parametrize(
    "returned",
    [None, 1.0, torch.ones(2, requires_grad=True), torch.ones(())],
    ids=["None", "float", "vector", "constant"],
)
def test_a_holdout_that_returns_no_loss_is_refused(returned, network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sk.RigL(model, optimizer, update_every=1, grow_gradient="holdout", holdout=lambda: returned)
    before = model[0].pattern
    with pytest.raises(
        TypeError, match=r"holdout must return a loss, a scalar that requires a gradient, got"
    ):
        train(model, optimizer, 1)
    assert model[0].pattern == before


def test_factored_and_listed_optimizer_states_are_refused_by_name(network, loss_on, train):
    model = network("masked")
    with pytest.raises(
        TypeError, match=r"optimizer must not be Adafactor for layer '0' with storage='masked'"
    ):
        sk.RigL(model, torch.optim.Adafactor(model.parameters()))
    model = network()
    with pytest.raises(
        TypeError, match=r"layer '0'; got LBFGS with 'prev_flat_grad' of all weights together"
    ):
        sk.RigL(model, torch.optim.LBFGS(model.parameters()))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sk.RigL(model, optimizer, update_every=2)
    train(model, optimizer, 1)
    weight, before = model[0].values, model[0].pattern
    for codes, what in (
        (weight.detach().byte(), r"dtype torch\.uint8"),
        ([weight.detach()], "a list of tensors"),
        ({"mean": weight.detach()}, "a dict of tensors"),
    ):
        optimizer.state[weight]["codes"] = codes
        with pytest.raises(TypeError, match=rf"layer '0'; got SGD with 'codes' of {what}"):
            train(model, optimizer, 1)
        assert model[0].pattern == before


def test_inputs_written_to_before_the_step_are_noticed():
    layer = sk.nn.SparseLinear(20, 12, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sk.RigLInverted(nn.Sequential(layer), optimizer, update_every=1)
    x = torch.randn(3, 20)
    layer(x).sum().backward()
    x.zero_()
    with pytest.raises(RuntimeError, match=r"the input of a sparse layer was written to between"):
        optimizer.step()
