"""Gradual pruning in a training loop, against dense weights and masks trained and ranked by plain PyTorch."""

from __future__ import annotations

import copy
import gc
import weakref
from fractions import Fraction

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLayer
from sparsekern.nn.distributions import layer_sparsities

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
}
SPAN = {"begin": 3, "end": 12, "update_every": 4}
UPDATES = [3, 7, 11, 12]
STEPS = 16


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def scheduled(initial, final, step, begin=3, end=12):
    """Zhu and Gupta's s_f + (s_0 - s_f) (1 - (t - t_0) / (t_1 - t_0)) ** 3 in exact fractions, as a count."""
    size = 10**6
    start, goal = Fraction(size - initial, size), Fraction(size - final, size)
    sparsity = goal + (start - goal) * (1 - Fraction(step - begin, end - begin)) ** 3
    return round((1 - sparsity) * size)


class DensePruning:
    """A dense network whose weights, gradients and optimizer states are masked by hand."""

    def __init__(self, sparse, make_optimizer, sparsity, scope, distribution):
        self.model = copy.deepcopy(sparse)
        sk.densify_(self.model)
        self.masks = {name: layer.mask for name, layer in sparse_layers(sparse).items()}
        self.optimizer = make_optimizer(self.model.parameters())
        self.scope = scope
        self.initial = [int(mask.sum()) for mask in self.masks.values()]
        shapes = [tuple(mask.shape) for mask in self.masks.values()]
        self.final = [
            round((1 - share) * mask.numel())
            for share, mask in zip(layer_sparsities(shapes, sparsity, distribution), self.masks.values())
        ]
        self.steps = 0

    def weight(self, name):
        return self.model.get_submodule(name).weight

    def step(self, loss):
        self.optimizer.zero_grad()
        loss(self.model).backward()
        for name, mask in self.masks.items():
            self.weight(name).grad.mul_(mask)
        self.optimizer.step()
        self.steps += 1
        if self.steps in UPDATES:
            self._prune()

    @torch.no_grad()
    def _prune(self):
        if self.scope == "global":
            count = scheduled(sum(self.initial), sum(self.final), self.steps)
            self._keep(list(self.masks), count)
        else:
            for name, initial, final in zip(self.masks, self.initial, self.final):
                self._keep([name], scheduled(initial, final, self.steps))
        for name, mask in self.masks.items():
            weight = self.weight(name)
            for tensor in [weight, weight.grad, *self.optimizer.state[weight].values()]:
                if isinstance(tensor, torch.Tensor) and tensor.shape == weight.shape:
                    tensor.mul_(mask)

    def _keep(self, names, count):
        magnitude = torch.cat([self.weight(name).abs().flatten() for name in names])
        active = torch.cat([self.masks[name].flatten() for name in names]).nonzero().flatten()
        chosen = active[magnitude[active].sort(descending=True, stable=True).indices[:count]]
        kept = torch.zeros(len(magnitude), dtype=torch.bool)
        kept[chosen] = True
        parts = kept.split([self.masks[name].numel() for name in names])
        for name, part in zip(names, parts):
            self.masks[name] = part.view(self.masks[name].shape)


def assert_equal(model, optimizer, oracle):
    for name, layer in sparse_layers(model).items():
        assert torch.equal(layer.mask, oracle.masks[name]), name
        dense = oracle.weight(name)
        torch.testing.assert_close(layer.to_dense(), dense.detach())
        if layer.storage == "masked":
            assert not layer.weight[~layer.mask].any()
        for key, mine in optimizer.state[layer.stored_weight].items():
            if isinstance(mine, torch.Tensor) and mine.dim():
                whole = layer.pattern.unpack(mine) if layer.storage == "compact" else mine
                torch.testing.assert_close(whole, oracle.optimizer.state[dense][key])
        torch.testing.assert_close(layer.bias, oracle.model.get_submodule(name).bias)


