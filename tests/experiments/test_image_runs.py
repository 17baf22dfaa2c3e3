"""The recipes for ImageNet, on a few small images."""

import signal
import threading

import pytest
import torch

from sparsekern.cli import main
from sparsekern.experiments.at_init import _first_of_each_class
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.evaluate import evaluate
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.trainer import Trainer
from sparsekern.experiments.updates import HoldoutLoss
from sparsekern.nn import SparseLayer

SMALL = {"image_size": 32, "num_classes": 3, "batch_size": 4, "steps": 3, "learning_rate": 0.01}
SMALL |= {"warmup_steps": 1, "update_every": 2, "stop_at": 3}
SMALL |= {"log_every": 1, "evaluate_every": 3, "checkpoint_every": 2}


@pytest.fixture
def recipe():
    return load_recipe("vgg16-imagenet").override(SMALL)


@pytest.fixture
def dataset(image_folder):
    return load_dataset("image_folder", image_folder, image_size=32, num_classes=3)


def make(recipe, dataset):
    return Trainer(build_model(recipe)[0], dataset, recipe)


def steps(trainer, count):
    for _ in range(count):
        trainer.train_step()
    return trainer


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in second) and first.keys() == second.keys()


@pytest.mark.parametrize("method", ["rigl", "dense"])
def test_resuming_at_any_step_is_exact(recipe, dataset, method):
    recipe = recipe.override({"method": method})
    whole = steps(make(recipe, dataset), 1)
    state = whole.state_dict()
    # What state_dict holds are the tensors that go on to be trained.
    state = torch.load(_saved(state), weights_only=True)
    steps(whole, 2)
    resumed = make(recipe, dataset)
    resumed.load_state_dict(state)
    steps(resumed, 2)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert whole.update_steps == resumed.update_steps == ([2] if method == "rigl" else [])
    record = whole.test_record()
    images, labels = dataset.test_examples(slice(None))
    assert (record["loss"], record["accuracy"]) == pytest.approx(evaluate(whole.model, images, labels))


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_a_run_with_workers_that_is_stopped_ends_as_one_that_is_not(recipe, image_folder, tmp_path):
    """The signal comes while workers read ahead; the run has BatchNorm, whose statistics are state, too."""
    recipe = load_recipe("resnet50-imagenet").override({**SMALL, "method": "rigl"})
    arguments = ["--data-dir", str(image_folder), "--workers", "2"]
    arguments += [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    arguments += ["--method", "rigl"]

    class Stop:
        def advance(self):
            signal.raise_signal(signal.SIGTERM)

        def record(self, record):
            pass

        def close(self):
            pass

    assert threading.current_thread() is threading.main_thread()
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with pytest.raises(Exception, match="stopped by SIGTERM after step 1"):
        run(recipe, RunOptions(stopped, image_folder, workers=1), lambda text: None, lambda *_: Stop())
    assert main(["train", "resnet50-imagenet", *arguments, "--output", str(stopped), "--resume"]) == 0
    run(recipe, RunOptions(whole, image_folder), lambda text: None)
    ends = [read_checkpoint(folder / "checkpoint.pt")["trainer"] for folder in (stopped, whole)]
    assert [end["step"] for end in ends] == [3, 3]
    assert same(ends[0]["model"], ends[1]["model"])
    records = [read_metrics(folder / "metrics.jsonl") for folder in (stopped, whole)]
    kept = [[{k: v for k, v in r.items() if "second" not in k} for r in each] for each in records]
    assert kept[0] == kept[1]
    assert [r["learning_rate"] for r in kept[0] if r["kind"] == "train"] == [0, 0.01, 0.01]


def test_every_layer_is_masked_and_initialized_by_the_inputs_of_its_neurons(recipe):
    model, report = build_model(recipe)
    layers = [layer for layer in model.modules() if isinstance(layer, SparseLayer)]
    assert len(layers) == 14
    assert report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert layers[-1].weight_shape[0] == 3
    for layer in layers:
        fans = layer.pattern.fan_in()[layer.pattern.value_rows()]
        scaled = layer.values.detach() * (fans / 2).sqrt()
        if scaled.numel() > 10_000:
            assert scaled.std().item() == pytest.approx(1, rel=0.03)


def test_per_layer_init_has_the_gain_too(recipe):
    layers = {}
    for name in ("per_layer", "per_neuron"):
        model, _ = build_model(recipe.override({"init": name}))
        layers[name] = model.features[26].values.std().item()
    # In a square layer both divide by the same fan on average.
    assert layers["per_layer"] == pytest.approx(layers["per_neuron"], rel=0.05)


def test_the_holdout_and_at_init_take_centers_of_the_first_images(recipe, dataset):
    model, _ = build_model(recipe)
    images, labels = dataset.train_examples(slice(5))
    loss = HoldoutLoss(model, dataset, recipe.override({"grow_batch_size": 5, "weight_decay": 0}))()
    expected = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    images, labels = _first_of_each_class(dataset, 2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    first = int((dataset.train_labels == 1).nonzero()[0])
    assert torch.equal(images[2:3], dataset.train_examples(torch.tensor([first]))[0])


def test_mistakes_are_one_line(image_folder, tmp_path, capsys):
    common = ["train", "vgg16-imagenet", "--data-dir", str(image_folder), "--output", str(tmp_path / "run")]
    for arguments, message in (
        ([], "/train: expected as many classes as num_classes says, 1,000, found 3"),
        (["--num-classes", "3"], "batch_size must be from 1 to the number of training examples, 11, got 4,0"),
    ):
        assert main([*common, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
