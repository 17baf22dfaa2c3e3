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
    with pytest.raises(ValueError, match="schedule must be cosine or constant, got 'linear'"):
        learning_rate("linear", 0.1, 0, 10)
