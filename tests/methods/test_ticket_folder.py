"""Folders of tickets: what is there is not trained again, and ends with the same bits."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsekern.methods import find_tickets
from tests.methods.small_training import make, network, train

OPTIONS = {"sparsity": 0.8, "rounds": 3, "rewind_to": 2}


def random():
    """Another network at each call, whose dropout draws from torch's generator."""
    return nn.Sequential(nn.Dropout(0.2), network())


def same(ours, theirs):
    return (
        (ours.round, ours.sparsity, ours.start_step) == (theirs.round, theirs.sparsity, theirs.start_step)
        and ours.masks == theirs.masks
        and ours.state.keys() == theirs.state.keys()
        and all(torch.equal(ours.state[key], value) for key, value in theirs.state.items())
    )


def test_finished_rounds_are_not_trained_again(tmp_path):
    expected = find_tickets(make, train, **OPTIONS)
    first = find_tickets(make, train, folder=tmp_path / "a" / "b", **OPTIONS)
    again = find_tickets(make, lambda *_: pytest.fail("trained"), folder=tmp_path / "a" / "b", **OPTIONS)
    for tickets in (first, again):
        for ours, theirs in zip(tickets, expected, strict=True):
            assert same(ours, theirs)


def test_generators_go_on_alike_whether_rounds_are_trained_or_read(tmp_path):
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        find_tickets(random, train, folder=tmp_path, **OPTIONS)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


@pytest.mark.parametrize("mode", ["weights", "learning_rate"])
@pytest.mark.parametrize("fails_in", [1, 2, 3])
def test_a_round_that_failed_is_trained_again_with_the_same_bits(tmp_path, fails_in, mode):
    def failing(model, round):
        train(model, round)
        if round.index == fails_in and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise KeyboardInterrupt

    options = {**OPTIONS, "mode": mode}
    torch.manual_seed(7)
    expected = find_tickets(random, train, **options)
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        find_tickets(random, failing, folder=tmp_path, **options)
    torch.manual_seed(8)
    found = find_tickets(random, failing, folder=tmp_path, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert same(ours, theirs)


def test_of_other_settings_are_refused(tmp_path):
    find_tickets(make, train, folder=tmp_path, settings={"lr": 0.2}, **OPTIONS)
    never = lambda *_: pytest.fail("trained")  # noqa: E731
    with pytest.raises(
        ValueError,
        match=r"folder must be empty or of the same settings, got .* \(rounds: 3 there, 4 here; "
        r"settings\['lr'\]: 0\.2 there, 0\.1 here\)",
    ):
        find_tickets(make, never, folder=tmp_path, settings={"lr": 0.1}, **{**OPTIONS, "rounds": 4})
    with pytest.raises(ValueError, match=r"settings\['lr'\]: 0\.2 there, nothing here"):
        find_tickets(make, never, folder=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="layers: "):
        find_tickets(
            lambda: nn.Sequential(make(), nn.Linear(5, 5).double()),
            never,
            folder=tmp_path,
            settings={"lr": 0.2},
            **OPTIONS,
        )


def test_the_order_of_settings_does_not_matter(tmp_path):
    find_tickets(make, train, folder=tmp_path, settings={"a": 1, "sgd": {"lr": 0.2, "decay": 0}}, **OPTIONS)
    again = {"sgd": {"decay": 0, "lr": 0.2}, "a": 1}
    never = lambda *_: pytest.fail("trained")  # noqa: E731
    find_tickets(make, never, folder=tmp_path, settings=again, **OPTIONS)


def test_damaged_files_are_named(tmp_path):
    find_tickets(make, train, folder=tmp_path, **OPTIONS)
    (tmp_path / "round-02.pt").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"round-02\.pt: expected a round of find_tickets, found a damaged"):
        find_tickets(make, train, folder=tmp_path, **OPTIONS)
    (tmp_path / "round-02.pt").unlink()
    (tmp_path / "settings.json").write_text(json.dumps({"lr": 1}))
    with pytest.raises(ValueError, match=r"settings\.json: expected the settings of find_tickets"):
        find_tickets(make, train, folder=tmp_path, **OPTIONS)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json: expected the settings of the rounds"):
        find_tickets(make, train, folder=tmp_path, **OPTIONS)


def test_rounds_after_one_that_is_gone_are_trained_again(tmp_path):
    find_tickets(make, train, folder=tmp_path, **OPTIONS)
    (tmp_path / "round-02.pt").unlink()
    trained = []

    def differently(model, round):
        trained.append(round.index)
        for parameter in model.parameters():
            parameter.data.neg_()
        train(model, round)

    found = find_tickets(make, differently, folder=tmp_path, **OPTIONS)
    assert trained == [2, 3]
    for name, mask in found[2].masks.items():
        assert bool((found[1].masks[name].to_mask() | ~mask.to_mask()).all())
    again = find_tickets(make, lambda *_: pytest.fail("trained"), folder=tmp_path, **OPTIONS)
    assert all(same(ours, theirs) for ours, theirs in zip(again, found, strict=True))


def test_settings_that_json_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="settings must be numbers, text and lists of them"):
        find_tickets(make, train, folder=tmp_path, settings={"x": torch.ones(1)}, **OPTIONS)
    assert list(tmp_path.iterdir()) == []