@pytest.mark.parametrize(
    ("scope", "distribution", "start"),
    [
        ("layer", "uniform", 0.0),
        ("layer", "uniform", 0.5),
        ("layer", "erk", 0.0),
        ("global", "uniform", 0.0),
        ("global", "uniform", 0.5),
    ],
)
@pytest.mark.parametrize("compact", [False, True], ids=["masked", "compact"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_is_masked_training_ranked_by_magnitude(
    optimizer, compact, scope, distribution, start, network, loss_on, train
):
    model = network("masked", sparsity=start)
    sparsity = 0.85
    oracle = DensePruning(model, OPTIMIZERS[optimizer], sparsity, scope, distribution)
    mine = OPTIMIZERS[optimizer](model.parameters())
    updates = []
    method = sk.GradualPruning(
        model, mine, sparsity=sparsity, scope=scope, distribution=distribution, compact=compact,
        on_update=updates.append, **SPAN,
    )  # fmt: skip
    total = sum(layer.pattern.numel for layer in sparse_layers(model).values())
    for step in range(STEPS):
        train(model, mine, 1, first=step)
        oracle.step(loss_on(step))
        assert_equal(model, mine, oracle)
        if step + 1 in UPDATES:
            assert updates[-1].active == {name: int(mask.sum()) for name, mask in oracle.masks.items()}
    assert [(update.step, update.update) for update in updates] == list(zip(UPDATES, range(1, 5)))
    assert updates[0].sparsity == pytest.approx(start, abs=1e-2)  # s_0 at the beginning
    assert sum(updates[-1].active.values()) == round((1 - sparsity) * total)
    assert updates[-1].sparsity == 1 - round((1 - sparsity) * total) / total
    assert (method.updates, method.next_update) == (4, None)
    assert {layer.storage for layer in sparse_layers(model).values()} == {"compact" if compact else "masked"}


@pytest.mark.parametrize(
    ("begin", "end", "every", "expected"),
    [
        (0, 3, 2, [2, 3]),
        (0, 2, 5, [2]),
        (1, 2, 1, [1, 2]),
        (3, 12, 4, [3, 7, 11, 12]),
        (4, 12, 4, [4, 8, 12]),
        (5, 6, 100, [5, 6]),
        (2, 9, 3, [2, 5, 8, 9]),
    ],
)
def test_updates_come_at_begin_every_so_many_steps_and_at_end(begin, end, every, expected, network, train):
    model = network("masked", sparsity=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    method = sk.GradualPruning(
        model, optimizer, sparsity=0.9, begin=begin, end=end, update_every=every,
        on_update=lambda update: seen.append((update, method.next_update)),
    )  # fmt: skip
    assert method.next_update == expected[0]
    train(model, optimizer, end + 3)
    assert [update.step for update, _ in seen] == expected
    assert [following for _, following in seen] == [*expected[1:], None]
    numel = {name: layer.pattern.numel for name, layer in sparse_layers(model).items()}
    for update, _ in seen:
        for name, active in update.active.items():
            final = seen[-1][0].active[name]
            assert active == scheduled(numel[name], final, update.step, begin, end)


def test_equal_magnitudes_leave_in_the_order_of_the_flattened_weight():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 9)).double()
    sk.sparsify_(model, sparsity=0, storage="masked", init="keep")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with torch.no_grad():
        for layer in sparse_layers(model).values():
            layer.weight.fill_(0.5)
            layer.weight[::2] *= -1
    sk.GradualPruning(model, optimizer, sparsity=0.7, begin=1, end=2, update_every=1, compact=False)
    for _ in range(2):
        model(torch.ones(2, 3, 4, 4).double()).sum().backward()
        optimizer.step()
    for layer in sparse_layers(model).values():
        mask = layer.mask.flatten()
        assert mask[: layer.pattern.nnz].all()
        assert not mask[layer.pattern.nnz :].any()


def test_equal_magnitudes_of_all_layers_leave_later_layers_first():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    sk.sparsify_(model, sparsity=0, storage="masked", init="keep")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with torch.no_grad():
        for layer in sparse_layers(model).values():
            layer.weight.fill_(0.5)
    options = {"sparsity": 0.5, "begin": 1, "end": 2, "update_every": 1, "scope": "global"}
    sk.GradualPruning(model, optimizer, compact=False, **options)
    for _ in range(2):
        model(torch.ones(2, 6).double()).sum().backward()
        optimizer.step()
    # 31 of 62: all of the first, and something of every other layer, of which one must stay.
    assert [layer.pattern.nnz for layer in sparse_layers(model).values()] == [29, 1, 1]
    assert sparse_layers(model)["1"].mask.flatten()[0]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_was_pruned_is_not_ranked_again(scope, network, train):
    model = network("masked", sparsity=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sk.GradualPruning(model, optimizer, sparsity=0.9, scope=scope, compact=False, **SPAN)
    train(model, optimizer, 8)
    before = {name: layer.mask for name, layer in sparse_layers(model).items()}
    assert not any(mask.all() for mask in before.values())
    with torch.no_grad():
        for name, layer in sparse_layers(model).items():
            # All that is active is smaller than all that is not.
            layer.weight.copy_(torch.where(before[name], layer.weight * 0, 100.0))
    train(model, optimizer, 4, first=8)
    total = sum(mask.numel() for mask in before.values())
    after = {name: layer.mask for name, layer in sparse_layers(model).items()}
    for name, mask in after.items():
        assert not (mask & ~before[name]).any()
        assert not model.get_submodule(name).weight[~mask].any()
    assert sum(int(mask.sum()) for mask in after.values()) == round(0.1 * total)


def test_a_layer_keeps_at_least_one_weight_in_competition_with_others(network, train):
    model = network("masked", sparsity=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with torch.no_grad():
        model[0].weight.mul_(1e-9)
    best = int(model[0].weight.abs().argmax())
    sk.GradualPruning(model, optimizer, sparsity=0.9, scope="global", **SPAN)
    total = sum(layer.pattern.numel for layer in sparse_layers(model).values())
    train(model, optimizer, 12)
    assert model[0].mask.flatten().nonzero().flatten().tolist() == [best]
    assert sum(layer.pattern.nnz for layer in sparse_layers(model).values()) == round(0.1 * total)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_of_few_weights_already_keeps_what_it_has(scope, network, train):
    """Fewer than its share for one, none at all for another: the rest comes from the others."""
    model = network("masked", sparsity=0)
    layers = sparse_layers(model)
    masks = {name: torch.ones_like(layer.mask) for name, layer in layers.items()}
    few, none, *_ = masks
    masks[few].view(-1)[3:] = False
    masks[none].zero_()
    sk.densify_(model)
    sk.sparsify_(model, masks=masks, storage="masked")
    with torch.no_grad():
        model.get_submodule(few).weight.mul_(100)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sk.GradualPruning(model, optimizer, sparsity=0.9, scope=scope, **SPAN)
    train(model, optimizer, 12)
    active = {name: layer.pattern.nnz for name, layer in sparse_layers(model).items()}
    assert (active[few], active[none]) == (3, 0)
    assert sum(active.values()) == round(0.1 * sum(mask.numel() for mask in masks.values()))


@pytest.mark.parametrize("compact", [False, True])
def test_layers_that_share_a_weight_are_pruned_as_one_and_stay_tied(compact, loss_on):
    torch.manual_seed(0)
    first, second = nn.Linear(128, 128), nn.Linear(128, 128)
    second.weight = first.weight
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Linear(128, 5)).double()
    sk.sparsify_(model, sparsity=0, storage="masked", init="keep")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    updates = []
    method = sk.GradualPruning(
        model, optimizer, sparsity=0.9, compact=compact, on_update=updates.append, **SPAN
    )
    assert [layer.name for layer in method.layers] == ["1", "4"]
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_on(step)(model).backward()
        optimizer.step()
    assert updates[-1].numel == 128 * 128 + 128 * 5
    assert model[1].stored_weight is model[3].stored_weight
    assert model[1].pattern is model[3].pattern
    assert model[1].storage == model[3].storage == ("compact" if compact else "masked")
    assert sum(p is model[1].stored_weight for group in optimizer.param_groups for p in group["params"]) == 1


def test_excluded_and_frozen_layers_stay_masked_and_another_method_may_move_them(network, train):
    model = network("masked", sparsity=0.5)
    model[2].weight.requires_grad_(False)
    frozen = model[2].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = sk.GradualPruning(model, optimizer, sparsity=0.9, exclude=["7"], **SPAN)
    other = sk.SET(model, optimizer, update_every=2, exclude=["0", "5"])
    assert [layer.name for layer in method.layers] == ["0", "5"]
    train(model, optimizer, STEPS)
    storages = {name: layer.storage for name, layer in sparse_layers(model).items()}
    assert storages == {"0": "compact", "2": "masked", "5": "compact", "7": "masked"}
    assert torch.equal(model[2].weight, frozen)
    assert (other.updates, other.last_update.grown > 0) == (8, True)
    assert sk.RigL(model, torch.optim.SGD(model.parameters(), 0.1), exclude=["7"])  # all others are free


@pytest.mark.parametrize("compact", [False, True])
def test_memory_of_the_dense_weights_is_let_go_of(compact, network, train):
    model = network("masked", sparsity=0)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    weights = [weakref.ref(layer.weight) for layer in sparse_layers(model).values()]
    method = sk.GradualPruning(model, optimizer, sparsity=0.9, compact=compact, **SPAN)
    train(model, optimizer, 14)
    gc.collect()
    assert [weight() is None for weight in weights] == [compact] * 4
    held = [p.numel() for group in optimizer.param_groups for p in group["params"] if p.dim() != 1]
    assert held == ([] if compact else [108, 144, 1584, 165])
    assert method.updates == 4
    for layer in sparse_layers(model).values():
        sizes = {s.numel() for s in optimizer.state[layer.stored_weight].values() if s.dim()}
        assert sizes == {layer.pattern.nnz if compact else layer.pattern.numel}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_exact_in_every_precision(dtype, network, loss_on):
    model = network("masked", dtype=dtype, sparsity=0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    sk.GradualPruning(model, optimizer, sparsity=0.9, begin=1, end=4, update_every=1)
    for step in range(6):
        optimizer.zero_grad()
        loss_on(step, dtype=dtype)(model).backward()
        optimizer.step()
    assert sum(layer.pattern.nnz for layer in sparse_layers(model).values()) == round(0.1 * 2001)
    assert all(layer.values.dtype == dtype for layer in sparse_layers(model).values())
