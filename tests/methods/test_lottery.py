"""Tickets: rounds against the procedure on plain dense PyTorch, exact counts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import find_tickets, layer_sparsities, snapshot
from sparsekern.methods.lottery import round_sparsity
from tests.methods.small_training import STEPS, batch, make, train

NAMES = ["0", "3", "5"]


def steps(model, first, masks=None, kept=None):
    """From step `first` to the end; with masks, the dense oracle's. What it was after a step, in `kept`."""
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    for step in range(first, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / STEPS)
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        for name, mask in (masks or {}).items():
            model.get_submodule(name).weight.grad.mul_(mask)
        optimizer.step()
        if kept is not None:
            kept[step + 1] = snapshot(model)
    return optimizer


def by_hand(sparsity, rounds, mode, k, scope):
    """The masks and the states of each round, by dense PyTorch."""
    model = make()
    masks = {name: torch.ones_like(model.get_submodule(name).weight, dtype=torch.bool) for name in NAMES}
    kept = {0: snapshot(model)}
    found = []
    for index in range(1, rounds + 1):
        if index > 1:
            state = found[-1][1]
            model.load_state_dict(state)
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_submodule(name).weight.mul_(mask)
        first = 0 if index == 1 or mode == "restart" else k
        steps(model, first, masks, kept if index == 1 else None)
        density = (1 - sparsity) ** (index / rounds)
        weights = {name: model.get_submodule(name).weight.detach() for name in NAMES}
        groups = [NAMES] if scope == "global" else [[name] for name in NAMES]
        shapes = [tuple(weight.shape) for weight in weights.values()]
        shares = [1 - density] if scope == "global" else layer_sparsities(shapes, 1 - density)
        for group, share in zip(groups, shares):
            flat = torch.cat([weights[n].abs().masked_fill(~masks[n], -1).flatten() for n in group])
            chosen = torch.zeros(len(flat), dtype=torch.bool)
            chosen[flat.argsort(descending=True, stable=True)[: round((1 - share) * len(flat))]] = True
            parts = chosen.split([weights[n].numel() for n in group])
            masks |= {n: part.view(weights[n].shape) for n, part in zip(group, parts)}
        found.append((dict(masks), kept[k] if mode == "weights" else snapshot(model)))
    return found


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(
    ("mode", "k"), [("weights", 0), ("weights", 2), ("learning_rate", 2), ("restart", 0)]
)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_are_those_of_the_procedure(mode, k, scope, storage):
    tickets = find_tickets(
        make, train, sparsity=0.9, rounds=3, mode=mode, rewind_to=k, scope=scope, storage=storage
    )
    expected = by_hand(0.9, 3, mode, k, scope)
    assert [ticket.round for ticket in tickets] == [1, 2, 3]
    assert [ticket.start_step for ticket in tickets] == [k] * 3
    for ticket, (masks, state) in zip(tickets, expected):
        assert ticket.masks.keys() == masks.keys()
        for name, mask in masks.items():
            assert torch.equal(ticket.masks[name].to_mask(), mask)
        total = sum(pattern.numel for pattern in ticket.masks.values())
        nnz = sum(pattern.nnz for pattern in ticket.masks.values())
        assert nnz == round((1 - ticket.sparsity) * total)
        assert ticket.state.keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(ticket.state[key], value, rtol=1e-9, atol=1e-12)


def test_weight_rewinding_starts_from_the_very_weights_of_step_k():
    kept = {}
    steps(make(), 0, kept=kept)
    for k in (0, 2):
        tickets = find_tickets(make, train, sparsity=0.8, rounds=2, rewind_to=k)
        expected = kept[k] if k else snapshot(make())
        for ticket in tickets:
            assert all(torch.equal(ticket.state[key], value) for key, value in expected.items())
            model = make()
            ticket.apply_(model)
            for name, pattern in ticket.masks.items():
                layer = model.get_submodule(name)
                assert torch.equal(layer.to_dense(), expected[f"{name}.weight"] * pattern.to_mask())


def test_the_same_fraction_goes_each_round_and_the_last_is_exact():
    sparsities = [round_sparsity(0.9, index, 5) for index in range(1, 6)]
    remaining = [1.0, *(1 - s for s in sparsities)]
    ratios = [after / before for before, after in pairwise(remaining)]
    assert ratios == pytest.approx([0.1 ** (1 / 5)] * 5)
    assert sparsities[-1] == 0.9
    assert [round_sparsity(0.3, 0, 3), round_sparsity(0.3, 1, 1)] == [0.0, 0.3]


def test_what_the_training_function_is_told():
    seen = []

    def told(model, round):
        layers = [module for module in model.modules() if isinstance(module, sk.nn.SparseLayer)]
        seen.append((round.index, round.sparsity, round.start_step, len(layers)))
        train(model, round)

    find_tickets(make, told, sparsity=0.75, rounds=2, rewind_to=3, exclude="5")
    assert seen == [(1, 0.0, 0, 0), (2, 0.5, 3, 2)]


def test_one_round_is_one_shot():
    model = make()
    steps(model, 0)
    (ticket,) = find_tickets(make, train, sparsity=0.8)
    expected = sk.methods.magnitude_masks(model, 0.8, scope="global")
    assert all(torch.equal(ticket.masks[name].to_mask(), expected[name]) for name in NAMES)


