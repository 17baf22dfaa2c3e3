import dataclasses
import errno
import importlib
import json
import os
import re
import sys

import pytest
import torch

from sparsekern.experiments.checkpoint import read_checkpoint, save_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import CheckpointError, DataError, ExperimentError
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run


@pytest.fixture
def options(tmp_path):
    return RunOptions(output=tmp_path / "run")


@pytest.fixture
def said():
    return []


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupt(Exception):
    pass


@pytest.fixture
def unfinished(short_recipe, options, monkeypatch):
    """A run whose process ended after step 5, without a word."""
    from sparsekern.experiments import run as module

    def save_and_end(trainer, folder):
        save(trainer, folder)
        raise Interrupt

    save = module._save
    monkeypatch.setattr(module, "_save", save_and_end)
    with pytest.raises(Interrupt):
        run(short_recipe, options, say=lambda text: None)
    monkeypatch.undo()
    return options.output


def test_a_run_leaves_recipe_metrics_checkpoint_and_result(short_recipe, options, said):
    result = run(short_recipe, options, said.append)
    assert set(files(options.output)) == {"recipe.yaml", "metrics.jsonl", "checkpoint.pt", "result.json"}
    assert load_recipe(str(options.output / "recipe.yaml")) == short_recipe
    assert json.loads((options.output / "result.json").read_text()) == dataclasses.asdict(result)
    records = read_metrics(options.output / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 4),
        ("test", 6),
        ("train", 8),
        ("train", 12),
        ("test", 12),
    ]
    assert result.test_accuracy == records[-1]["accuracy"]
    assert read_checkpoint(options.output / "checkpoint.pt")["trainer"]["step"] == 12
    assert "fc1" in said[1]
    assert said[-1].strip().startswith(f"test accuracy {result.test_accuracy:.2%}")


def test_a_finished_run_is_reported_and_left_alone(short_recipe, options, said):
    first = run(short_recipe, options, said.append)
    before = files(options.output)
    said.clear()
    assert run(short_recipe, options, said.append) == first
    assert "finished; --overwrite trains it again" in said[0]
    assert f"{first.test_accuracy:.2%}" in said[0]
    assert files(options.output) == before


