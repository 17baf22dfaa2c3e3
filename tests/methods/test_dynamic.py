"""The dynamic methods in a training loop, against dense weights and masks trained by plain PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLayer, SparseLinear

STORAGES = ["compact", "masked"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
}


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def assert_equals_emulation(model, emulation, optimizer):
    for name, layer in sparse_layers(model).items():
        dense = emulation.model.get_submodule(name)
        assert torch.equal(layer.mask, emulation.masks[name]), name
        torch.testing.assert_close(layer.to_dense(), dense.weight.detach())
        theirs = emulation.optimizer.state[dense.weight]
        for key, mine in optimizer.state[layer.stored_weight].items():
            if isinstance(mine, torch.Tensor) and mine.dim():
                whole = layer.pattern.unpack(mine) if mine.dim() == 1 else mine
                torch.testing.assert_close(whole, theirs[key])


@pytest.mark.parametrize("parts", [1, 3], ids=["whole batches", "accumulated"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("storage", STORAGES)
def test_rigl_is_masked_training_with_growth_by_gradient(
    storage, optimizer, parts, network, emulation, loss_on, train
):
    model = network(storage)
    oracle = emulation(model, OPTIMIZERS[optimizer], every=4, fraction=0.3)
    mine = OPTIMIZERS[optimizer](model.parameters())
    method = sk.RigL(model, mine, update_every=4, drop_fraction=0.3)
    for step in range(14):
        train(model, mine, 1, first=step, parts=parts)
        oracle.step(*(loss_on(parts * step + part, scale=1 / parts) for part in range(parts)))
        assert_equals_emulation(model, oracle, mine)
    assert (method.steps, method.updates, method.next_update) == (14, 3, 16)
    assert method.last_update.grown > 0


@pytest.mark.parametrize("regrow", [True, False], ids=["regrow", "no regrow"])
@pytest.mark.parametrize("storage", STORAGES)
def test_rigl_inverted_grows_the_least_gradient(storage, regrow, network, emulation, loss_on, train):
    model = network(storage)
    oracle = emulation(model, OPTIMIZERS["sgd"], 3, 0.5, score=lambda g: -g.abs(), regrow=regrow)
    mine = OPTIMIZERS["sgd"](model.parameters())
    method = sk.RigLInverted(model, mine, update_every=3, drop_fraction=0.5, regrow_dropped=regrow)
    for step in range(7):
        train(model, mine, 1, first=step)
        oracle.step(loss_on(step))
        assert_equals_emulation(model, oracle, mine)
    assert method.updates == 2
    assert regrow or method.last_update.regrown == 0


def test_without_regrowth_no_dropped_position_comes_back(network, emulation, loss_on, train):
    model = network()
    oracle = emulation(model, OPTIMIZERS["sgd"], every=3, fraction=0.5, regrow=False)
    mine = OPTIMIZERS["sgd"](model.parameters())
    method = sk.RigL(model, mine, update_every=3, drop_fraction=0.5, regrow_dropped=False)
    for step in range(7):
        train(model, mine, 1, first=step)
        oracle.step(loss_on(step))
    assert_equals_emulation(model, oracle, mine)
    assert method.last_update.regrown == 0
    assert method.last_update.grown == method.last_update.dropped > 0


def test_snfs_grows_by_a_running_mean_of_the_dense_gradient(network, emulation, loss_on, train):
    model = network()
    oracle = emulation(model, OPTIMIZERS["sgd"], every=4, fraction=0.3)
    mine = OPTIMIZERS["sgd"](model.parameters())
    sk.SNFS(model, mine, update_every=4, momentum=0.7)
    means = dict.fromkeys(oracle.masks, 0.0)
    original = oracle._update

    def update(dense):
        original({name: means[name] for name in dense})

    oracle._update = update
    for step in range(9):
        twin = oracle.model
        twin.zero_grad()
        loss_on(step)(twin).backward()
        for name in means:
            means[name] = 0.7 * means[name] + 0.3 * twin.get_submodule(name).weight.grad
        train(model, mine, 1, first=step)
        oracle.step(loss_on(step))
        assert_equals_emulation(model, oracle, mine)


def test_set_keeps_the_largest_weights_and_draws_from_its_seed(network, train):
    def run(seed, exclude=()):
        model = network()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        method = sk.SET(model, optimizer, update_every=4, drop_fraction=0.4, seed=seed, exclude=exclude)
        train(model, optimizer, 3)
        before = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
        train(model, optimizer, 1, first=3)
        return model, before, method

    (model, before, method), (same, *_), (other, *_) = run(3), run(3), run(4)
    assert method.updates == 1
    for name, layer in sparse_layers(model).items():
        twin = sparse_layers(same)[name]
        assert layer.pattern == twin.pattern
        assert torch.equal(layer.values, twin.values)
        assert layer.pattern != sparse_layers(other)[name].pattern
        assert layer.pattern.nnz == int((before[name] != 0).sum())
    torch.manual_seed(99)  # PyTorch's own generator plays no part
    assert sparse_layers(run(3)[0])["5"].pattern == sparse_layers(model)["5"].pattern


def test_static_counts_steps_and_moves_nothing(network, train):
    model = network()
    before = {name: layer.pattern for name, layer in sparse_layers(model).items()}
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = sk.Static(model, optimizer, update_every=1)
    train(model, optimizer, 3)
    assert (method.steps, method.updates, method.next_update, method.last_update) == (3, 0, None, None)
    assert {name: layer.pattern for name, layer in sparse_layers(model).items()} == before


@pytest.mark.parametrize("storage", STORAGES)
def test_a_holdout_batch_gives_the_gradient_with_its_l2_term(storage, network, exchange, loss_on, train):
    model = network(storage)
    weights = [layer.stored_weight for layer in sparse_layers(model).values()]

    def holdout():
        return loss_on(99)(model) + 0.5 * sum(w.square().sum() for w in weights)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sk.RigL(model, optimizer, update_every=2, grow_gradient="holdout", holdout=holdout)
    train(model, optimizer, 1)
    masks = {name: layer.mask for name, layer in sparse_layers(model).items()}
    train(model, optimizer, 1, first=1)
    grads = {name: p.grad for name, p in model.named_parameters()}
    # The same step once more, on a model that stays as it is, and the dense gradient after it.
    twin = network(storage)
    train(twin, torch.optim.SGD(twin.parameters(), 0.1), 2)
    sk.densify_(twin)
    loss_on(99)(twin).backward()
    for name, layer in sparse_layers(model).items():
        weight = twin.get_submodule(name).weight
        expected = exchange(weight.detach(), masks[name], (weight.grad + weight.detach()).abs(), 0.3)
        assert torch.equal(layer.mask, expected)
    assert all(grad is not None for grad in grads.values())


def test_the_holdout_gradient_leaves_the_gradients_of_the_step_alone(network, loss_on, train):
    grads = []
    for method in ("Static", "RigL"):
        model = network()
        optimizer = torch.optim.SGD([{"params": model.parameters()}], 0.1)
        keywords = {"grow_gradient": "holdout", "holdout": functools.partial(loss_on(99), model)}
        # No position moves, so the gradients are those of the step itself.
        getattr(sk, method)(model, optimizer, update_every=1, drop_fraction=1e-6, **keywords)
        train(model, optimizer, 2)
        grads.append([p.grad.clone() for p in model.parameters()])
    for mine, theirs in zip(*grads):
        assert torch.equal(mine, theirs)


def test_the_holdout_batch_leaves_running_statistics_alone():
    found = []
    for method in (sk.Static, sk.RigL):
        torch.manual_seed(0)
        model = nn.Sequential(
            SparseLinear(7, 9, sparsity=0.5), nn.BatchNorm1d(9), nn.Dropout(0.0), nn.Linear(9, 3)
        )
        inputs, others = torch.randn(2, 11, 7)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        holdout = functools.partial(lambda m, x: m(x).square().sum(), model, 5 + others)
        # No position moves, so the statistics are those of the steps themselves.
        method(model, optimizer, update_every=1, drop_fraction=1e-6, grow_gradient="holdout", holdout=holdout)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
        found.append(dict(model[1].named_buffers()))
    assert found[0]["num_batches_tracked"] == 3
    for name, mine in found[1].items():
        assert torch.equal(mine, found[0][name]), name


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_an_update_may_replace_the_step(closure, network, loss_on):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    method = sk.RigL(model, optimizer, update_every=2, update="replaces_step")

    def step(seed):
        def compute():
            optimizer.zero_grad()
            loss = loss_on(seed)(model)
            loss.backward()
            return loss

        if closure:
            assert optimizer.step(compute) is not None
        else:
            compute()
            optimizer.step()

    step(0)
    biases = [layer.bias.detach().clone() for layer in sparse_layers(model).values()]
    dense = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
    step(1)
    assert method.updates == 1
    for (name, layer), bias in zip(sparse_layers(model).items(), biases):
        assert torch.equal(layer.bias, bias)
        kept = layer.mask & (dense[name] != 0)
        assert torch.equal(layer.to_dense()[kept], dense[name][kept])
        assert layer.values.grad is not None
        assert optimizer.state[layer.values]["step"] == 1
    step(2)
    assert all(optimizer.state[p]["step"] == 2 for p in model.parameters())


def test_new_values_may_be_drawn(network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    before = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
    method = sk.SET(model, optimizer, update_every=1, new_values="per_neuron", stop_at=2)
    train(model, optimizer, 1)
    for name, layer in sparse_layers(model).items():
        new = layer.mask & (before[name] == 0)
        assert int(new.sum()) == method.last_update.layers[name].grown
        assert (layer.to_dense()[new] != 0).all()
        old = layer.mask & ~new
        assert torch.equal(layer.to_dense()[old], before[name][old])


def test_parameters_keep_their_identity_and_their_memory(network, train):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sk.RigL(model, optimizer, update_every=1)
    train(model, optimizer, 1)
    addresses = [p.data_ptr() for p in model.parameters()]
    state = [s.data_ptr() for p in model.parameters() for s in optimizer.state[p].values() if s.dim()]
    train(model, optimizer, 3, first=1)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert [s.data_ptr() for p in model.parameters() for s in optimizer.state[p].values() if s.dim()] == state


def test_layers_that_share_a_weight_move_together(loss_on):
    torch.manual_seed(0)
    first, second = nn.Linear(128, 128), nn.Linear(128, 128)
    second.weight = first.weight
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Linear(128, 5))
    model = model.double()
    sk.sparsify_(model, sparsity=0.9)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=2)
    assert [layer.name for layer in method.layers] == ["1", "4"]
    for step in range(4):
        optimizer.zero_grad()
        loss_on(step)(model).backward()
        optimizer.step()
    assert model[1].pattern == model[3].pattern
    assert model[1].values is model[3].values
    assert method.last_update.layers["1"].grown > 0


def test_two_layers_with_one_pattern_object_are_told_apart():
    pattern = sk.Pattern.random((20, 20), 0.8)
    model = nn.Sequential(*(SparseLinear(20, 20, pattern=pattern, dtype=torch.float64) for _ in range(2)))
    frozen = SparseLinear(20, 20, pattern=pattern, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=2)
    for seed in range(4):
        x = torch.randn(7, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x).square().sum() + frozen(x).square().sum()).backward()
        optimizer.step()
    assert method.updates == 2
    assert [layer.passes for layer in method.layers] == [1, 1]
    assert model[0].pattern != model[1].pattern
    assert frozen.pattern == pattern


def test_detached_it_does_nothing_any_more(network, train):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = sk.RigL(model, optimizer, update_every=2)
    train(model, optimizer, 1)
    method.detach()
    before = [layer.pattern for layer in sparse_layers(model).values()]
    train(model, optimizer, 3, first=1)
    assert [layer.pattern for layer in sparse_layers(model).values()] == before
    assert method.steps == 1
    assert "sparsekern" not in optimizer.state_dict()
    assert not [p for p in model.parameters() if p._post_accumulate_grad_hooks]
    sk.SET(model, optimizer)  # and another method may take over
