import errno
import os
import pickle
import re

import pytest
import torch

from sparsekern.experiments.checkpoint import VERSION, read_checkpoint, save_checkpoint
from sparsekern.experiments.errors import CheckpointError


def some_state():
    model = torch.nn.Linear(50, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 50)).sum().backward()
    optimizer.step()
    return {
        "step": 3,
        "seconds": 0.1,
        "none": None,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "pattern": torch.arange(5, dtype=torch.int32)[::2],
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def assert_same(first, second):
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_same(one, other)
    else:
        assert first == second


def test_round_trip_is_exact(path):
    state = some_state()
    save_checkpoint(path, state)
    assert_same(read_checkpoint(path), state)


def test_any_flipped_byte_of_a_tensor_is_noticed(path):
    # The archive's own checksums are not looked at by torch.load.
    state = {"weight": torch.full((1000,), 7.25)}
    save_checkpoint(path, state)
    content = bytearray(path.read_bytes())
    position = content.find(torch.full((1000,), 7.25).numpy().tobytes())
    content[position + 1999] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="damaged: its content does not match its digest"):
        read_checkpoint(path)


def test_a_changed_number_is_noticed(path):
    save_checkpoint(path, {"step": 3})
    content = torch.load(path, weights_only=True)
    content["state"]["step"] = 4
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_short_is_one_clear_error(path, size):
    save_checkpoint(path, some_state())
    content = path.read_bytes()
    path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    with pytest.raises(
        CheckpointError, match=f"^{re.escape(str(path))}: expected a sparsekern checkpoint"
    ) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_code_in_a_pickle_is_never_run(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for save in (lambda: torch.save(Harmful(), path), lambda: path.write_bytes(pickle.dumps(Harmful()))):
        save()
        with pytest.raises(CheckpointError, match="expected a sparsekern checkpoint"):
            read_checkpoint(path)
        assert not (path.parent / "harm").exists()


def test_files_of_something_else_are_refused(path):
    torch.save({"model": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="found a PyTorch file of something else"):
        read_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"found another or a damaged file \([A-Z]\w+\)$"):
        read_checkpoint(path)


def test_another_version_is_refused_with_both_numbers(path):
    save_checkpoint(path, {"step": 3})
    content = torch.load(path, weights_only=True)
    content["version"] = VERSION + 1
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"expected checkpoint version {VERSION}, found {VERSION + 1}"):
        read_checkpoint(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(
        CheckpointError, match=re.escape(f"{path}: the checkpoint cannot be read: No such file")
    ):
        read_checkpoint(path)


def test_a_full_disk_leaves_the_checkpoint_before_it(path, monkeypatch):
    save_checkpoint(path, {"step": 3})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full; the checkpoint before it is intact"):
        save_checkpoint(path, {"step": 4})
    monkeypatch.undo()
    assert read_checkpoint(path) == {"step": 3}
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written: No such file or directory$"):
        save_checkpoint(tmp_path / "nothing" / "checkpoint.pt", {"step": 3})
