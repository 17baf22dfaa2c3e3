import json
import sys

import pytest

from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.metrics import MetricsFile, TensorBoard, read_metrics


def records(*steps):
    return [{"kind": "train", "step": step, "loss": 1 / (step + 1)} for step in steps]


def write(path, *steps, last_step=None):
    file = MetricsFile(path, last_step)
    for record in records(*steps):
        file.write(record)
    file.sync()
    file.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_one_line_a_record(path):
    write(path, 1, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == records(1, 2)
    assert read_metrics(path) == records(1, 2)


def test_lines_are_there_as_soon_as_they_are_written(path):
    file = MetricsFile(path)
    file.write(records(1)[0])
    assert read_metrics(path) == records(1)
    file.close()


def test_a_new_run_starts_an_empty_file(path):
    write(path, 1, 2)
    write(path, 5)
    assert read_metrics(path) == records(5)


def test_resuming_drops_what_came_after_the_checkpoint(path):
    write(path, 1, 2, 3, 4)
    write(path, 3, 4, 5, last_step=2)
    assert read_metrics(path) == records(1, 2, 3, 4, 5)


def test_resuming_drops_a_line_cut_short(path):
    write(path, 1, 2)
    path.write_text(path.read_text() + '{"kind": "train", "st')
    write(path, 3, last_step=2)
    assert read_metrics(path) == records(1, 2, 3)


def test_resuming_keeps_the_bytes_of_the_lines_before(path):
    write(path, 1, 2)
    before = path.read_bytes()
    write(path, 3, last_step=2)
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize("line", ["hello", "[]", '{"loss": 1}', "3"])
def test_a_line_of_something_else_is_named(path, line):
    write(path, 1)
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2: expected a JSON object with a step"):
        MetricsFile(path, last_step=5)


def test_missing_metrics_of_the_steps_before_are_an_error(path):
    with pytest.raises(CheckpointError, match="expected the metrics of the first 1,000 steps"):
        MetricsFile(path, last_step=1000)


def test_a_full_disk_names_the_file(path, monkeypatch):
    file = MetricsFile(path)
    monkeypatch.setattr(file, "_file", open("/dev/full", "a"))
    with pytest.raises(OSError, match="No space left on device") as caught:
        file.write(records(1)[0])
    assert caught.value.filename == str(path)
    file.close()


def test_nan_is_not_json(path):
    file = MetricsFile(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.write({"step": 1, "loss": float("nan")})
    file.close()
    assert path.read_text() == ""


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExperimentError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def close(self):
            calls.append("close")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = TensorBoard(tmp_path, last_step=7)
    board.write({"kind": "test", "step": 9, "loss": 0.5, "accuracy": 0.75})
    board.close()
    assert calls == [(str(tmp_path), 8), ("test/loss", 0.5, 9), ("test/accuracy", 0.75, 9), "close"]
