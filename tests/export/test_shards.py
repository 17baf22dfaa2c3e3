"""A model in several files and an index: what is written, and what a save that fails leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import sparsekern as sk
from sparsekern import export
from sparsekern.export import shards as shards_module
from sparsekern.export.shards import INDEX
from sparsekern.files import exclusive_folder
from tests.export.networks import network


def tied_network(seed=0):
    """Two linear layers that share a weight, a module in two places, an embedding in half precision."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40, bias=False), nn.BatchNorm1d(40))
    model[1].weight = model[0].weight
    model.append(model[2])
    model.append(nn.Embedding(5, 3, dtype=torch.bfloat16))
    sk.sparsify_(model, sparsity=0.8, init="per_neuron")
    return model


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_layout_is_that_of_hugging_face(tmp_path):
    model, folder = network(), tmp_path / "new" / "folder"
    paths = export.save_sharded(model, folder, shard_bytes=1200)
    count = len(paths)
    assert count > 2
    assert [path.name for path in paths] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    assert {path.name for path in folder.iterdir()} == {INDEX, *(path.name for path in paths)}
    index = json.loads((folder / INDEX).read_text())
    state = model.state_dict()
    assert list(index["weight_map"]) == list(state)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt"
            keys = set(file.keys())
            for key in keys:
                assert torch.equal(file.get_tensor(key), state[key]), key
        assert keys == {key for key, name in index["weight_map"].items() if name == path.name}
        assert len(keys) == 1 or sum(state[key].nbytes for key in keys) <= 1200
        record = index["metadata"]["sparsekern"]["shards"][path.name]
        assert record["bytes"] == path.stat().st_size
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_ties_are_stored_once_and_all_dtypes_are_aligned(tmp_path):
    model = tied_network()
    model.register_buffer("flag", torch.tensor([True, False, True]))
    model.register_buffer("wave", torch.tensor([1 + 2j]))
    model.register_buffer("none", torch.empty(0, 3))
    model.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    (path,) = export.save_sharded(model, tmp_path)
    stored = safetensors.torch.load_file(path)
    aliases = json.loads((tmp_path / INDEX).read_text())["metadata"]["sparsekern"]["aliases"]
    state = model.state_dict()
    assert (
        aliases.items() >= {"1.values": "0.values", "1.pattern": "0.pattern", "3.weight": "2.weight"}.items()
    )
    assert stored.keys() | aliases.keys() == state.keys()
    assert not stored.keys() & aliases.keys()
    for key, tensor in state.items():
        found = stored[aliases.get(key, key)]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), key


def test_equal_models_make_equal_files(tmp_path):
    for name in "ab":
        export.save_sharded(network(), tmp_path / name, shard_bytes=1000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_later_save_takes_the_place_of_the_earlier(tmp_path):
    for seed in range(4):
        model = network(seed=seed)
        paths = export.save_sharded(model, tmp_path, shard_bytes=[1000, 1500][seed % 2])
        stem = "model" if seed % 2 == 0 else "model.1"
        assert paths[0].name.startswith(f"{stem}-00001-of-")
        assert {path.name for path in tmp_path.iterdir()} == {INDEX, *(path.name for path in paths)}
        other = network(seed=9)
        export.load_sharded(other, tmp_path)
        assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())


def test_files_of_others_stay(tmp_path):
    other = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, other)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for _ in range(3):
        export.save_sharded(network(), tmp_path)
    assert contents(tmp_path).items() >= before.items()
    (tmp_path / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": other.name}})
    )
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"folder must hold a save of save_sharded or none, got .* of another"
    ):
        export.save_sharded(network(), tmp_path)
    assert contents(tmp_path) == before


class Extra(nn.Module):
    def get_extra_state(self):
        return {"steps": 3}


