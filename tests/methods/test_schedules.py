"""Schedules, and when updates come."""

from __future__ import annotations

import math

import pytest
import torch

import sparsekern as sk
from sparsekern.methods.schedules import cubic_sparsity, drop_fraction
from sparsekern.methods.timetable import Timetable


def test_drop_fractions():
    assert drop_fraction("constant", 0.3, 500) == 0.3
    assert drop_fraction("cosine", 0.3, 0, stop_at=1000) == 0.3
    assert drop_fraction("cosine", 0.3, 500, stop_at=1000) == pytest.approx(0.15)
    assert drop_fraction("cosine", 0.3, 1000, stop_at=1000) == pytest.approx(0.0)
    assert drop_fraction("lr", 0.3, 500, lr_ratio=0.1) == pytest.approx(0.03)
    assert drop_fraction("lr", 0.3, 500, lr_ratio=7.0) == 0.3
    with pytest.raises(ValueError, match=r"schedule must be 'constant', 'lr', or 'cosine' with stop_at"):
        drop_fraction("cosine", 0.3, 500)


def test_cubic_sparsity_is_that_of_zhu_and_gupta():
    assert cubic_sparsity(0.0, 0.95, 2999, 3000, 7000) == 0.0
    assert cubic_sparsity(0.0, 0.95, 3000, 3000, 7000) == 0.0
    assert cubic_sparsity(0.0, 0.95, 5000, 3000, 7000) == pytest.approx(0.95 - 0.95 / 8)
    assert cubic_sparsity(0.0, 0.95, 7000, 3000, 7000) == 0.95
    assert cubic_sparsity(0.2, 0.95, 99999, 3000, 7000) == 0.95
    with pytest.raises(ValueError, match="begin must be below end, got 5 and 5"):
        cubic_sparsity(0.0, 0.9, 5, 5, 5)


@pytest.mark.parametrize(
    ("every", "stop_at", "expected"),
    [(3, None, [3, 6, 9, 12]), (3, 9, [3, 6]), (3, 10, [3, 6, 9]), (1, 4, [1, 2, 3]), (13, None, [])],
)
def test_updates_follow_every_so_many_steps_below_the_end(every, stop_at, expected):
    table = Timetable(every, stop_at)
    updates = []
    for step in range(1, 13):
        assert table.is_next() == (step in expected)
        table.add_call(None)
        if table.is_due():
            updates.append(step)
            table.advance()
    assert updates == expected
    assert table.steps == 12


def test_steps_that_found_an_infinity_do_not_count():
    class Optimizer:
        found_inf = None

    optimizer, table, updates = Optimizer(), Timetable(2, None), []
    for call, found in enumerate([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], start=1):
        optimizer.found_inf = torch.tensor([found])
        table.add_call(optimizer)
        if table.is_due():
            updates.append(call)
            table.advance()
    assert updates == [3, 7]
    assert table.steps == 5


def test_an_update_put_off_beyond_the_end_is_left_out(network, train):
    model, found = network(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keywords = {"schedule": "constant", "on_update": lambda statistics: found.append(statistics.step)}
    sk.RigL(model, optimizer, update_every=4, stop_at=9, **keywords)
    train(model, optimizer, 3)
    # Both updates are put off, since gradients have just begun to be accumulated: to steps 5 and 9.
    train(model, optimizer, 3, first=3, parts=2)
    train(model, optimizer, 1, first=6)
    train(model, optimizer, 4, first=7, parts=2)
    assert found == [5]


def test_the_learning_rate_scales_the_fraction_from_its_initial_value(network, train):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    fractions = []
    sk.SET(
        model, optimizer, update_every=2, schedule="lr", on_update=lambda s: fractions.append(s.drop_fraction)
    )
    for step in range(8):
        train(model, optimizer, 1, first=step)
        schedule.step()
    rates = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in (1, 3, 5, 7)]
    assert fractions == pytest.approx([0.3 * rate for rate in rates])


def test_by_default_the_fraction_is_constant_or_falls_to_the_end(network, train):
    def fractions(**options):
        model, found = network(), []
        optimizer = torch.optim.SGD(model.parameters(), 0.2)
        sk.SET(model, optimizer, update_every=2, on_update=lambda s: found.append(s.drop_fraction), **options)
        train(model, optimizer, 8)
        return found

    assert fractions() == [0.3] * 4
    cosine = [0.15 * (1 + math.cos(math.pi * step / 7)) for step in (2, 4, 6)]
    assert fractions(stop_at=7) == pytest.approx(cosine)
