"""Checkpoints of one process: what comes back, and what is refused before anything is changed."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import sparsekern as sk
from sparsekern.distributed import CheckpointError, load_checkpoint, save_checkpoint
from sparsekern.distributed.tree import join, split, tensors_of
from tests.distributed.runs import assert_equal, go, network, outcome, start


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint after 7 steps, and the state that it is of."""
    path = tmp_path_factory.mktemp("saved") / "runs" / "checkpoint"
    run = start()
    go(run, range(7))
    save_checkpoint(path, *run.saved, {"step": 7})
    return path, outcome(run)


class TestWhatComesBack:
    def test_extra(self, tmp_path):
        run = start()
        tensor = torch.randn(5, 3).to(torch.bfloat16)
        extra = {
            "a/b": [1, (2.5, None, "c")],
            3: tensor.T,
            "a": {"b": torch.tensor(4)},
            "empty": torch.empty(0),
        }
        save_checkpoint(tmp_path / "c", *run.saved, extra)
        found = load_checkpoint(tmp_path / "c", *run.saved)
        assert_equal(found, extra)
        assert found["a/b"] == [1, (2.5, None, "c")]

    def test_the_last_of_several(self, tmp_path):
        run = start()
        for step in range(3):
            save_checkpoint(tmp_path, *run.saved, step)
        assert load_checkpoint(str(tmp_path), *run.saved) == 2
        assert sorted(os.listdir(tmp_path)) == ["checkpoint.json", "data-3"]

    def test_nothing_is_shared_with_the_run_that_saved(self, saved):
        path, expected = saved
        first, second = start(), start()
        for run in (first, second):
            load_checkpoint(path, *run.saved)
        go(first, range(7, 14))
        assert_equal(outcome(second), expected)

    def test_optimizer_state_of_another_dtype_than_the_weights(self, tmp_path):
        model = network().to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for parameter in model.parameters():
            optimizer.state[parameter]["mean"] = torch.randn(parameter.shape, dtype=torch.float32)
        expected = [optimizer.state[p]["mean"].clone() for p in model.parameters()]
        save_checkpoint(tmp_path, model, optimizer)
        for parameter in model.parameters():
            optimizer.state[parameter]["mean"].zero_()
        load_checkpoint(tmp_path, model, optimizer)
        assert_equal(
            dict(enumerate(expected)), dict(enumerate(optimizer.state[p]["mean"] for p in model.parameters()))
        )

    def test_learning_rates_as_a_schedule_has_left_them(self, tmp_path):
        def scheduled():
            run = start(schedule="lr")
            return run, torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, 20)

        def train(run, schedule, steps):
            for step in steps:
                go(run, [step])
                schedule.step()

        (run, schedule), (other, its_schedule) = scheduled(), scheduled()
        train(run, schedule, range(8))
        save_checkpoint(tmp_path, *run.saved, schedule.state_dict())
        its_schedule.load_state_dict(load_checkpoint(tmp_path, *other.saved))
        train(run, schedule, range(8, 16))
        train(other, its_schedule, range(8, 16))
        assert_equal(outcome(other), outcome(run))

    def test_patterns_of_another_size(self, tmp_path):
        """Masked weights are pruned as they train, and the tensors of their patterns shrink or grow."""
        run = start(method="GradualPruning", storage="masked")
        go(run, range(12))
        save_checkpoint(tmp_path, *run.saved)
        other = start(method="GradualPruning", storage="masked", seed=1)
        assert other.model[0].pattern.nnz > 1.5 * run.model[0].pattern.nnz
        load_checkpoint(tmp_path, *other.saved)
        assert_equal(outcome(other), outcome(run))

    def test_models_that_are_dense_2_to_4_compiled_or_of_tied_weights(self, tmp_path):
        def make(seed):
            torch.manual_seed(seed)
            tied, packed = (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
            model = nn.Sequential(tied, packed, nn.Linear(8, 8))
            sk.sparsify_(tied, sparsity=0.5)
            tied[1].tie_weight(tied[0])
            sk.sparsify_(packed, pattern="2:4", refresh_every=2)
            optimizer = torch.optim.AdamW(model.parameters(), 0.1)
            return torch.compile(model, backend="eager"), optimizer

        def train(model, optimizer, steps):
            for step in steps:
                optimizer.zero_grad()
                model(
                    torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
                ).square().sum().backward()
                optimizer.step()

        (model, optimizer), (other, its_optimizer) = make(0), make(1)
        train(model, optimizer, range(3))
        save_checkpoint(tmp_path, model, optimizer)
        load_checkpoint(tmp_path, other, its_optimizer)
        train(model, optimizer, range(3, 6))
        train(other, its_optimizer, range(3, 6))
        assert_equal(dict(other.state_dict()), dict(model.state_dict()))
        assert other._orig_mod[0][1].values is other._orig_mod[0][0].values

    def test_an_optimizer_without_state_yet(self, tmp_path):
        run = start()
        save_checkpoint(tmp_path, *run.saved)
        other = start(seed=3)
        go(other, range(4))
        load_checkpoint(tmp_path, *other.saved)
        for each in (run, other):
            go(each, range(4))
        assert_equal(outcome(other), outcome(run))


def other_groups(run):
    parameters = list(run.model.parameters())
    return run.model, torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}]), None