def test_overwrite_trains_again_and_leaves_other_files(short_recipe, options, said):
    first = run(short_recipe, options, said.append)
    (options.output / "notes.txt").write_text("mine")
    again = run(short_recipe.override({"seed": 1}), dataclasses.replace(options, overwrite=True), said.append)
    assert again.digest != first.digest
    assert (options.output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_another_finished_run_is_refused(short_recipe, options, said, resume):
    run(short_recipe, options, said.append)
    before = files(options.output)
    other = short_recipe.override({"sparsity": 0.9, "init": "dense"})
    with pytest.raises(
        CheckpointError, match=r"another recipe: sparsity: 0\.95 there, 0\.9 here; init: per_neuron"
    ):
        run(other, dataclasses.replace(options, resume=resume), said.append)
    assert files(options.output) == before


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_by_accident(
    short_recipe, unfinished, options, said
):
    before = files(unfinished)
    with pytest.raises(ExperimentError, match="unfinished run: --resume carries on, --overwrite starts anew"):
        run(short_recipe, options, said.append)
    assert files(unfinished) == before
    assert said == []


def test_resume_finishes_what_is_there(short_recipe, unfinished, options, said, tmp_path):
    resumed = run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert said[2] == "resumed after step 5"
    whole = run(short_recipe, RunOptions(output=tmp_path / "whole"), said.append)
    assert resumed.test_accuracy == whole.test_accuracy
    ours, theirs = (read_checkpoint(folder / "checkpoint.pt") for folder in (unfinished, tmp_path / "whole"))
    for key, value in ours["trainer"]["model"].items():
        assert torch.equal(value, theirs["trainer"]["model"][key])


def test_resume_with_another_recipe_names_the_keys(short_recipe, unfinished, options, said):
    before = files(unfinished)
    with pytest.raises(
        CheckpointError, match=r"learning_rate: 0\.05 there, 0\.1 here; seed: 0 there, 3 here"
    ):
        run(
            short_recipe.override({"learning_rate": 0.1, "seed": 3}),
            dataclasses.replace(options, resume=True),
            said.append,
        )
    assert files(unfinished) == before


def test_resume_before_the_first_checkpoint_starts_at_the_first_step(short_recipe, unfinished, options, said):
    (unfinished / "checkpoint.pt").unlink()
    resume = dataclasses.replace(options, resume=True)
    with pytest.raises(CheckpointError, match="another recipe: seed: 0 there, 1 here"):
        run(short_recipe.override({"seed": 1}), resume, said.append)
    result = run(short_recipe, resume, said.append)
    assert any("nothing to resume" in text for text in said)
    assert len(read_metrics(unfinished / "metrics.jsonl")) == 5
    assert result.steps == 12


def test_resume_in_an_empty_folder_starts_at_the_first_step(short_recipe, options, said):
    run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert any("nothing to resume" in text for text in said)


def test_resume_from_a_damaged_checkpoint_changes_nothing(short_recipe, unfinished, options, said):
    path = unfinished / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    before = files(unfinished)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: expected a sparsekern checkpoint"):
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert files(unfinished) == before


def edited(path, **changes):
    """Change the checkpoint as a whole one: its digest fits."""
    save_checkpoint(path, {**read_checkpoint(path), **changes})


def with_trainer_step(step):
    return lambda path: edited(path, trainer={**read_checkpoint(path)["trainer"], "step": step})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: save_checkpoint(path, {"step": 3}), "expected the state of a run (data, recipe, "),
        (lambda path: save_checkpoint(path, {}), "threads, trainer), found nothing"),
        (
            lambda path: edited(path, recipe=[]),
            "the run's recipe: expected a mapping of recipe keys, found list",
        ),
        (lambda path: edited(path, recipe={"model": "lenet5"}), "the run's recipe: missing keys dataset, "),
        (lambda path: edited(path, threads="two"), "the run['threads']: expected int, found str"),
        (lambda path: edited(path, data=None), "the run['data']: expected str, found nothing"),
        (
            lambda path: edited(path, trainer=None),
            "the trainer's state: expected a dictionary, found nothing",
        ),
        (lambda path: edited(path, trainer={"step": 5}), "the trainer's state: expected the keys step, "),
        (with_trainer_step(13), "expected a step from 1 to 12, found 13"),
        (with_trainer_step(-1), "expected a step from 1 to 12, found -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resume_from_a_checkpoint_of_something_else_changes_nothing(
    short_recipe, unfinished, options, said, change, message
):
    path = unfinished / "checkpoint.pt"
    change(path)
    before = files(unfinished)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}") as caught:
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert "\n" not in str(caught.value)
    assert files(unfinished) == before
    assert said == []


@pytest.mark.parametrize("content", ["", '{"step": "x"}\n', '{"step": 4}\n', None], ids=repr)
def test_resume_with_other_metrics_changes_nothing(short_recipe, unfinished, options, said, content):
    path = unfinished / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    before = files(unfinished)
    expected = f"^{re.escape(str(path))}: .*expected the (train )?metrics of "
    with pytest.raises(CheckpointError, match=expected):
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert files(unfinished) == before
    assert said == []


def test_resume_at_the_last_step_needs_its_metrics(short_recipe, options, said):
    run(short_recipe, options, said.append)
    (options.output / "result.json").unlink()
    (options.output / "metrics.jsonl").write_text("")
    with pytest.raises(
        CheckpointError, match="line 1: expected the train metrics of step 4, found the end of"
    ):
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)


def test_resume_on_other_data_is_refused(short_recipe, unfinished, options, said, monkeypatch):
    from sparsekern.experiments import run as module

    def load_other(name, data_dir, **options):
        return dataclasses.replace(load_dataset(name, data_dir, **options), fingerprint="0123456789abcdef")

    monkeypatch.setattr(module, "load_dataset", load_other)
    before = files(unfinished)
    message = (
        r"checkpoint\.pt: expected a run on this digits data set \(fingerprint 0123456789ab\), found one on"
    )
    with pytest.raises(CheckpointError, match=message):
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert files(unfinished) == before
    assert said == []


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_a_killed_process_was_writing_is_removed(short_recipe, unfinished, options, said, how):
    mine = {".checkpoint.pt.123.tmp", ".metrics.jsonl.4.tmp", ".recipe.yaml.5.tmp", ".result.json.6.tmp"}
    others = {".notes.txt.7.tmp", ".checkpoint.pt.mine.tmp"}
    for name in mine | others:
        (unfinished / name).touch()
    run(short_recipe, dataclasses.replace(options, **{how: True}), said.append)
    left = {"recipe.yaml", "metrics.jsonl", "checkpoint.pt", "result.json"}
    assert set(files(unfinished)) == left | others


