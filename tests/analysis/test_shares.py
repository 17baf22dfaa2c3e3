"""Criteria whose mean over parts is not that over all examples are refused where parts are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.analysis import active_size, hessian, hessian_vector_product

NO_MEANS = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]).double()),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "all ignored in a part": nn.CrossEntropyLoss(ignore_index=0),
    "of pairs": lambda outputs, _: (outputs.mean(0) ** 2).sum(),
    "of dictionaries": lambda outputs, labels: F.cross_entropy(outputs["x"], labels, reduction="sum"),
}
MEANS = {
    "mean": F.cross_entropy,
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "of labels alone in part": lambda outputs, labels: outputs.square().mean() + labels.double().mean(),
    "not finite": lambda outputs, labels: F.cross_entropy(outputs, labels) * torch.inf,
    "of dictionaries": lambda outputs, labels: F.cross_entropy(outputs["x"], labels),
}


class Named(nn.Module):
    """With outputs that are no tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return {"x": self.model(images)}


def by_hessian(model, images, labels, criterion, examples_at_once):
    return hessian(model, images, labels, criterion, examples_at_once=examples_at_once).matrix


def by_products(model, images, labels, criterion, examples_at_once):
    vector = torch.ones(active_size(model))
    return hessian_vector_product(model, images, labels, vector, criterion, examples_at_once=examples_at_once)


@pytest.fixture
def setting(examples):
    def make(name):
        torch.manual_seed(0)
        model = nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 3))
        model.double()
        images, labels = examples(11)
        labels[:4] = 0
        labels[5] = 1
        return Named(model) if "dictionaries" in name else model, images, labels

    return make


@pytest.mark.parametrize("function", [by_hessian, by_products])
class TestParts:
    @pytest.mark.parametrize("name", NO_MEANS)
    def test_no_means_are_refused(self, setting, unchanged, function, name):
        model, images, labels = setting(name)
        text = (
            "criterion must be a mean over the examples, or examples_at_once at least their number, 11, got"
        )
        with unchanged(model), pytest.raises(ValueError, match=text):
            function(model, images, labels, NO_MEANS[name], 4)
        if name != "of pairs":
            assert function(model, images, labels, NO_MEANS[name], 11).isfinite().all()

    @pytest.mark.parametrize("name", MEANS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_means_are_taken(self, setting, unchanged, function, name, dtype):
        model, images, labels = setting(name)
        model, images = model.to(dtype), images.to(dtype)
        with unchanged(model):
            found = function(model, images, labels, MEANS[name], 4)
        expected = function(model, images, labels, MEANS[name], 11)
        size = float(expected.norm()) if name != "not finite" else 0
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype] * size
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)

    def test_few_ignored_examples_among_many_are_found(self, function):
        """The losses alone would differ by a hundred-thousandth: 4 and 5 of 500 are left out."""
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2))
        images = torch.randn(1000, 3, generator=generator)
        labels = (torch.arange(1000) % 2).index_fill(0, torch.arange(496, 505), -100)
        with pytest.raises(ValueError, match="criterion must be a mean over the examples"):
            function(model, images, labels, F.cross_entropy, 500)

    def test_in_inference_mode(self, setting, function):
        model, images, labels = setting("mean")
        expected = function(model, images, labels, F.cross_entropy, 4)
        with torch.inference_mode():
            own = (images.clone(), labels.clone())
            assert torch.equal(function(model, *own, F.cross_entropy, 4), expected)
