"""From masked to compact weights in the middle of training: every number moves along, bit for bit."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import compact_
from sparsekern.nn import SparseLayer, SparseLinear

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def grouped(model):
    """Two groups, in an order that is not the model's."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": [*weights[2:], *others], "weight_decay": 0.0}, {"params": weights[:2], "lr": 0.01}]


def trained(network, train, make_optimizer, steps=3):
    model = network("masked")
    optimizer = make_optimizer(grouped(model))
    train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_gradients_and_states_move_bit_for_bit(optimizer, network, train):
    model, optimizer = trained(network, train, OPTIMIZERS[optimizer])
    model[2].weight.grad = None
    before, theirs = copy.deepcopy((model, optimizer))
    for name, layer in sparse_layers(model).items():
        grad = layer.weight.grad
        before.get_submodule(name).weight.grad = None if grad is None else grad.clone()
    places = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    old = {id(layer.weight): name for name, layer in sparse_layers(model).items()}

    assert compact_(model, optimizer) == ["0", "2", "5", "7"]
    now = {id(model.get_submodule(name).values): name for name in old.values()}
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert [[now.get(i, i) for i in ids] for ids in held] == [[old.get(i, i) for i in ids] for ids in places]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [
        group["weight_decay"] for group in theirs.param_groups
    ]
    for name, layer in sparse_layers(model).items():
        twin = before.get_submodule(name)
        pack = twin.pattern.pack
        assert layer.storage == "compact"
        assert layer.pattern == twin.pattern
        assert torch.equal(layer.values, pack(twin.weight))
        if name == "2":
            assert layer.values.grad is None
        else:
            assert torch.equal(layer.values.grad, pack(twin.weight.grad))
        state = theirs.state[twin.weight]
        assert optimizer.state[layer.values].keys() == state.keys()
        for key, value in optimizer.state[layer.values].items():
            expected = state[key]
            if isinstance(value, torch.Tensor) and value.dim():
                expected = pack(expected)
            assert value is None if expected is None else torch.equal(value, torch.as_tensor(expected))
    assert len(optimizer.state) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_with_the_same_numbers(optimizer, network, train):
    model, mine = trained(network, train, OPTIMIZERS[optimizer])
    masked, theirs = copy.deepcopy((model, mine))
    compact_(model, mine)
    train(model, mine, 6, first=3)
    train(masked, theirs, 6, first=3)
    for name, layer in sparse_layers(model).items():
        torch.testing.assert_close(layer.to_dense(), masked.get_submodule(name).to_dense())
        torch.testing.assert_close(layer.bias, masked.get_submodule(name).bias)


def test_without_an_optimizer_one_is_made_afterwards(network, train):
    model = network("masked")
    twin = network("compact")
    assert compact_(model) == ["0", "2", "5", "7"]
    assert list(model.state_dict()) == list(twin.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        train(each, torch.optim.SGD(each.parameters(), 0.1), 3)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimizer_state_of_a_compact_run_loads(network, train):
    model, mine = trained(network, train, OPTIMIZERS["adamw"])
    compact_(model, mine)
    train(model, mine, 2, first=3)
    saved = copy.deepcopy([model.state_dict(), mine.state_dict()])
    train(model, mine, 2, first=5)
    other = network("masked")
    compact_(other)
    other.load_state_dict(saved[0])
    groups = [[id(p) for p in group["params"]] for group in mine.param_groups]
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = dict(other.named_parameters())
    optimizer = OPTIMIZERS["adamw"]([{"params": [parameters[names[i]] for i in ids]} for ids in groups])
    optimizer.load_state_dict(saved[1])
    train(other, optimizer, 2, first=5)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_compact_layers_are_left_alone(network):
    model = network("compact")
    values = model[5].values
    assert compact_(model) == []
    assert model[5].values is values


def test_layers_that_share_a_weight_go_on_sharing_it():
    first, second = (SparseLinear(9, 9, sparsity=0.5, storage="masked", bias=bias) for bias in (True, False))
    second.tie_weight(first)
    model = nn.Sequential(first, second)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 9)).sum().backward()
    optimizer.step()
    assert compact_(model, optimizer) == ["0", "1"]
    assert first.values is second.values
    assert first.pattern is second.pattern
    assert second.bias is None
    assert [p is first.values for p in optimizer.param_groups[0]["params"]] == [True, False]
    assert first.values.grad.shape == (first.pattern.nnz,)


def test_a_frozen_weight_stays_frozen(network):
    model = network("masked")
    model[5].weight.requires_grad_(False)
    compact_(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    assert [layer.values.requires_grad for layer in sparse_layers(model).values()] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_and_memory_format(dtype, network):
    model = network("masked", dtype=dtype).to(memory_format=torch.channels_last)
    dense = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
    compact_(model)
    for name, layer in sparse_layers(model).items():
        assert layer.values.dtype == dtype
        assert torch.equal(layer.to_dense(), dense[name])


def test_other_arguments_are_refused(network):
    model = network("masked")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3 \(int\)"):
        compact_(3)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer or None, got \[\]"):
        compact_(model, [])


def assert_refused(model, optimizer, error, message):
    parameters = list(model.parameters())
    with pytest.raises(error, match=re.escape(message)):
        compact_(model, optimizer)
    assert all(mine is before for mine, before in zip(model.parameters(), parameters, strict=True))
    assert all(layer.storage == "masked" for layer in sparse_layers(model).values())


def test_an_optimizer_of_other_weights_is_refused(network):
    model = network("masked")
    others = torch.optim.SGD(network("masked").parameters(), 0.1)
    message = "optimizer must hold weights of the model, such as that of layer '0', got "
    assert_refused(model, others, ValueError, message)


def test_a_layer_that_a_method_moves_is_refused(network):
    model = network("masked")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, exclude=["0", "2", "5"])
    message = "model must have no layer that a method moves, got '7', which RigL moves: call its detach"
    assert_refused(model, optimizer, ValueError, message)
    method.detach()
    assert compact_(model, optimizer) == ["0", "2", "5", "7"]


def test_states_that_are_not_per_weight_are_refused(network):
    model = network("masked")
    assert_refused(
        model, torch.optim.LBFGS(model.parameters()), TypeError, "optimizer must keep its state per weight"
    )
    message = "optimizer must not be Adafactor for layer '0'"
    assert_refused(model, torch.optim.Adafactor(model.parameters()), TypeError, message)


def test_models_whose_parameters_are_held_elsewhere_are_refused(network):
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    model = network("masked")
    assert_refused(Wrapped(model), None, ValueError, "model must not be wrapped in DistributedDataParallel")
    model[5].weight.full_tensor = None
    assert_refused(model, None, ValueError, "model must not be sharded by FSDP2, got layer '5' that is")
