"""What updates report: counts, and which positions have ever been active."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.formats import Pattern
from sparsekern.methods.statistics import Explored
from sparsekern.nn import SparseLayer

SHAPES = {"tiles of 8": (5, 7), "tiles of 16": (40, 13), "tiles of 64": (130, 200), "conv": (20, 6, 3, 2)}


@pytest.mark.parametrize("complete", [False, True], ids=["stored tiles", "complete grid"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_explored_positions_are_the_union_of_all_patterns(shape, complete):
    torch.manual_seed(0)
    union = torch.rand(shape) < 0.1
    explored = Explored(Pattern.from_mask(union, complete=complete))
    assert int(explored.count()) == int(union.sum())
    for seed in range(5):
        mask = torch.rand(shape) < (0.02 if seed else 0.9)
        union |= mask
        explored.add(Pattern.from_mask(mask, complete=seed % 2 == 0))
        assert int(explored.count()) == int(union.sum())


def test_all_and_no_positions():
    assert int(Explored(Pattern.from_mask(torch.ones(70, 70, dtype=torch.bool))).count()) == 4900
    assert int(Explored(Pattern.from_mask(torch.zeros(70, 70, dtype=torch.bool))).count()) == 0


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_statistics_are_those_of_the_masks(method, network, train):
    model = network()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    getattr(sk, method)(model, optimizer, update_every=2, drop_fraction=0.4, on_update=seen.append)
    masks = {name: layer.mask for name, layer in layers.items()}
    union = {name: mask.clone() for name, mask in masks.items()}
    for update in range(1, 4):
        train(model, optimizer, 2, first=2 * update)
        statistics = seen[-1]
        assert (statistics.step, statistics.update, statistics.drop_fraction) == (2 * update, update, 0.4)
        for name, layer in layers.items():
            mine = statistics.layers[name]
            new = int((layer.mask & ~masks[name]).sum())
            union[name] |= layer.mask
            masks[name] = layer.mask
            assert mine.dropped == int(layer.pattern.nnz * 0.4)
            assert (mine.grown, mine.regrown) == (new, mine.dropped - new)
            assert (mine.nnz, mine.numel) == (layer.pattern.nnz, layer.pattern.numel)
            assert mine.explored == int(union[name].sum())
        assert statistics.dropped == statistics.grown + statistics.regrown
        positions = sum(mask.numel() for mask in union.values())
        assert statistics.exploration_rate == sum(int(u.sum()) for u in union.values()) / positions
    assert str(seen[0]).startswith(
        f"update 1 after step 2: {seen[0].dropped:,} dropped, {seen[0].grown:,} grown"
    )


def test_statistics_of_an_update_stay_as_they_were(network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.SET(model, optimizer, update_every=1)
    train(model, optimizer, 1)
    first = method.last_update
    before = (first.grown, first.exploration_rate)
    train(model, optimizer, 3, first=1)
    assert (first.grown, first.exploration_rate) == before
    assert method.last_update.exploration_rate > before[1]


def test_callbacks_may_raise_and_the_update_is_made(network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def fail(statistics):
        raise KeyError("from the callback")

    method = sk.SET(nn.Sequential(model), optimizer, update_every=1, on_update=fail)
    with pytest.raises(KeyError, match="from the callback"):
        train(model, optimizer, 1)
    assert (method.steps, method.updates, method.next_update) == (1, 1, 2)


def test_a_method_says_where_it_stands(network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=2, stop_at=4)
    assert repr(method).startswith("RigL(update_every=2, drop_fraction=0.3, stop_at=4, schedule='cosine', ")
    assert repr(method).endswith(") of 4 sparse weights: 0 updates in 0 steps, the next after step 2")
    train(model, optimizer, 2)
    assert repr(method).endswith(": 1 updates in 2 steps, no more")
