"""Small float64 networks with odd sizes, dense and sparse, and checks that they are left alone."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import sparsekern as sk


@pytest.fixture
def network():
    """A convolution, a normalization and two linear layers on (2, 7, 6) images, 3 classes; 111 parameters."""

    def make(storage=None, seed=0, dtype=torch.float64, sparsity=0.6):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6, 5, bias=False),
            nn.Softplus(),
            nn.Linear(5, 3),
        ).to(dtype)
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor.normal_(0, 0.6, generator=generator)
        if storage is not None:
            sk.sparsify_(model, sparsity, storage=storage, exclude=["8"], generator=generator)
        return model

    return make


@pytest.fixture
def examples():
    """Images and labels for `network`."""

    def make(count=7, dtype=torch.float64, seed=1):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, 2, 7, 6, dtype=dtype, generator=generator)
        return images, torch.randint(0, 3, (count,), generator=generator)

    return make


@pytest.fixture
def unchanged():
    """A context in which a model's state, gradients and modes must stay, bit for bit."""

    @contextmanager
    def check(*models):
        for model in models:
            for number, module in enumerate(model.modules()):
                module.training = number % 2 == 0
        states = [copy.deepcopy(model.state_dict()) for model in models]
        flags = [[module.training for module in model.modules()] for model in models]
        generator = torch.get_rng_state()
        yield
        assert torch.equal(torch.get_rng_state(), generator)
        for model, state, flag in zip(models, states, flags, strict=True):
            assert [module.training for module in model.modules()] == flag
            assert all(parameter.grad is None for parameter in model.parameters())
            now = model.state_dict()
            assert now.keys() == state.keys()
            assert all(torch.equal(now[key], value) for key, value in state.items())

    return check