def unattached(model, kind=torch.optim.AdamW):
    return model, kind(model.parameters()), None


REFUSED = {
    "other_sparsity": (
        lambda: start_on(network(sparsity=0.7)),
        "model must have layer '0' with nnz 55, as the checkpoint, got 82",
    ),
    "other_width": (lambda: start_on(network(width=22)), "model must have layer '0' with shape [21, 13]"),
    "other_storage": (
        lambda: start(storage="masked").saved,
        "model must have layer '0' with storage compact",
    ),
    "dense": (
        lambda: unattached(nn.Linear(3, 3)),
        "model must have the sparse layers of the checkpoint, '0', '2.0', '3' and 1 more, got none",
    ),
    "other_dtype": (
        lambda: start_on(network().float()),
        "model must have '0.values' as a torch.float64 tensor of shape (55,), as in the checkpoint, got",
    ),
    "more_layers": (
        lambda: start_on(nn.Sequential(*network(), nn.Linear(1, 1).double())),
        "model must have the state of the checkpoint, with none and without '5.bias', '5.weight'",
    ),
    "other_optimizer": (
        lambda: start(optimizer="sgd").saved,
        "optimizer must be AdamW, as in the checkpoint, got SGD",
    ),
    "other_groups": (
        lambda: other_groups(start(method=None)),
        "optimizer must have the checkpoint's 1 parameter groups, in their order, got 2",
    ),
    "other_method": (lambda: start(method="SET").saved, "state must have method 'SET', got 'RigL'"),
    "other_options": (
        lambda: start(drop_fraction=0.2).saved,
        "state must be of a method with drop_fraction=0.2",
    ),
    "no_method": (lambda: start(method=None).saved, "method must be RigL, as in the checkpoint, got None"),
}


def start_on(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, sk.RigL(model, optimizer, update_every=3)


class TestRefusedOnLoading:
    @pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
    def test_another_run(self, saved, make, message):
        model, optimizer, method = make()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
            load_checkpoint(saved[0], model, optimizer, method)
        assert str(caught.value).startswith(message)
        assert_equal(dict(model.state_dict()), before)
        assert not optimizer.state
        assert method is None or method.steps == 0

    def test_a_method_where_none_was_saved(self, tmp_path):
        run = start(method=None)
        save_checkpoint(tmp_path, *run.saved)
        with pytest.raises(ValueError, match="method must be None, as in the checkpoint, got RigL"):
            load_checkpoint(tmp_path, *start().saved)

    def test_another_number_of_generators(self, saved):
        with pytest.raises(ValueError, match="generators must be 0, as in the checkpoint, got 1"):
            load_checkpoint(saved[0], *start().saved, generators=[torch.Generator()])

    def test_no_checkpoint(self, tmp_path, saved):
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "file", tmp_path / "none", saved[0] / "data-1"):
            with pytest.raises(
                CheckpointError, match=r"must be a folder with a checkpoint, got '.*' without"
            ):
                load_checkpoint(path, *start().saved)

    @pytest.mark.parametrize("change", ["half", "number", "format"])
    def test_a_damaged_manifest(self, tmp_path, change):
        run = start()
        save_checkpoint(tmp_path, *run.saved)
        file = tmp_path / "checkpoint.json"
        text = file.read_text()
        changed = {"half": text[:99], "number": text.replace("data-1", "data-2"), "format": "[]"}[change]
        file.write_text(changed)
        with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
            load_checkpoint(tmp_path, *run.saved)
        with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
            save_checkpoint(tmp_path, *run.saved)
        file.write_text(text)
        load_checkpoint(tmp_path, *run.saved)

    def test_a_checkpoint_of_a_later_format(self, tmp_path, monkeypatch):
        run = start()
        with monkeypatch.context() as patched:
            patched.setattr("sparsekern.distributed.folder.FORMAT", 2)
            save_checkpoint(tmp_path, *run.saved)
        with pytest.raises(CheckpointError, match=r"must have format 1, got 2"):
            load_checkpoint(tmp_path, *run.saved)


