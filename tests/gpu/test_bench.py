"""``sparsekern bench`` of a model: times by the GPU's clock, memory by its allocator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.bench.contenders import Settings
from sparsekern.bench.findings import Variant
from sparsekern.bench.measure import measure
from sparsekern.bench.subject import Subject, loss_of

WIDTH, BATCH = 256, 64


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_is_measured(cuda, autocast):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    subject = Subject("model", model, (torch.randn(BATCH, WIDTH),), {}, loss_of).to(cuda)
    variants = (Variant("unstructured", 0.9), Variant("block", 0.5), Variant("2:4", 0.5))
    found = measure(subject, Settings(variants, (), "adamw", cuda, autocast, 0.001), lambda what: None)
    assert tuple(found.sparse) == variants
    weights = 4 * (2 * WIDTH**2 + 2 * WIDTH)
    assert (found.dense.bytes.weights, found.dense.bytes.gradients) == (weights, weights)
    # Gradients, and at least the activations that the backward pass reads.
    least = found.dense.bytes.held + BATCH * WIDTH * 2
    assert least <= found.dense.bytes.peak
    assert found.sparse[variants[0]].bytes.held < found.dense.bytes.held / 4
    for whole in (found.dense, found.masked, *found.sparse.values()):
        assert min(whole.cost.evaluation, whole.cost.step, whole.optimizer) > 0
    assert [layer.names for layer in found.layers] == [("0",), ("2",)]
