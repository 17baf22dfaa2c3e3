import json
import sys

import pytest

from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.metrics import (
    FIELDS,
    MetricsFile,
    TensorBoard,
    kinds_at,
    kinds_of_update,
    lines_through,
    read_metrics,
)

NUMBERS = dict.fromkeys(FIELDS["train"], 0.5)


@pytest.fixture
def every_step(short_recipe):
    """A recipe whose run writes training metrics after every step, and nothing else in the first 99."""
    return short_recipe.override({"steps": 100, "log_every": 1, "evaluate_every": 100})


def records(*steps):
    return [{"kind": "train", "step": step, **NUMBERS, "loss": 1 / (step + 1)} for step in steps]


def write(path, *steps, kept=""):
    file = MetricsFile(path, kept)
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


def test_kinds_follow_the_recipe_and_the_last_step_has_both(short_recipe):
    due = {step: kinds_at(short_recipe, step) for step in range(1, 13)}
    assert {step: kinds for step, kinds in due.items() if kinds} == {
        4: ["train"],
        6: ["test"],
        8: ["train"],
        12: ["train", "test"],
    }
    longer = short_recipe.override({"steps": 13})
    assert [kinds_at(longer, step) for step in (12, 13)] == [["train", "test"], ["train", "test"]]


def test_gradients_have_steps_of_their_own_and_come_last(short_recipe):
    recipe = short_recipe.override({"gradient_flow_every": 3})
    due = {step: kinds_at(recipe, step) for step in range(1, 13)}
    assert {step: kinds for step, kinds in due.items() if kinds} == {
        3: ["gradient"],
        4: ["train"],
        6: ["test", "gradient"],
        8: ["train"],
        9: ["gradient"],
        12: ["train", "test", "gradient"],
    }


@pytest.mark.parametrize(
    ("method", "every", "kinds"),
    [
        ("rigl", 0, ["update"]),
        ("rigl", 5, ["update", "gradient_change"]),
        ("gradual_pruning", 0, ["prune"]),
        ("gradual_pruning", 5, ["prune"]),
    ],
)
def test_what_an_update_leaves_depends_on_the_method(short_recipe, method, every, kinds):
    changes = {"method": method, "update_every": 2, "prune_begin": 1, "prune_end": 9}
    assert kinds_of_update(short_recipe.override({**changes, "gradient_flow_every": every})) == kinds


@pytest.mark.parametrize("method", ["rigl", "gradual_pruning"])
def test_lines_of_updates_and_gradients_are_kept_as_they_came(path, every_step, method):
    changes = {
        "method": method,
        "update_every": 2,
        "prune_begin": 1,
        "prune_end": 9,
        "gradient_flow_every": 2,
    }
    recipe = every_step.override(changes)
    numbers = {
        "update": UPDATE,
        "gradient_change": {"before": 1.5, "after": 2.0},
        "prune": {"sparsity": 0.25, "active": 33},
        "gradient": {"norm": 1.25},
    }
    gradient = {"kind": "gradient", "step": 2, **numbers["gradient"]}
    changed = [{"kind": kind, "step": 2, **numbers[kind]} for kind in kinds_of_update(recipe)]
    lines = [*records(1), *changed, *records(2), gradient, *records(3)]
    file = MetricsFile(path)
    for record in lines:
        file.write(record)
    file.close()
    assert lines_through(path, recipe, 3, [2]) == path.read_text()
    assert len(lines_through(path, recipe, 2, [2]).splitlines()) == len(lines) - 1
    with pytest.raises(CheckpointError, match="line 2: expected the train metrics of step 2"):
        lines_through(path, recipe, 3, [])


def test_resuming_drops_what_came_after_the_checkpoint(path, every_step):
    write(path, 1, 2, 3, 4)
    write(path, 3, 4, 5, kept=lines_through(path, every_step, 2))
    assert read_metrics(path) == records(1, 2, 3, 4, 5)


