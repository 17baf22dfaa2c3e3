"""What is read of finished runs, and measurements that are kept."""

import errno
import json

import pytest
import torch

from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.reproduce import results as results_module
from sparsekern.experiments.reproduce.execute import Ended, Runs
from sparsekern.experiments.reproduce.figures.replay import networks_around_update
from sparsekern.experiments.reproduce.results import CHANCE, Results
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.trainer import Trainer
from sparsekern.methods import masks_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of a pruning run and of a RigL run with its mask."""
    from sparsekern.experiments.reproduce.runs import PaperRuns, Scale

    class Tiny(Scale):
        def base(self, network):
            changes = {
                "steps": 12,
                "update_every": 4,
                "prune_begin": 2,
                "prune_end": 8,
                "grow_batch_size": 50,
            }
            changes |= {"log_every": 4, "evaluate_every": 12, "checkpoint_every": 6, "gradient_flow_every": 4}
            return super().base(network).override({**changes, "gradient_flow_examples": 50})

    folder = tmp_path_factory.mktemp("paper")
    paper = PaperRuns("lenet5", [0], Tiny(dataset="digits"))
    home = Runs(folder / "runs")
    prune, rigl = paper.prune(0), paper.sparse("rigl", "per_neuron", 0)
    ended = {}
    for job in (prune, rigl):
        masks = {"masks": str(home.folder / job.recipe.masks)} if job.recipe.masks else {}
        result = run(job.recipe.override(masks), RunOptions(home.path(job), bar=False), say=lambda text: None)
        ended[job.folder] = Ended(job, result)
    said = []
    found = Results(
        {"lenet5": paper}, home, ended, load_dataset("digits"), folder / "measurements", True, said.append
    )
    return found, prune, rigl, said


def test_final_networks_have_the_run_s_accuracy(finished):
    results, prune, rigl, _ = finished
    dataset = results.dataset
    for job in (prune, rigl):
        with torch.no_grad():
            correct = results.final(job)(dataset.test_images).argmax(1) == dataset.test_labels
        assert correct.double().mean().item() == pytest.approx(results.accuracy(job))


def test_a_run_starts_on_the_mask_of_its_source_and_moves_away(finished):
    results, prune, rigl, _ = finished
    pruned, start, end = (
        masks_of(network) for network in (results.final(prune), results.initial(rigl), results.final(rigl))
    )
    assert pruned == start
    assert {name: pattern.nnz for name, pattern in end.items()} == {n: p.nnz for n, p in start.items()}
    assert end != start


def test_a_replay_passes_through_the_update_and_ends_as_the_run(finished):
    results, _, rigl, _ = finished
    before, after = networks_around_update(results, rigl, 4)
    # The method stores empty tiles as well, which the run began without.
    found, initial = masks_of(before), masks_of(results.initial(rigl))
    assert found.keys() == initial.keys()
    assert all(torch.equal(found[name].to_mask(), initial[name].to_mask()) for name in found)
    assert masks_of(after) != found
    # The last update comes after the last step, with a learning rate of about 0: it exchanges nothing.
    _, end = networks_around_update(results, rigl, 12)
    final = results.final(rigl).state_dict()
    assert all(torch.equal(value, final[name]) for name, value in end.state_dict().items())


def test_a_replay_is_on_as_many_threads_as_the_run(finished, monkeypatch):
    results, _, rigl, _ = finished
    seen = []
    step = Trainer.train_step

    def watched(trainer):
        seen.append(torch.get_num_threads())
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", watched)
    run_had = read_checkpoint(results.runs.path(rigl) / "checkpoint.pt")["threads"]
    before = torch.get_num_threads()
    torch.set_num_threads(run_had + 1)
    try:
        networks_around_update(results, rigl, 4)
        assert torch.get_num_threads() == run_had + 1
    finally:
        torch.set_num_threads(before)
    assert seen == [run_had] * 4


def test_measurements_are_made_once_and_again_if_inputs_differ_or_the_file_is_damaged(finished):
    results, *_, said = finished
    calls = []

    def measure():
        calls.append(1)
        return {"value": (1.5, 2)}

    assert results.cached("thing", {"runs": ["a"]}, measure) == {"value": [1.5, 2]}
    assert results.cached("thing", {"runs": ["a"]}, measure) == {"value": [1.5, 2]}
    assert len(calls) == 1
    assert said[-1] == "measuring thing"
    results.cached("thing", {"runs": ["b"]}, measure)
    assert len(calls) == 2
    for path in results.measurements.glob("thing-*.json"):
        path.write_text('{"inputs": ')
    assert results.cached("thing", {"runs": ["a"]}, measure) == {"value": [1.5, 2]}
    assert len(calls) == 3


def test_a_full_disk_is_one_clear_error(finished, monkeypatch):
    results, *_ = finished

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(results_module, "write_atomically", full)
    with pytest.raises(ExperimentError, match=r"thing-.*\.json: cannot be written: No space left on device"):
        results.cached("thing", {"runs": ["c"]}, lambda: 1)


def test_runs_that_diverged_count_as_chance_and_failed_ones_not_at_all(finished):
    results, prune, rigl, _ = finished
    ended = {prune.folder: Ended(prune, error="nan", diverged=True), rigl.folder: Ended(rigl, error="killed")}
    other = Results(**{**vars(results), "ended": ended})
    assert other.accuracy(prune) == CHANCE
    assert other.accuracy(rigl) is None
    assert other.accuracy(results.paper["lenet5"].dense(0)) is None
    assert other.finished([prune, rigl]) == []


def test_damaged_runs_are_named(finished, tmp_path):
    results, prune, *_ = finished
    home = Runs(tmp_path)
    other = Results(**{**vars(results), "runs": home})
    folder = home.path(prune)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl: expected the metrics of a finished run; remove"
    ):
        other.records(prune, "gradient")
    (folder / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: expected a sparsekern checkpoint"):
        other.final(prune)


def test_a_run_folder_of_another_version_is_refused(finished, tmp_path):
    results, prune, *_ = finished
    home = Runs(tmp_path)
    folder = home.path(prune)
    folder.mkdir()
    text = prune.recipe.to_yaml() + "colour: red\n"
    (folder / "recipe.yaml").write_text(text)
    (folder / "result.json").write_text(json.dumps({}))
    with pytest.raises(ExperimentError, match=r"recipe.yaml: unknown recipe key 'colour'"):
        home.ended(prune)
