"""Runs that are done once: sources first, carried on, moved elsewhere, and those that cannot end well."""

import dataclasses
import io
import json
import os
import shutil
import signal

import pytest
import torch

from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.errors import DivergedError, ExperimentError
from sparsekern.experiments.metrics import TIME_FIELDS, read_metrics
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.reproduce import execute
from sparsekern.experiments.reproduce.execute import DIVERGED, Runs
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped
from sparsekern.experiments.sweep.sweep import SweepStopped


class Workers:
    """Does the jobs in this process, and remembers them."""

    def __init__(self):
        self.done = []
        self.waves = []

    def __call__(self, jobs, workers, data_dir, listener, folder):
        self.waves.append([job.folder.name for job in jobs])
        before = os.getcwd()
        os.chdir(folder)
        try:
            for job in jobs:
                self.done.append(job.folder.name)
                try:
                    result = run(job.recipe, RunOptions(job.folder, data_dir, resume=True, bar=False), str)
                except ExperimentError as error:
                    diverged = isinstance(error, DivergedError)
                    listener.message(job, {"kind": "failed", "error": str(error), "diverged": diverged})
                else:
                    listener.message(job, {"kind": "finished", "result": dataclasses.asdict(result)})
                listener.tick()
        finally:
            os.chdir(before)


@pytest.fixture
def workers(monkeypatch):
    fake = Workers()
    monkeypatch.setattr(execute, "work_off", fake)
    return fake


def do(folder, runs):
    said = io.StringIO()
    ended = Runs(folder).do(runs, 1, None, said, live=False)
    return ended, said.getvalue()


def without_times(path):
    records = read_metrics(path / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIME_FIELDS} for record in records]


def diverging(paper_run):
    return dataclasses.replace(paper_run, recipe=paper_run.recipe.override({"learning_rate": 1e20}))


def needing(paper_run, source):
    masks = f"{source.folder}/checkpoint.pt"
    return dataclasses.replace(paper_run, recipe=paper_run.recipe.override({"masks": masks}), source=source)


def test_worker_processes_do_them_relative_to_the_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lottery = tiny.lottery(0)
    said = io.StringIO()
    ended = Runs(tmp_path / "deep" / "runs").do([lottery], 2, None, said, live=False)
    assert list(ended) == [tiny.prune(0).folder, lottery.folder]
    assert all(end.result is not None for end in ended.values()), said.getvalue()
    assert "[2/2] lenet5  lottery  dense  seed 0   test accuracy" in said.getvalue()


def test_sources_come_first_and_nothing_is_done_twice(tiny, tmp_path, workers):
    asked = [tiny.restart(1, of=0), tiny.lottery(0), tiny.dense(0), tiny.sparse("rigl", "per_neuron", 0)]
    ended, said = do(tmp_path, asked)
    source = tiny.prune(0).folder
    assert workers.waves == [[source, asked[2].folder], [asked[0].folder, asked[1].folder, asked[3].folder]]
    assert ended.keys() == {source, *(run.folder for run in asked)}
    assert all(not end.error and not end.diverged for end in ended.values())
    for paper_run in asked:
        assert ended[paper_run.folder].run == paper_run
        assert load_recipe(str(tmp_path / paper_run.folder / "recipe.yaml")) == paper_run.recipe
    pruned, ticket = (
        read_checkpoint(tmp_path / name / "checkpoint.pt")["trainer"]["model"]
        for name in (source, asked[1].folder)
    )
    assert torch.equal(ticket["fc1.pattern"], pruned["fc1.pattern"])
    assert "5 of 5" not in said

    done = list(workers.done)
    again, said = do(tmp_path, [*asked, tiny.prune(0)])
    assert {name: end.result for name, end in again.items()} == {
        name: end.result for name, end in ended.items()
    }
    assert workers.done == done
    assert said == ""
    more, said = do(tmp_path, [*asked, tiny.small_dense(0)])
    assert workers.done == [*done, tiny.small_dense(0).folder]
    assert "5 of 6 runs are finished from before" in said
    assert len(more) == 6


def test_a_run_that_was_stopped_carries_on(tiny, tmp_path, workers):
    prune = tiny.prune(0)

    class Watcher:
        def __init__(self, recipe, first):
            self.step = first

        def advance(self):
            self.step += 1
            if self.step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

        def record(self, record):
            pass

        def close(self):
            pass

    path = Runs(tmp_path / "stopped").path(prune)
    with pytest.raises(Stopped):
        run(prune.recipe, RunOptions(path), str, watch=Watcher)
    assert Runs(tmp_path / "stopped").ended(prune) is None
    stopped, _ = do(tmp_path / "stopped", [prune])
    whole, _ = do(tmp_path / "whole", [prune])
    assert stopped[prune.folder].result.test_loss == whole[prune.folder].result.test_loss
    assert without_times(path) == without_times(tmp_path / "whole" / prune.folder)
    ours, theirs = (read_checkpoint(p / "checkpoint.pt") for p in (path, tmp_path / "whole" / prune.folder))
    for key, value in theirs["trainer"]["model"].items():
        assert torch.equal(ours["trainer"]["model"][key], value)


