"""Gradual pruning that is resumed, interrupted, given steps that are none, or wrong arguments."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sparsekern as sk
from sparsekern.nn import SparseLayer

SPAN = {"begin": 2, "end": 7, "update_every": 2}
STEPS = 10


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def make(network, seed=0, **options):
    model = network("masked", seed=seed, sparsity=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, sk.GradualPruning(model, optimizer, **{"sparsity": 0.9, **SPAN, **options})


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(mine, theirs, mine_optimizer, theirs_optimizer):
    for a, b in zip(mine.modules(), theirs.modules(), strict=True):
        if isinstance(a, SparseLayer):
            assert a.storage == b.storage
            assert a.pattern == b.pattern
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        ours, others = mine_optimizer.state[a], theirs_optimizer.state[b]
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[key], others[key]) for key in ours)


@pytest.mark.parametrize("explicit", [False, True], ids=["in the optimizer's", "its own"])
@pytest.mark.parametrize("compact", [False, True], ids=["masked", "compact"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6], ids=lambda stop: f"after step {stop}")
def test_a_resumed_run_equals_one_that_was_never_stopped(stop, compact, explicit, network, train):
    whole, optimizer, method = make(network, compact=compact)
    train(whole, optimizer, STEPS)
    first, first_optimizer, first_method = make(network, compact=compact)
    train(first, first_optimizer, stop)
    optimizer_state = first_optimizer.state_dict()
    if explicit:
        optimizer_state.pop("sparsekern")
    state = through_a_file([first.state_dict(), optimizer_state, first_method.state_dict()])

    resumed, resumed_optimizer, resumed_method = make(network, seed=5, compact=compact)
    resumed.load_state_dict(state[0])
    if explicit:
        with pytest.warns(UserWarning, match="none of GradualPruning"):
            resumed_optimizer.load_state_dict(state[1])
        resumed_method.load_state_dict(state[2])
    else:
        resumed_optimizer.load_state_dict(state[1])
    train(resumed, resumed_optimizer, STEPS - stop, first=stop)
    assert_same(resumed, whole, resumed_optimizer, optimizer)
    # Steps are counted until the layers become compact.
    assert resumed_method.steps == method.steps == (7 if compact else STEPS)
    assert resumed_method.updates == method.updates == 4


@pytest.mark.parametrize("stop", [7, 9])
def test_after_the_last_update_a_masked_run_resumes_as_before(stop, network, train):
    whole, optimizer, _ = make(network, compact=False)
    train(whole, optimizer, STEPS)
    first, first_optimizer, _ = make(network, compact=False)
    train(first, first_optimizer, stop)
    state = through_a_file([first.state_dict(), first_optimizer.state_dict()])
    resumed, resumed_optimizer, method = make(network, seed=5, compact=False)
    resumed.load_state_dict(state[0])
    resumed_optimizer.load_state_dict(state[1])
    assert method.next_update is None
    train(resumed, resumed_optimizer, STEPS - stop, first=stop)
    assert_same(resumed, whole, resumed_optimizer, optimizer)


@pytest.mark.parametrize("stop", [7, 9])
def test_after_the_last_update_a_compact_run_resumes_without_the_method(stop, network, train):
    whole, optimizer, _ = make(network)
    train(whole, optimizer, STEPS)
    first, first_optimizer, _ = make(network)
    train(first, first_optimizer, stop)
    state = through_a_file([first.state_dict(), first_optimizer.state_dict()])
    assert "sparsekern" not in state[1]

    resumed = network("compact", seed=5, sparsity=0)
    resumed.load_state_dict(state[0], assign=True)
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), 1e-2)
    resumed_optimizer.load_state_dict(state[1])
    train(resumed, resumed_optimizer, STEPS - stop, first=stop)
    assert_same(resumed, whole, resumed_optimizer, optimizer)

    masked, *_ = make(network)
    with pytest.raises(RuntimeError, match=r"got a layer saved with storage='compact': load it into one"):
        masked.load_state_dict(state[0])


def test_a_method_made_for_a_loaded_model_goes_on_with_its_schedule(network, train):
    whole, optimizer, _ = make(network)
    train(whole, optimizer, STEPS)
    first, first_optimizer, _ = make(network)
    train(first, first_optimizer, 5)
    resumed = network("masked", sparsity=0)
    resumed.load_state_dict(first.state_dict())
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), 1e-2)
    sk.GradualPruning(resumed, resumed_optimizer, sparsity=0.9, **SPAN)
    resumed_optimizer.load_state_dict(first_optimizer.state_dict())
    train(resumed, resumed_optimizer, STEPS - 5, first=5)
    assert_same(resumed, whole, resumed_optimizer, optimizer)


def changed(state, layer, **entries):
    return {**state, "layers": {**state["layers"], layer: {**state["layers"][layer], **entries}}}


WRONG = {
    "no state": (lambda s: [], "state must be that of a GradualPruning, got [] (list)"),
    "a key too many": (lambda s: {**s, "more": 1}, "state must have the keys method, version,"),
    "other method": (lambda s: {**s, "method": "SET"}, "state must have method 'GradualPruning', got 'SET'"),
    "other version": (lambda s: {**s, "version": 9}, "state must have version 1, got 9"),
    "other options": (
        lambda s: {**s, "options": {**s["options"], "end": 8}}, "state must be of a method with end=",
    ),
    "steps": (lambda s: {**s, "steps": "4"}, "state['steps'] must be an integer of at least 0, got '4'"),
    "steps -1": (lambda s: {**s, "steps": -1}, "state['steps'] must be an integer of at least 0, got -1"),
    "updates true": (lambda s: {**s, "updates": True}, "state['updates'] must be an integer of at least 0"),
    "next update": (
        lambda s: {**s, "next_update": -2}, "state['next_update'] must be an integer of at least -1, got -2",
    ),
    "no layers": (lambda s: {**s, "layers": 3}, "state['layers'] must be a dict, got 3 (int)"),
    "other layers": (
        lambda s: {**s, "layers": {"fc": s["layers"]["0"]}}, "state must be of a model with the sparse layer",
    ),
    "other shape": (
        lambda s: changed(s, "5", shape=[3, 3]), "state of layer '5' must have shape [33, 48], got [3, 3]",
    ),
    "negative count": (
        lambda s: changed(s, "5", initial=-1),
        "state of layer '5' must have initial from 0 to 1,584, got -1",
    ),
    "large count": (
        lambda s: changed(s, "5", initial=1585),
        "state of layer '5' must have initial from 0 to 1,584, got 1,585",
    ),
    "counts below the last ones": (
        lambda s: {**s, "layers": {n: {**layer, "initial": 1} for n, layer in s["layers"].items()}},
        "sparsity must be at least what the layers have already",
    ),
    "no count": (
        lambda s: changed(s, "5", initial=1.5),
        "state of layer '5' must have initial of type int, got type float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_another_state_is_refused_and_nothing_changes(wrong, network, train):
    model, optimizer, method = make(network)
    train(model, optimizer, 4)
    before = copy.deepcopy(method.state_dict())
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        method.load_state_dict(change(method.state_dict()))
    assert method.state_dict() == before


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "sgd_fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam_fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
}
# One before the first update is due, two when one would come, one after the last.
OVERFLOWS = {1, 5, 6, 11}


def small(optimizer, compact):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(19, 23), nn.Tanh(), nn.Linear(23, 6)).double()
    sk.sparsify_(model, sparsity=0, storage="masked", init="keep")
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    updates = []
    options = {"sparsity": 0.8, "begin": 3, "end": 8, "update_every": 2, "on_update": updates.append}
    sk.GradualPruning(model, optimizer, compact=compact, **options)
    return model, optimizer, updates


def loss(model, step):
    generator = torch.Generator().manual_seed(1000 + step)
    return model(torch.randn(8, 19, generator=generator, dtype=torch.float64)).square().mean()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_a_grad_scaler_leaves_out_do_not_count(optimizer, compact):
    model, scaled, updates = small(optimizer, compact)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(16):
        scaled.zero_grad()
        scaler.scale(loss(model, step)).backward()
        if step in OVERFLOWS:
            model[0].stored_weight.grad.fill_(torch.nan)
        scaler.step(scaled)
        scaler.update()
    expected, plain, others = small(optimizer, compact)
    for step in sorted(set(range(16)) - OVERFLOWS):
        plain.zero_grad()
        loss(expected, step).backward()
        plain.step()
    assert [update.step for update in updates] == [3, 5, 7, 8]
    assert updates == others
    for name, layer in sparse_layers(model).items():
        assert layer.pattern == expected.get_submodule(name).pattern
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_stop_it_before_anything_changes(value, scope, network, train):
    model, optimizer, method = make(network, scope=scope)
    train(model, optimizer, 4)
    row, column = model[5].mask.nonzero()[3].tolist()
    # Without gradients a step leaves all as it is, and counts.
    optimizer.zero_grad()
    with torch.no_grad():
        kept = model[5].weight[row, column].clone()
        model[5].weight[row, column] = value
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer.step()
    with pytest.raises(FloatingPointError, match="the weight of layer '5' is not finite: it cannot be"):
        optimizer.step()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0, equal_nan=True)
    assert (method.steps, method.updates, method.next_update) == (6, 2, 6)
    with torch.no_grad():
        model[5].weight[row, column] = kept
    optimizer.step()
    assert (method.steps, method.updates, method.next_update) == (7, 3, None)


def test_detached_it_does_nothing_any_more(network, train):
    model, optimizer, method = make(network)
    train(model, optimizer, 4)
    method.detach()
    before = {name: layer.pattern for name, layer in sparse_layers(model).items()}
    train(model, optimizer, 6, first=4)
    assert {name: layer.pattern for name, layer in sparse_layers(model).items()} == before
    assert {layer.storage for layer in sparse_layers(model).values()} == {"masked"}
    assert method.steps == 4
    assert "sparsekern" not in optimizer.state_dict()
    sk.RigL(model, optimizer)


def test_on_update_may_detach(network, train):
    model, optimizer, _ = make(network)
    seen = []

    def stop(update):
        seen.append(update.step)
        method.detach()

    _.detach()
    method = sk.GradualPruning(model, optimizer, sparsity=0.9, begin=1, end=3, on_update=stop)
    train(model, optimizer, 4)
    assert seen == [1]
    assert {layer.storage for layer in sparse_layers(model).values()} == {"masked"}


def test_another_method_on_the_same_layers_is_refused(network):
    model, optimizer, _ = make(network)
    message = "layer '0' must not be moved by two methods, got one that GradualPruning moves"
    for method in (sk.RigL, lambda *a: sk.GradualPruning(*a, sparsity=0.5, begin=1, end=2)):
        with pytest.raises(ValueError, match=re.escape(message)):
            method(model, optimizer)


def test_a_parameter_made_anew_is_noticed(network, train):
    model, optimizer, _ = make(network)
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"layer '0' has another Parameter than the one in the optimizer"):
        train(model, optimizer, 2)


ARGUMENTS = {
    "sparsity 0": ({"sparsity": 0}, ValueError, "sparsity must be above 0, got 0"),
    "sparsity 1": ({"sparsity": 1}, ValueError, "sparsity must be"),
    "sparsity text": ({"sparsity": "high"}, TypeError, "sparsity must be"),
    "sparsity nan": ({"sparsity": float("nan")}, ValueError, "sparsity must be"),
    "begin -1": ({"begin": -1}, ValueError, "begin must be at least 0, got -1"),
    "begin 1.5": ({"begin": 1.5}, TypeError, "begin must be an integer, got 1.5 (float)"),
    "begin at end": ({"begin": 7}, ValueError, "end must be above begin, 7, got 7"),
    "end true": ({"end": True}, TypeError, "end must be an integer, got True (bool)"),
    "update_every 0": ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
    "scope": ({"scope": "model"}, ValueError, "scope must be 'global' or 'layer', got 'model'"),
    "distribution": ({"distribution": "even"}, ValueError, "distribution must be 'uniform' or 'er' or 'erk'"),
    "global erk": (
        {"scope": "global", "distribution": "erk"}, ValueError,
        "distribution must be left out unless scope='layer', got 'erk'",
    ),
    "compact": ({"compact": 1}, TypeError, "compact must be True or False, got 1 (int)"),
    "on_update": ({"on_update": 3}, TypeError, "on_update must be a function of the update's statistics"),
    "exclude": ({"exclude": ["fc9"]}, ValueError, "exclude must be names or glob patterns of modules"),
    "all excluded": ({"exclude": ["*"]}, ValueError, "model must have a sparse layer to move"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_are_refused_and_nothing_is_attached(case, network):
    options, error, message = ARGUMENTS[case]
    model = network("masked", sparsity=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(error, match=re.escape(message)):
        sk.GradualPruning(model, optimizer, **{"sparsity": 0.9, **SPAN, **options})
    assert not optimizer._optimizer_step_post_hooks
    sk.RigL(model, optimizer)


def refused(model, error, message, make_optimizer=torch.optim.SGD, **options):
    with pytest.raises(error, match=re.escape(message)):
        sk.GradualPruning(model, make_optimizer(model.parameters()), **{"sparsity": 0.9, **SPAN, **options})


def test_models_and_optimizers_that_cannot_be_pruned_are_refused(network):
    model = network("compact", sparsity=0)
    refused(model, ValueError, "model must have masked weights to prune, from sparsify_(storage='masked')")
    model = network("masked", sparsity=0)
    refused(model, TypeError, "optimizer must not be Adafactor for layer '0'", torch.optim.Adafactor)
    message = "compact must be False for a model inside of AveragedModel"
    refused(AveragedModel(model), ValueError, message)
    model[5].weight.full_tensor = None
    refused(model, ValueError, "model must not be sharded by FSDP2, got layer '5' that is")


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_networks_that_are_sparser_already_are_refused(scope, network):
    message = "sparsity must be at least what the layers have already, 0.95"
    refused(network("masked", sparsity=0.95), ValueError, message, scope=scope)


@pytest.mark.parametrize("compact", [False, True], ids=["masked", "compact"])
def test_an_error_in_on_update_does_not_keep_the_network_dense(compact, network, train):
    model = network("masked", sparsity=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def fail(update):
        if update.step == SPAN["end"]:
            raise KeyboardInterrupt

    sk.GradualPruning(model, optimizer, sparsity=0.9, compact=compact, on_update=fail, **SPAN)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, 12)
    assert {layer.storage for layer in sparse_layers(model).values()} == {"compact" if compact else "masked"}
    train(model, optimizer, 2)
