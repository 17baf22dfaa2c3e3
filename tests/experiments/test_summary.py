import re

import pytest
import torch

from sparsekern.experiments.build import build_model
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.summary import compare_with_dense, training_bytes
from sparsekern.experiments.trainer import Trainer
from sparsekern.nn import SparseLayer

NNZ = 8 + 120 + 1536 + 504 + 42


@pytest.mark.parametrize(
    ("change", "numbers", "slots"),
    [
        ({"sparsity": 0}, 44_190 + 236, 1),
        ({}, NNZ + 236, 1),
        ({"optimizer": "adamw"}, NNZ + 236, 2),
        ({"storage": "masked"}, 44_190 + 236, 1),
    ],
    ids=["dense", "compact", "compact with adamw", "masked"],
)
def test_bytes_are_counted_at_the_size_that_is_stored(short_recipe, digits, change, numbers, slots):
    recipe = short_recipe.override(change)
    trainer = Trainer(build_model(recipe)[0], digits, recipe)
    trainer.train_step()
    counted = training_bytes(trainer.model, trainer.optimizer)
    assert (counted.weights, counted.gradients, counted.optimizer) == (
        4 * numbers,
        4 * numbers,
        4 * slots * numbers,
    )
    patterns = [
        layer.pattern.data.nbytes for layer in trainer.model.modules() if isinstance(layer, SparseLayer)
    ]
    assert counted.patterns == sum(patterns)
    assert counted.total == 4 * numbers * (2 + slots) + sum(patterns)


def test_comparison_prints_bytes_and_times_of_both(digits):
    recipe = load_recipe("lenet5-digits").override({"benchmark_steps": 2})
    comparison = compare_with_dense(recipe, digits, torch.device("cpu"))
    assert comparison.sparse_milliseconds > 0
    assert comparison.dense_milliseconds > 0
    text = str(comparison)
    assert re.search(rf"weights and biases +{4 * 44_426:,} +{4 * (NNZ + 236):,} +18\.2x", text)
    assert re.search(r"ms a training step +[\d.]+ +[\d.]+ +[\d.]+x", text)
    assert all(line == line.rstrip() for line in text.splitlines())
