"""The pickled index of a checkpoint: what PyTorch writes is read, and what would run code is not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from sparsekern.distributed import CheckpointError, load_checkpoint, save_checkpoint
from sparsekern.distributed import folder as folders
from tests.distributed.runs import assert_equal, go, outcome, start


class Harm:
    """What an index must not be: unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def replace_index(path: Path, content: bytes) -> None:
    """Another index, with the digests of a checkpoint that was written so."""
    manifest = folders.read_manifest(path)
    folder = path / manifest["data"]
    (folder / ".metadata").write_bytes(content)
    files = folders.digests(folder, manifest["files"])
    folders.commit(path, manifest["data"], files, manifest["processes"])


def test_an_index_that_runs_code_is_refused_before_it_does(tmp_path):
    run = start()
    go(run, range(3))
    save_checkpoint(tmp_path / "run", *run.saved)
    replace_index(tmp_path / "run", pickle.dumps(Harm(tmp_path / "harm")))
    before = outcome(run)
    with pytest.raises(CheckpointError, match=r"\.metadata must be the index .* it asks for posix\.mkdir"):
        load_checkpoint(tmp_path / "run", *run.saved)
    assert not (tmp_path / "harm").exists()
    assert_equal(outcome(run), before)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"cos\nsystem\n.", b"ctorch\nload\n."])
def test_what_is_no_index_is_refused(tmp_path, content):
    run = start()
    save_checkpoint(tmp_path, *run.saved)
    replace_index(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"\.metadata must be the index of a checkpoint"):
        load_checkpoint(tmp_path, *run.saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.uint8], ids=str)
def test_tensors_of_every_dtype_come_back(tmp_path, dtype):
    run, tensor = start(), torch.ones(2, 3).to(dtype)
    save_checkpoint(tmp_path, *run.saved, {"tensor": tensor, "empty": tensor[:0]})
    assert_equal(load_checkpoint(tmp_path, *run.saved), {"tensor": tensor, "empty": tensor[:0]})
