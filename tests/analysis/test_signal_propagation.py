"""The spread of outputs against a formula by hand, with models left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.analysis import output_std


@pytest.mark.parametrize("storage", [None, "compact", "masked"])
@pytest.mark.parametrize("training", [False, True])
def test_leaves_the_model_as_it_was(network, examples, unchanged, storage, training):
    model, (images, _) = network(storage), examples()
    with unchanged(model):
        assert output_std(model, images, training=training) > 0


def test_is_over_examples_and_classes():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]])
    assert output_std(nn.Identity(), outputs) == pytest.approx((50 / 6 - 4) ** 0.5)


def test_of_constant_outputs_is_zero():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 2)
    assert output_std(model, torch.randn(5, 4)) == 0


def test_training_mode_normalizes_by_the_batch(examples):
    images = 100 * examples(200)[0]
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten()).double()
    assert output_std(model, images, training=True) == pytest.approx(1, abs=1e-6)
    assert output_std(model, images) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "text"),
    [
        (1, torch.ones(2, 3), TypeError, "model must be a torch.nn.Module"),
        (nn.Linear(3, 2), 1, TypeError, "inputs must be a tensor"),
        (nn.Linear(3, 2), torch.ones(0, 3), ValueError, "inputs must have at least one example"),
        (
            nn.Linear(3, 2),
            torch.ones(2, 3, device="meta"),
            ValueError,
            "inputs must be on the model's device cpu",
        ),
        (nn.LSTM(3, 2), torch.ones(2, 3), TypeError, "model must return a floating-point tensor of logits"),
    ],
)
def test_errors(model, inputs, error, text):
    with pytest.raises(error, match=text):
        output_std(model, inputs)