def test_the_folder_may_be_moved(tiny, tmp_path, workers):
    lottery, other = tiny.lottery(0), tiny.sparse("set", "per_neuron", 0)
    ended, _ = do(tmp_path / "here", [lottery])
    (tmp_path / "here" / lottery.folder / "result.json").unlink()
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "here", tmp_path / "far" / "there")
    again, _ = do(tmp_path / "far" / "there", [lottery, other])
    # The ticket goes on from its last checkpoint, and another run finds the mask.
    assert workers.done == [tiny.prune(0).folder, lottery.folder, lottery.folder, other.folder]
    assert again[lottery.folder].result == ended[lottery.folder].result
    assert again[other.folder].result is not None


def test_a_run_that_diverges_is_recorded_and_not_done_again(tiny, tmp_path, workers):
    broken = diverging(tiny.dense(0))
    ended, said = do(tmp_path, [broken, tiny.small_dense(0)])
    end = ended[broken.folder]
    assert (end.result, end.diverged) == (None, True)
    assert end.error.endswith("a learning_rate below 1e+20 may help")
    assert f"failed: {end.error}" in said
    marker = tmp_path / broken.folder / DIVERGED
    assert json.loads(marker.read_text()) == {"digest": broken.recipe.digest, "error": end.error}
    assert ended[tiny.small_dense(0).folder].result is not None
    done = list(workers.done)
    again, _ = do(tmp_path, [broken])
    assert again[broken.folder] == end
    assert workers.done == done


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the note of a run that diverged; remove it to run again"),
        ("[]", "expected the note of a run that diverged; remove it to run again"),
        ('{"digest": "0123", "error": "x"}', "expected a run of the recipe .*, found one of 0123"),
    ],
)
def test_a_damaged_note_is_refused(tiny, tmp_path, workers, content, message):
    dense = tiny.dense(0)
    (tmp_path / dense.folder).mkdir()
    (tmp_path / dense.folder / DIVERGED).write_text(content)
    with pytest.raises(ExperimentError, match=message):
        do(tmp_path, [tiny.small_dense(0), dense])
    assert workers.done == []


def test_what_needs_the_mask_of_a_run_that_did_not_end_well_says_so(tiny, tmp_path, workers):
    source = diverging(tiny.prune(0))
    lottery = needing(tiny.lottery(0), source)
    expected = f"its mask is missing: the pruning run {source.folder} did not end well"
    for _ in range(2):  # also when the source diverged in an earlier call
        ended, said = do(tmp_path, [lottery, tiny.dense(0)])
        assert ended[source.folder].diverged
        assert ended[lottery.folder].error == expected
        assert not ended[lottery.folder].diverged
        assert f"failed: {expected}" in said
        assert ended[tiny.dense(0).folder].result is not None
    assert workers.done == [source.folder, tiny.dense(0).folder]
    assert not (tmp_path / lottery.folder).exists()


def test_a_run_that_failed_otherwise_is_done_again(tiny, tmp_path, workers, monkeypatch):
    lottery, source = tiny.lottery(0), tiny.prune(0)
    do(tmp_path, [source])
    checkpoint = tmp_path / source.folder / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:1000])
    ended, _ = do(tmp_path, [lottery])
    assert ended[lottery.folder].error.startswith(f"masks {source.folder}/checkpoint.pt")
    assert not ended[lottery.folder].diverged
    checkpoint.write_bytes(content)
    ended, _ = do(tmp_path, [lottery])
    assert ended[lottery.folder].result is not None


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_in_a_folder_is_refused_before_anything_is_done(tiny, tmp_path, workers, finished):
    mine, other = tiny.dense(0), tiny.dense(1)
    do(tmp_path, [other])
    shutil.move(tmp_path / other.folder, tmp_path / mine.folder)
    if not finished:
        (tmp_path / mine.folder / "result.json").unlink()
    workers.done.clear()
    with pytest.raises(ExperimentError, match="holds a run of another recipe: seed: 1 there, 0 here"):
        do(tmp_path, [tiny.small_dense(0), mine])
    assert workers.done == []


def test_a_damaged_result_is_refused(tiny, tmp_path, workers):
    (tmp_path / tiny.dense(0).folder).mkdir()
    (tmp_path / tiny.dense(0).folder / "result.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"result\.json: expected the result of a run"):
        do(tmp_path, [tiny.dense(0)])


def test_a_folder_that_cannot_be_made_is_one_error(tiny, tmp_path, workers):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"^--output .*file/runs: cannot be made: Not a directory$"):
        do(tmp_path / "file" / "runs", [tiny.dense(0)])


def test_a_signal_after_the_last_run_stops_nothing(tiny, tmp_path, workers, monkeypatch):
    def late(*arguments):
        workers(*arguments)
        return signal.SIGTERM

    monkeypatch.setattr(execute, "work_off", late)
    ended, _ = do(tmp_path, [tiny.dense(0)])
    assert ended[tiny.dense(0).folder].result is not None


def test_after_a_signal_what_needs_masks_is_not_begun(tiny, tmp_path, monkeypatch):
    waves = []

    def stopped(jobs, *others):
        waves.append(len(jobs))
        return signal.SIGTERM

    monkeypatch.setattr(execute, "work_off", stopped)
    with pytest.raises(SweepStopped, match="stopped by SIGTERM with 2 of 2 runs left") as caught:
        do(tmp_path, [tiny.lottery(0)])
    assert caught.value.received == signal.SIGTERM
    assert waves == [1]
