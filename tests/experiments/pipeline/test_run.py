import json

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.cli import main
from sparsekern.experiments import run as run_module
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.evaluate import evaluate
from sparsekern.experiments.models import MLP
from sparsekern.experiments.pipeline import measure
from sparsekern.experiments.pipeline.measure import stage_cost, stored_bytes
from sparsekern.nn import TwoFourLinearInt8, quantize_int8_

SHORT = {
    "steps": 30,
    "refine-steps": 20,
    "update-every": 10,
    "log-every": 10,
    "evaluate-every": 15,
    "checkpoint-every": 10,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def hardly_measured(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.001)


def train(folder, *more, **changes):
    keys = [f"--{key}={value}" for key, value in {**SHORT, **changes}.items()]
    return main(["train", "pipeline-digits", "--output", str(folder), *keys, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short pipeline."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "SECONDS", 0.001)
        threads = torch.get_num_threads()
        assert train(folder) == 0
        torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def stages(finished):
    return json.loads((finished / "pipeline.json").read_text())["stages"]


def test_every_stage_is_measured(finished, stages):
    names = ["dense", "1 synflow at initialization", "2 rigl", "3 2:4, sr_ste", "4 2:4 and int8, dynamic"]
    assert [stage["stage"] for stage in stages] == names
    assert [round(stage["sparsity"], 3) for stage in stages] == [0, 0.8, 0.8, 0.5, 0.5]
    assert all(set(stage["speedups"]) == {"1", "64", "1000"} for stage in stages)
    page = (finished / "pipeline.md").read_text()
    assert all(f"| {name} |" in page for name in names)


def test_bytes_are_those_of_the_formats(stages):
    weights, biases = 784 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    dense, _, _, two_four, int8 = (stage["bytes"] for stage in stages)
    assert dense == 4 * (weights + biases)
    # Two bits for each value; 300 and 100 columns end in half a byte.
    metadata = 300 * 98 + 100 * 38 + 10 * 13
    assert two_four == 4 * (weights // 2 + biases) + metadata
    # A scale for each output.
    assert int8 == weights // 2 + 4 * biases + metadata + 4 * biases
    assert dense / int8 > 6.2


def test_the_last_network_is_in_the_file(finished, stages):
    model = MLP(generator=torch.Generator().manual_seed(9))
    sk.sparsify_(model, pattern="2:4", method="fixed")
    quantize_int8_(model)
    sk.export.load_safetensors(model, finished / "model.safetensors")
    dataset = load_dataset("digits")
    assert evaluate(model, dataset.test_images, dataset.test_labels).accuracy == stages[-1]["accuracy"]


def test_finished_stages_are_not_trained_again(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("checkpoint.pt")}
    assert train(finished) == 0
    assert capsys.readouterr().out.count("holds this run already, finished") == 3
    assert {path: path.read_bytes() for path in finished.rglob("checkpoint.pt")} == before


def test_another_pipeline_is_refused(finished, capsys):
    assert train(finished, activations="static") == 2
    message = capsys.readouterr().err
    assert "holds another pipeline" in message
    assert message.count("\n") == 1


def test_static_activations(tmp_path):
    assert train(tmp_path / "run", activations="static") == 0
    stages = json.loads((tmp_path / "run" / "pipeline.json").read_text())["stages"]
    assert stages[-1]["stage"] == "4 2:4 and int8, static"
    assert abs(stages[-1]["accuracy"] - stages[-2]["accuracy"]) < 0.05


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("dense", marks=pytest.mark.slow),
        "sparse",
        pytest.param("two-four", marks=pytest.mark.slow),
    ],
)
def test_a_killed_pipeline_carries_on(finished, tmp_path, monkeypatch, stage):
    """In any of its runs; the end is that of a pipeline that was not."""
    folder, save = tmp_path / "run", run_module._save

    def save_and_end(trainer, run_folder):
        save(trainer, run_folder)
        if run_folder.path.name == stage:
            raise Killed

    monkeypatch.setattr(run_module, "_save", save_and_end)
    with pytest.raises(Killed):
        train(folder)
    monkeypatch.setattr(run_module, "_save", save)
    assert train(folder) == 2
    assert train(folder, "--resume") == 0
    ends = [json.loads((each / "pipeline.json").read_text())["stages"] for each in (finished, folder)]
    for one, other in zip(*ends, strict=True):
        assert one["accuracy"] == other["accuracy"]
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_keys_of_pipelines_are_none_of_recipes(capsys):
    assert main(["train", "lenet5-digits", "--refine-steps", "3"]) == 2
    assert "refine_steps is a key of pipelines (pipeline-digits, pipeline-mnist)" in capsys.readouterr().err


def test_help_lists_the_pipelines(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "pipelines:\n  pipeline-digits  MLP 300-100" in text
    assert "--refine-learning-rate X" in text


def test_zeros_and_bytes_of_a_network_that_is_partly_dense():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    sk.sparsify_(model, pattern="2:4", method="fixed", exclude=["3"])
    cost = stage_cost("x", model, dense, load_dataset("digits"))
    weights = 784 * 20 + 200
    assert cost.sparsity == pytest.approx(784 * 10 / weights)
    assert cost.bytes == 4 * (784 * 10 + 200 + 30) + 20 * 98
    quantize_int8_(model)
    assert isinstance(model[1], TwoFourLinearInt8)
    assert stored_bytes(model) == 784 * 10 + 20 * 98 + 4 * (20 + 20) + 4 * 210
