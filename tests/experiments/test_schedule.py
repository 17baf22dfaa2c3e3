import math

import pytest
import torch

from sparsekern.experiments.schedule import learning_rate


def test_cosine_falls_from_the_initial_rate_towards_zero():
    rates = [learning_rate("cosine", 0.05, step, 100) for step in range(101)]
    assert rates[0] == 0.05
    assert rates[50] == pytest.approx(0.025)
    assert rates[99] == pytest.approx(0.05 * (1 - math.cos(math.pi / 100)) / 2, rel=1e-9)
    assert rates[100] == 0
    assert rates == sorted(rates, reverse=True)


def test_cosine_is_pytorchs_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate("cosine", 0.2, step, 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_constant_is_constant():
    assert {learning_rate("constant", 0.1, step, 10) for step in range(10)} == {0.1}


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, step, got 'linear'"):
        learning_rate("linear", 0.1, 0, 10)


def test_step_falls_at_each_milestone():
    rates = [
        learning_rate("step", 1.6, step, 100, milestones=[30, 70, 90], factor=0.1) for step in range(100)
    ]
    expected = [1.6] * 30 + [0.16] * 40 + [0.016] * 20 + [0.0016] * 10
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[:30] == [1.6] * 30


def test_step_is_pytorchs_multi_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 4, 9], gamma=0.3)
    for step in range(12):
        rate = learning_rate("step", 0.2, step, 12, milestones=[3, 4, 9], factor=0.3)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_the_rate_rises_from_0_and_the_schedule_takes_the_steps_that_are_left(schedule):
    def rates(steps, **options):
        return [learning_rate(schedule, 0.8, step, steps, **options) for step in range(steps)]

    warm = rates(50, warmup_steps=10, milestones=[25])
    assert warm[:10] == pytest.approx([0.08 * step for step in range(10)], abs=1e-15)
    assert warm[10] == 0.8
    # Milestones are counted from the first step of all.
    assert warm[10:] == rates(40, milestones=[15])