class TestRefusedArguments:
    @pytest.mark.parametrize("function", [save_checkpoint, load_checkpoint])
    def test_of_both(self, saved, tmp_path, function):
        path = saved[0] if function is load_checkpoint else tmp_path / "new"
        run, other = start(), start()
        model, optimizer, method = run.saved
        detached = start()
        detached.method.detach()
        meta = network().to("meta")
        cases = [
            ((3, *run.saved), TypeError, r"path must be a str or os.PathLike, got 3 \(int\)"),
            (("", *run.saved), TypeError, r"path must be a str or os.PathLike, got ''"),
            ((path, None, optimizer, method), TypeError, r"model must be a torch.nn.Module, got None"),
            ((path, model, None, method), TypeError, r"optimizer must be a torch.optim.Optimizer, got None"),
            (
                (path, model, optimizer, r"RigL"),
                TypeError,
                "method must be one that is attached .* got 'RigL'",
            ),
            ((path, model, optimizer), ValueError, r"method must be the RigL of the optimizer, got None"),
            (
                (path, model, optimizer, other.method),
                ValueError,
                r"must be attached .* a RigL of another one",
            ),
            ((path, *detached.saved), ValueError, r"must be attached .* a RigL that was detached"),
            (
                (path, other.model, optimizer, method),
                ValueError,
                "optimizer must hold Parameters of the model only",
            ),
            ((path, meta, torch.optim.SGD(meta.parameters())), ValueError, r"'0.values' on the meta device"),
        ]
        for arguments, kind, message in cases:
            with pytest.raises(kind, match=message):
                function(*arguments)
        with pytest.raises(TypeError, match=r"generators must be a sequence of torch.Generator, got 3"):
            function(path, *run.saved, generators=3)
        with pytest.raises(TypeError, match=r"process_group must be 'world' or None, got 'mine'"):
            function(path, *run.saved, process_group="mine")
        assert not (tmp_path / "new").exists()

    def test_the_older_fsdp(self, tmp_path):
        flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # it cannot be made without a GPU
        nn.Module.__init__(flat)
        model = nn.Sequential(nn.Linear(3, 3), flat)
        with pytest.raises(TypeError, match=r"sharded by fully_shard .*, got FullyShardedDataParallel"):
            save_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))

    def test_what_cannot_be_read_back(self, tmp_path):
        run = start()
        for extra in ({"path": Path()}, lambda: 1, [object()]):
            with pytest.raises(TypeError, match=r"extra must have plain values and tensors only"):
                save_checkpoint(tmp_path / "c", *run.saved, extra)
        run.optimizer.param_groups[0]["schedule"] = lambda step: step
        with pytest.raises(TypeError, match=r"optimizer must have plain values and tensors only"):
            save_checkpoint(tmp_path / "c", *run.saved)
        assert not (tmp_path / "c").exists()

    def test_a_path_with_something_else_in_it(self, tmp_path):
        run = start()
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"path must be a new folder or .* with 'notes.txt'"):
            save_checkpoint(tmp_path, *run.saved)
        with pytest.raises(ValueError, match=r"path must be a folder or new, got the file"):
            save_checkpoint(tmp_path / "notes.txt", *run.saved)
        assert os.listdir(tmp_path) == ["notes.txt"]

    def test_where_nothing_can_be_made(self):
        with pytest.raises(CheckpointError, match=r"Error: .*proc"):
            save_checkpoint("/proc/checkpoint", *start().saved)


def test_no_warnings(tmp_path):
    run = start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(tmp_path, *run.saved)
        load_checkpoint(tmp_path, *run.saved)


def test_manifest_says_what_is_there(saved):
    path, _ = saved
    manifest = json.loads((path / "checkpoint.json").read_text())
    assert manifest["processes"] == 1
    folder = path / manifest["data"]
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    assert sizes == {file.name: file.stat().st_size for file in folder.iterdir()}


def test_trees_are_cut_and_joined():
    """Keys that look like paths have places of their own."""
    tree = {
        "a": {"b": torch.arange(1.0)},
        "a/b": torch.arange(2.0),
        1: [torch.arange(3.0)],
        "1": (torch.arange(4),),
    }
    tree["~1"] = {"/": torch.arange(5), (1, 2): torch.tensor(1), r"scalar": 2}
    document, tensors = split(tree, r"t")
    assert len(tensors) == 5
    assert sorted(tensors_of(document)) == sorted(tensors)
    assert_equal(join(document, tensors), tree)