def test_resume_between_the_last_checkpoint_and_the_result(short_recipe, options, said):
    first = run(short_recipe, options, said.append)
    (options.output / "result.json").unlink()
    assert run(short_recipe, dataclasses.replace(options, resume=True), said.append) == first


def test_another_number_of_threads_is_noted(short_recipe, unfinished, options, said):
    torch.set_num_threads(2)
    run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    assert any("note: the number of threads was 1, is 2" in text for text in said)


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    short_recipe, unfinished, options, said, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    from sparsekern.experiments import run as module

    def save_on_a_full_disk(trainer, folder):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            save(trainer, folder)

    save = module._save
    monkeypatch.setattr(module, "_save", save_on_a_full_disk)
    with pytest.raises(CheckpointError, match="the disk is full; the checkpoint before it is intact"):
        run(short_recipe, dataclasses.replace(options, resume=True), said.append)
    monkeypatch.undo()
    assert read_checkpoint(unfinished / "checkpoint.pt")["trainer"]["step"] == 5
    assert run(short_recipe, dataclasses.replace(options, resume=True), said.append).steps == 12


def test_missing_data_is_found_before_anything_is_written(options, said):
    with pytest.raises(DataError, match="needs --data-dir"):
        run(load_recipe("lenet5-mnist"), options, said.append)
    assert not options.output.exists()


def test_overwrite_with_missing_data_keeps_the_old_run(short_recipe, options, said):
    run(short_recipe, options, said.append)
    before = files(options.output)
    with pytest.raises(DataError):
        run(
            short_recipe.override({"dataset": "mnist"}),
            dataclasses.replace(options, overwrite=True),
            said.append,
        )
    assert files(options.output) == before


def test_overwrite_without_tensorboard_keeps_the_old_run(short_recipe, options, said, monkeypatch):
    run(short_recipe, options, said.append)
    before = files(options.output)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExperimentError, match="pip install tensorboard"):
        run(short_recipe, dataclasses.replace(options, overwrite=True, tensorboard=True), said.append)
    assert files(options.output) == before


def test_output_that_is_a_file_is_one_error(short_recipe, tmp_path, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"--output .*file: the folder cannot be made: File exists"):
        run(short_recipe, RunOptions(output=tmp_path / "file"), said.append)


def test_a_result_that_is_none_is_refused(short_recipe, options, said):
    run(short_recipe, options, said.append)
    result = json.loads((options.output / "result.json").read_text())
    for content in ([], 3, {}, {**result, "steps": "many"}, {**result, "more": 1}):
        (options.output / "result.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="expected the result of a run; --overwrite starts anew"):
            run(short_recipe, options, said.append)


def test_nothing_of_a_run_is_left_in_the_process(short_recipe, options, said):
    hooks = importlib.import_module("torch.optim.optimizer")._global_optimizer_pre_hooks
    # The one hook that stays, of the first method in any process.
    importlib.import_module("sparsekern.methods.attachment")._register_guard()
    before = list(hooks)
    recipe = short_recipe.override({"method": "rigl", "update_every": 4, "grow_batch_size": 50})
    run(recipe.override({"benchmark_steps": 1}), options, said.append)
    assert "ms a training step" in said[-2]
    with pytest.raises(ExperimentError, match=r"a learning_rate below 1e\+20 may help"):
        run(
            recipe.override({"learning_rate": 1e20}),
            dataclasses.replace(options, overwrite=True),
            said.append,
        )
    assert list(hooks) == before


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 0},
        {"method": "dense"},
        {"method": "small_dense"},
        {"storage": "masked"},
        {"optimizer": "adamw"},
        {"schedule": "constant"},
    ],
)
def test_other_settings_run_to_the_end(short_recipe, options, said, change):
    assert run(short_recipe.override({"steps": 3, **change}), options, said.append).steps == 3
