"""Runs that prune as they train: stopped anywhere they resume exactly, and their masks start other runs."""

import os
import signal

import pytest
import torch

from sparsekern.cli import main
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.metrics import TIME_FIELDS, read_metrics
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped
from sparsekern.methods import load_masks
from sparsekern.nn import SparseLayer

SIZES = {"conv1": 150, "conv2": 2400, "fc1": 30_720, "fc2": 10_080, "fc3": 840}
UPDATES = [3, 6, 9, 11]


@pytest.fixture
def recipe(short_recipe):
    changes = {"method": "gradual_pruning", "prune_begin": 3, "prune_end": 11, "update_every": 3}
    changes |= {"gradient_flow_every": 2, "gradient_flow_examples": 60}
    return short_recipe.override({**changes, "steps": 14, "checkpoint_every": 4})


def without_times(path):
    records = read_metrics(path / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIME_FIELDS} for record in records]


def stop_after(step):
    """What a run is watched by that gets SIGTERM as it ends that step."""

    class Watcher:
        def __init__(self, recipe, first):
            self.step = first

        def advance(self):
            self.step += 1
            if self.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        def record(self, record):
            pass

        def close(self):
            pass

    return Watcher


def assert_same_run(ours, theirs):
    ours_state, theirs_state = (read_checkpoint(path / "checkpoint.pt")["trainer"] for path in (ours, theirs))
    for key, value in theirs_state["model"].items():
        assert torch.equal(ours_state["model"][key], value), key
    for index, slots in theirs_state["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(ours_state["optimizer"]["state"][index][name], value)
    assert ours_state["optimizer"]["sparsekern"] == theirs_state["optimizer"]["sparsekern"]
    assert ours_state["update_steps"] == theirs_state["update_steps"]
    assert without_times(ours) == without_times(theirs)


def test_stopped_in_every_phase_and_resumed_it_ends_the_same(recipe, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, RunOptions(whole, bar=False), lambda line: None)
    # Before pruning, at its first update, between two, at one, at the last and after it.
    for step in (1, 3, 4, 9, 11, 12):
        options = RunOptions(stopped, resume=True)
        with pytest.raises(Stopped) as caught:
            run(recipe, options, lambda line: None, watch=stop_after(step))
        assert caught.value.step == step
        assert read_checkpoint(stopped / "checkpoint.pt")["trainer"]["step"] == step
    run(recipe, RunOptions(stopped, resume=True, bar=False), lambda line: None)
    assert_same_run(stopped, whole)


def test_every_update_has_a_record_with_exact_counts(recipe, tmp_path):
    said = []
    run(recipe.override({"benchmark_steps": 2}), RunOptions(tmp_path, bar=False), said.append)
    assert "pruned to 95 % (uniform) in steps 3 to 11" in said[0]
    assert not any("dense" in text for text in said[2:])  # a network that starts dense is not timed
    records = read_metrics(tmp_path / "metrics.jsonl")
    prunes = [record for record in records if record["kind"] == "prune"]
    assert [record["step"] for record in prunes] == UPDATES
    total = sum(SIZES.values())
    for record in prunes:
        left = (1 - (record["step"] - 3) / 8) ** 3
        final = {size: round(0.05 * size) for size in SIZES.values()}
        active = sum(round(final[size] + (size - final[size]) * left) for size in final)
        assert record["active"] == active
        assert record["sparsity"] == 1 - active / total
    gradients = [record for record in records if record["kind"] == "gradient"]
    assert [record["step"] for record in gradients] == list(range(2, 15, 2))
    assert not any(record["kind"] in ("update", "gradient_change") for record in records)


def test_its_masks_and_weights_start_other_runs(recipe, tmp_path):
    checkpoint = tmp_path / "prune" / "checkpoint.pt"
    arguments = "train lenet5-digits --method gradual_pruning --prune-begin 3 --prune-end 11 --update-every 3"
    arguments += " --steps 14 --benchmark-steps 0 --threads 1"
    assert main([*arguments.split(), "--output", str(checkpoint.parent)]) == 0
    pruned = read_checkpoint(checkpoint)["trainer"]["model"]
    masks = load_masks(str(checkpoint))
    assert {name: pattern.nnz for name, pattern in masks.items()} == {
        name: round(0.05 * size) for name, size in SIZES.items()
    }
    for name, pattern in masks.items():
        assert not pruned[f"{name}.weight"][~pattern.to_mask()].any()

    static = recipe.override({"method": "static", "masks": str(checkpoint), "init": "dense"})
    restart = static.override({"weights": str(checkpoint)})
    start, _ = build_model(recipe)
    for each, weights in ((static, start.state_dict()), (restart, pruned)):
        model, _ = build_model(each)
        for name, layer in model.named_modules():
            if isinstance(layer, SparseLayer):
                assert (layer.storage, layer.pattern) == ("compact", masks[name])
                expected = torch.where(layer.mask, weights[f"{name}.weight"], 0)
                assert torch.equal(layer.to_dense(), expected)
                assert torch.equal(layer.bias, weights[f"{name}.bias"])
    run(restart, RunOptions(tmp_path / "restart", bar=False), lambda line: None)
    assert load_masks(str(tmp_path / "restart" / "checkpoint.pt")) == masks
