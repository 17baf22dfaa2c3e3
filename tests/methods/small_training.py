"""A network that `find_tickets` can make, and a few steps of its training."""

import torch
from torch import nn

STEPS = 6


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 11), nn.Tanh(), nn.Linear(11, 5)
    ).double()


def make():
    torch.manual_seed(0)
    return network()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(9, 2, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (9,), generator=generator)


def train(model, round):
    """The same as `steps`, as a user has it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    round.watch(optimizer)
    for step in range(round.start_step, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / STEPS)
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
