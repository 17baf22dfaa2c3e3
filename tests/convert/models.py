"""Models of every kind of sparse layer, and the command as a user calls it."""

from __future__ import annotations

import torch
from torch import nn

import sparsekern as sk
from sparsekern.cli import main


def dense_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.Flatten(),
        nn.Linear(12 * 25, 36),
        nn.ReLU(),
        nn.Linear(36, 20),
    )


def _unstructured(model, **options):
    sk.sparsify_(model, sparsity=0.7, generator=torch.manual_seed(1), **options)


def _two_four(model, **options):
    sk.sparsify_(model, pattern="2:4", **options)


def _int8(model):
    sk.sparsify_(model, pattern="2:4", method="fixed")
    sk.nn.quantize_int8_(model.eval())


KINDS = {
    "compact": lambda model: _unstructured(model),
    "block": lambda model: sk.sparsify_(
        model, 0.5, pattern="block", block_size=32, exclude=["0", "3", "7"], generator=torch.manual_seed(1)
    ),
    "masked": lambda model: _unstructured(model, storage="masked"),
    "2:4 fixed": lambda model: _two_four(model, method="fixed"),
    "2:4 held": lambda model: _two_four(model, refresh_every=3),
    "int8": _int8,
}


def model_of(kind, seed=0):
    """A model with that kind of layers, in evaluation mode."""
    model = dense_model(seed)
    KINDS[kind](model)
    if kind == "2:4 held":
        model(torch.randn(2, 4, 5, 5))  # chooses the mask
    return model.eval()


def images(batch, dtype=torch.float32):
    return torch.randn(batch, 4, 5, 5, generator=torch.Generator().manual_seed(batch)).to(dtype)


@torch.inference_mode()
def predictions(model, batches):
    return [model(images(batch)) for batch in batches]


def convert(*arguments):
    return main(["convert", *map(str, arguments)])