def with_hook():
    model = network()
    model[3].register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    return model


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": {"a": 1}}, TypeError, r"model must be a torch\.nn\.Module, got"),
        ({"folder": 3}, TypeError, r"folder must be the path of a folder, got 3 \(int\)"),
        ({"folder": ""}, ValueError, r"folder must be the path of a folder, got ''"),
        ({"folder": __file__}, ValueError, r"folder must be the path of a folder, got '.*test_shards\.py'"),
        ({"shard_bytes": 0}, ValueError, r"shard_bytes must be at least 1, got 0"),
        ({"shard_bytes": "5GB"}, TypeError, r"shard_bytes must be an integer, got '5GB' \(str\)"),
        (
            {"model": nn.Linear(2, 2, device="meta")},
            ValueError,
            r"must have its weights, got 'weight' on the meta",
        ),
        (
            {"model": nn.Sequential(Extra())},
            TypeError,
            r"a state dict of tensors, got .* for '0\._extra_state'",
        ),
        ({"model": nn.LazyLinear(3)}, ValueError, r"a lazy one that has not run for 'weight'"),
        (
            {"model": with_hook()},
            ValueError,
            r"no state-dict hooks, .* got some on '3' \(SparseLinear\): use save_s",
        ),
    ],
)
def test_refused_before_anything_is_written(arguments, error, message, tmp_path):
    arguments = {"model": network(), "folder": tmp_path / "new", **arguments}
    with pytest.raises(error, match=message):
        export.save_sharded(arguments.pop("model"), arguments.pop("folder"), **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_saves_into(tmp_path):
    with (
        exclusive_folder(tmp_path),
        pytest.raises(BlockingIOError, match=f"another process saves .*{tmp_path}"),
    ):
        export.save_sharded(network(), tmp_path)
    export.save_sharded(network(), tmp_path)


@contextmanager
def files_of_at_most(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written(tmp_path):
    export.save_sharded(network(), tmp_path, shard_bytes=1000)
    before = contents(tmp_path)
    with (
        files_of_at_most(1500),
        pytest.raises(OSError, match=r"File too large: .*model\.1-0000\d-of") as caught,
    ):
        export.save_sharded(network(seed=1), tmp_path, shard_bytes=2000)
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == before


@pytest.mark.parametrize("where", ["first shard", "last shard", "index"])
def test_a_disk_that_is_full(where, tmp_path, monkeypatch):
    count = len(export.save_sharded(network(), tmp_path, shard_bytes=1000))
    before, calls, sync = contents(tmp_path), iter(range(100)), os.fsync
    # One call for each shard, one for the folder, and one for the index.
    at = {"first shard": 0, "last shard": count - 1, "index": count + 1}[where]

    def full(descriptor):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model"):
        export.save_sharded(network(seed=1), tmp_path, shard_bytes=1000)
    assert contents(tmp_path) == before


def test_an_interrupt_when_the_index_is_there(tmp_path, monkeypatch):
    export.save_sharded(network(), tmp_path)

    def interrupted(path, content):
        path.write_bytes(content)
        raise KeyboardInterrupt

    monkeypatch.setattr(shards_module, "write_atomically", interrupted)
    model, other = network(seed=1), network(seed=2)
    with pytest.raises(KeyboardInterrupt):
        export.save_sharded(model, tmp_path)
    export.load_sharded(other, tmp_path)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
import sparsekern as sk

def model(seed):
    torch.manual_seed(seed)
    made = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    sk.sparsify_(made, 0.5, init="per_neuron")
    return made

def state(made):
    return {key: value.tolist() for key, value in made.state_dict().items()}

def killed_at(folder, at):
    '''A save in a child that is killed before its call number `at` of what changes the disk.'''
    child = os.fork()
    if child == 0:
        count = 0
        def counted(function):
            def call(*arguments, **keywords):
                nonlocal count
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return function(*arguments, **keywords)
            return call
        os.fsync, os.replace, Path.unlink = map(counted, (os.fsync, os.replace, Path.unlink))
        sk.export.save_sharded(new, folder, shard_bytes=1200)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)

old, new, later = model(0), model(1), model(2)
states = state(old), state(new)
found, at = [], 0
while True:
    folder = Path(sys.argv[1]) / str(at)
    sk.export.save_sharded(old, folder, shard_bytes=1200)
    killed = killed_at(folder, at)
    loaded = model(3)
    sk.export.load_sharded(loaded, folder)
    found.append(states.index(state(loaded)))
    paths = sk.export.save_sharded(later, folder, shard_bytes=1200)
    left = {path.name for path in folder.iterdir()} - {path.name for path in paths}
    assert left == {"model.safetensors.index.json"}, left
    sk.export.load_sharded(loaded, folder)
    assert state(loaded) == state(later)
    if not killed:
        break
    at += 1
print(found)
assert found == sorted(found) and found[0] == 0 and found[-1] == 1 and len(found) > 10
"""


def test_a_save_that_is_killed_anywhere_leaves_one_or_the_other(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
