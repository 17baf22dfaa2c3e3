"""The gradient flow of runs: what it is, when it is taken, and that runs are the same with it."""

import pytest
import torch
import torch.nn.functional as F

from sparsekern.experiments.build import build_model
from sparsekern.experiments.errors import DivergedError, RecipeError
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.trainer import Trainer

METHODS = {
    "rigl, holdout": {"method": "rigl", "update_every": 3, "grow_batch_size": 100},
    "rigl, batch": {"method": "rigl", "update_every": 3, "grow_gradient": "batch"},
    "rigl, masked": {"method": "rigl", "update_every": 3, "grow_gradient": "batch", "storage": "masked"},
    "set": {"method": "set", "update_every": 3},
    "snfs": {"method": "snfs", "update_every": 3},
    "pruning": {"method": "gradual_pruning", "prune_begin": 2, "prune_end": 7, "update_every": 3},
    "static": {"method": "static"},
}
MEASURED = {"gradient_flow_every": 2, "gradient_flow_examples": 90}


def make(recipe, digits):
    return Trainer(build_model(recipe)[0], digits, recipe)


@pytest.mark.parametrize("method", METHODS)
def test_measuring_does_not_change_the_run(short_recipe, digits, method):
    recipe = short_recipe.override(METHODS[method])
    plain, measured = make(recipe, digits), make(recipe.override(MEASURED), digits)
    for _ in range(8):
        plain.train_step()
        measured.train_step()
        measured.update_records()
        norm = measured.gradient_record()["norm"]
        images, labels = digits.train_images[:90], digits.train_labels[:90]
        parameters = list(plain.model.parameters())
        gradients = torch.autograd.grad(F.cross_entropy(plain.model(images), labels), parameters)
        assert norm == pytest.approx(
            sum(float(g.double().square().sum()) for g in gradients) ** 0.5, rel=1e-6
        )
    mine, theirs = (trainer.model.state_dict() for trainer in (measured, plain))
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    for a, b in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert measured.update_steps == plain.update_steps


def test_updates_have_the_gradient_before_and_after_them(short_recipe, tmp_path):
    recipe = short_recipe.override({**METHODS["set"], **MEASURED})
    run(recipe, RunOptions(tmp_path, bar=False), lambda line: None)
    records = read_metrics(tmp_path / "metrics.jsonl")
    kinds = {step: [r["kind"] for r in records if r["step"] == step] for step in range(1, 13)}
    assert kinds[3] == kinds[9] == ["update", "gradient_change"]
    assert kinds[6] == ["update", "gradient_change", "test", "gradient"]
    assert [record["step"] for record in records if record["kind"] == "gradient"] == [2, 4, 6, 8, 10, 12]
    sixth = {record["kind"]: record for record in records if record["step"] == 6}
    assert sixth["gradient_change"]["after"] == sixth["gradient"]["norm"]
    assert sixth["gradient_change"]["before"] != sixth["gradient_change"]["after"]


def test_without_the_key_nothing_is_measured(short_recipe, digits):
    trainer = make(short_recipe.override(METHODS["set"]), digits)
    assert trainer.gradients.change_records(3) == []
    assert len(trainer.optimizer._optimizer_step_post_hooks) == 1  # the method's


def test_more_examples_than_there_are_is_one_line(short_recipe, digits):
    changes = {"gradient_flow_every": 1, "gradient_flow_examples": 1438}
    with pytest.raises(
        RecipeError, match=r"^gradient_flow_examples must be at most the number of .*, 1,437, got 1,438$"
    ):
        make(short_recipe.override(changes), digits)
    make(short_recipe.override({**changes, "gradient_flow_every": 0}), digits)


@pytest.mark.parametrize("method", ["static", "set", "rigl, batch"])
def test_a_gradient_that_is_not_finite_stops_the_run(short_recipe, tmp_path, method):
    """Before the next training metrics would."""
    changes = {"gradient_flow_every": 1, "log_every": 12, "evaluate_every": 12, "learning_rate": 1e20}
    recipe = short_recipe.override({**METHODS[method], **changes, "checkpoint_every": 12})
    with pytest.raises(DivergedError, match=r"a learning_rate below 1e\+20 may help$") as caught:
        run(recipe, RunOptions(tmp_path, bar=False), lambda line: None)
    assert "\n" not in str(caught.value)
    assert all(record["kind"] == "gradient" for record in read_metrics(tmp_path / "metrics.jsonl"))