def test_resuming_drops_a_line_cut_short(path, every_step):
    write(path, 1, 2)
    path.write_text(path.read_text() + '{"kind": "train", "st')
    write(path, 3, kept=lines_through(path, every_step, 2))
    assert read_metrics(path) == records(1, 2, 3)


def test_resuming_keeps_the_bytes_of_the_lines_before(path, every_step):
    write(path, 1, 2)
    before = path.read_bytes()
    write(path, 3, kept=lines_through(path, every_step, 2))
    assert path.read_bytes().startswith(before)


def line_with(**changes):
    return json.dumps(records(2)[0] | changes)


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        "3",
        "[" * 100_000,
        '{"loss": 1}',
        line_with(step="x"),
        line_with(step=3),
        line_with(kind="test"),
        line_with(kind=[]),
        line_with(loss="low"),
        line_with(loss=None),
        line_with(loss=float("nan")),
        json.dumps({key: value for key, value in records(2)[0].items() if key != "kind"}),
    ],
    ids=lambda line: line[:40],
)
def test_a_line_of_something_else_is_named_and_nothing_is_changed(path, every_step, line):
    write(path, 1)
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        lines_through(path, every_step, 5)
    expected = f"{path}: line 2: expected the train metrics of step 2, found "
    assert str(caught.value).startswith(f"{expected}{line[:20]!r}"[:-1])
    assert len(str(caught.value)) < len(expected) + 70
    assert path.read_bytes() == before


UPDATE = {"drop_fraction": 0.25, "dropped": 9, "grown": 7, "regrown": 2, "exploration_rate": 0.1}


def update_at(step, **changes):
    return {"kind": "update", "step": step, **UPDATE, **changes}


def test_a_mask_update_comes_before_the_training_metrics_of_its_step(path, every_step):
    file = MetricsFile(path)
    lines = [records(1)[0], update_at(2), *records(2, 3), update_at(4), *records(4)]
    for record in lines:
        file.write(record)
    file.close()
    assert len(lines_through(path, every_step, 3, [2]).splitlines()) == 4
    assert lines_through(path, every_step, 4, [2, 4]) == path.read_text()


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ([update_at(2)], []),
        ([], [2]),
        ([update_at(3)], [2]),
        ([update_at(2, dropped=9.0)], [2]),
        ([update_at(2, drop_fraction=1)], [2]),
        ([update_at(2, exploration_rate=float("nan"))], [2]),
        ([{**update_at(2), "more": 1}], [2]),
    ],
    ids=["one too many", "none", "another step", "a float", "an int", "nan", "another field"],
)
def test_other_mask_updates_than_the_checkpoint_tells_of_are_an_error(path, every_step, written, steps):
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records(1), *written, *records(2)]))
    with pytest.raises(
        CheckpointError, match=r"line 2: expected the (update|train) metrics of step 2, found "
    ):
        lines_through(path, every_step, 2, steps)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_metrics_that_end_before_the_step_are_an_error(path, every_step, kept):
    write(path, *range(1, kept + 1))
    message = f"line {kept + 1}: expected the train metrics of step {kept + 1}, found the end of the file"
    with pytest.raises(CheckpointError, match=message):
        lines_through(path, every_step, 5)


def test_a_hole_is_an_error(path, every_step):
    write(path, 1, 2, 4, 5)
    with pytest.raises(CheckpointError, match="line 3: expected the train metrics of step 3, found "):
        lines_through(path, every_step, 5)


def test_the_last_line_needed_must_be_whole(path, every_step):
    write(path, 1, 2)
    path.write_text(path.read_text().rstrip("\n"))
    with pytest.raises(CheckpointError, match="line 2: expected the train metrics of step 2"):
        lines_through(path, every_step, 2)


def test_missing_metrics_of_the_steps_before_are_an_error(path, every_step):
    with pytest.raises(CheckpointError, match="expected the metrics of the first 1,000 steps, found no such"):
        lines_through(path, every_step, 1000)


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