def test_sparse_networks_are_pruned_on():
    def sparse():
        model = make()
        sk.sparsify_(model, sparsity=0.5, exclude=["0"], generator=torch.Generator().manual_seed(1))
        return model

    tickets = find_tickets(sparse, train, sparsity=0.9, rounds=2, exclude=["5"])
    first = sparse()
    assert list(tickets[-1].masks) == ["0", "3", "5"]
    assert tickets[-1].masks["5"] == first[5].pattern
    assert not (tickets[-1].masks["3"].to_mask() & ~first[3].mask).any()
    with pytest.raises(ValueError, match="sparsity must be at least what the layers have already"):
        find_tickets(sparse, lambda *_: pytest.fail("trained"), sparsity=0.6, rounds=2, exclude=["0"])


def test_shared_weights():
    def shared():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.Linear(72, 72), nn.Linear(72, 5)).double()
        model[2].weight = model[1].weight
        return model

    tickets = find_tickets(shared, train, sparsity=0.9, rounds=3)
    assert [list(ticket.masks) for ticket in tickets] == [["1", "3"]] * 3
    model = shared()
    tickets[-1].apply_(model)
    assert model[1].values is model[2].values


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"make_model": 3}, TypeError, "make_model must be a function, got 3"),
        ({"make_model": lambda: 3}, TypeError, r"make_model must return a torch\.nn\.Module, got 3"),
        ({"train": None}, TypeError, "train must be a function, got None"),
        ({"sparsity": 1}, ValueError, "sparsity must be in"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"mode": "lr"}, ValueError, "mode must be 'weights' or 'learning_rate' or 'restart', got 'lr'"),
        ({"rewind_to": -1}, ValueError, "rewind_to must be at least 0, got -1"),
        ({"rewind_to": 2, "mode": "restart"}, ValueError, "rewind_to must be left out where mode='restart'"),
        ({"scope": "x"}, ValueError, "scope must be"),
        ({"distribution": "erk"}, ValueError, "distribution must be left out unless scope='layer'"),
        ({"storage": "dense"}, ValueError, "storage must be"),
        ({"exclude": "fc"}, ValueError, "exclude must be .*, got 'fc'"),
        ({"exclude": 3}, TypeError, "exclude must be .*, got 3"),
        ({"folder": 3}, TypeError, "folder must be the path of a folder, got 3"),
        ({"folder": "/tmp", "settings": 3}, TypeError, "settings must be a mapping, got 3"),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = {"make_model": make, "train": lambda *_: pytest.fail("trained"), "sparsity": 0.5, **changes}
    with pytest.raises(error, match=message):
        find_tickets(arguments.pop("make_model"), arguments.pop("train"), **arguments)


class TestWatching:
    def test_is_needed_for_weights_of_a_later_step(self):
        def unwatched(model, round):
            steps(model, round.start_step)

        with pytest.raises(
            ValueError, match=r"rewind_to = 2 steps, got no call of round\.watch\(optimizer\)"
        ):
            find_tickets(make, unwatched, sparsity=0.5, rewind_to=2)
        find_tickets(make, unwatched, sparsity=0.5, rewind_to=2, mode="learning_rate", rounds=2)

    def test_too_few_steps(self):
        with pytest.raises(ValueError, match="train must take at least rewind_to = 9 steps, got 6 steps"):
            find_tickets(make, train, sparsity=0.5, rewind_to=9)

    def test_of_what_is_no_optimizer_or_a_second_one(self):
        def wrong(model, round):
            with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got 3"):
                round.watch(3)
            train(model, round)
            with pytest.raises(ValueError, match="optimizer must be the only one that is watched"):
                round.watch(torch.optim.SGD(model.parameters(), 0.1))

        find_tickets(make, wrong, sparsity=0.5, rewind_to=1)

    def test_counts_beside_other_hooks_and_only_steps_that_are_taken(self):
        calls = []

        def hooked(model, round):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
            round.watch(optimizer)
            optimizer.register_step_post_hook(lambda *_: calls.append(snapshot(model)))
            for step in range(4):
                optimizer.zero_grad()
                model(batch(step)[0]).square().sum().backward()
                # As GradScaler tells fused optimizers, which it calls in any case.
                optimizer.found_inf = torch.tensor([float(step == 0)])
                optimizer.step()

        (ticket,) = find_tickets(make, hooked, sparsity=0.5, rewind_to=2)
        assert len(calls) == 4
        assert all(torch.equal(ticket.state[key], value) for key, value in calls[2].items())

    def test_leaves_no_hook(self):
        optimizers = []

        def kept(model, round):
            optimizers.append(torch.optim.SGD(model.parameters(), 0.1))
            round.watch(optimizers[-1])
            model(batch(0)[0]).sum().backward()
            optimizers[-1].step()

        find_tickets(make, kept, sparsity=0.5, rounds=2, rewind_to=1)
        assert [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers] == [0, 0]


def test_weights_that_are_not_finite():
    def diverging(model, round):
        with torch.no_grad():
            model[3].weight[0, 0] = torch.inf

    with pytest.raises(FloatingPointError, match="an infinity in layer '3'"):
        find_tickets(make, diverging, sparsity=0.5)


def test_layers_that_would_be_emptied_are_named():
    def unequal():
        model = make()
        with torch.no_grad():
            model[5].weight.mul_(1e-6)
        return model

    with pytest.warns(UserWarning, match="round 1 at sparsity 0.5 takes every weight of '5'"):
        (ticket,) = find_tickets(unequal, lambda *_: None, sparsity=0.5)
    assert ticket.masks["5"].nnz == 1
