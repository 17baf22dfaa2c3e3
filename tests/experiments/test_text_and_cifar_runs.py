"""The recipes of a GPT on text and of ResNet-20 on CIFAR-10, on little data."""

import json
import math
import signal

import pytest
import torch
import torch.nn.functional as F

from sparsekern.cli import main
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped
from sparsekern.experiments.summary import compare_with_dense
from sparsekern.experiments.trainer import Trainer
from sparsekern.nn import SparseLayer

SHORT = {"steps": 6, "update_every": 2, "stop_at": "100%", "log_every": 1, "evaluate_every": 3}
SHORT |= {"checkpoint_every": 3}
RUNS = {
    "bytes": ("gpt-text", {"batch_size": 3, "context": 16, "warmup_steps": 2}),
    "characters": ("gpt-text", {"batch_size": 3, "context": 16, "tokens": "characters"}),
    "cifar10": ("resnet20-cifar10", {"batch_size": 30, "width_multiplier": 0.25}),
}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; größer\n" * 40, encoding="utf-8")
    return path


@pytest.fixture
def folders(text_file, cifar10_folder):
    return {"bytes": text_file, "characters": text_file, "cifar10": cifar10_folder}


def short(kind, **changes):
    name, own = RUNS[kind]
    return load_recipe(name).override({**SHORT, **own, **changes})


def quiet(recipe, output, data, **options):
    return run(recipe, RunOptions(output, data, **options), lambda text: None)


def stopped_after(recipe, output, data, steps):
    class Stop:
        left = steps

        def advance(self):
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGTERM)

        def record(self, record):
            pass

        def close(self):
            pass

    with pytest.raises(Stopped):
        run(recipe, RunOptions(output, data), lambda text: None, lambda *_: Stop())


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(folders, tmp_path, kind):
    recipe = short(kind)
    outputs = stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped_after(recipe, stopped, folders[kind], 4)
    state = torch.get_rng_state()
    quiet(recipe, stopped, folders[kind], resume=True)
    quiet(recipe, whole, folders[kind])
    assert torch.equal(state, torch.get_rng_state())
    ends = [read_checkpoint(output / "checkpoint.pt") for output in outputs]
    assert [end["trainer"]["step"] for end in ends] == [6, 6]
    first, second = (end["trainer"]["model"] for end in ends)
    assert all(torch.equal(first[name], second[name]) for name in {*first, *second})
    kept = [
        [{k: v for k, v in record.items() if "second" not in k} for record in read_metrics(path)]
        for path in (output / "metrics.jsonl" for output in outputs)
    ]
    assert kept[0] == kept[1]
    assert [record["step"] for record in kept[0] if record["kind"] == "update"] == [2, 4]


def test_the_masks_are_those_of_the_blocks(text_file):
    model, report = build_model(short("bytes"))
    layers = [name for name, module in model.named_modules() if isinstance(module, SparseLayer)]
    assert len(layers) == 24
    assert all(name.startswith("blocks.") for name in layers)
    assert report.sparsity == pytest.approx(0.9, abs=1e-3)
    dense, _ = build_model(short("bytes", method="dense"))
    weight = dense.blocks[0].attention.query.weight
    assert torch.equal(
        model.blocks[0].attention.query.to_dense(), weight * model.blocks[0].attention.query.mask
    )
    recipe = short("characters")
    text = load_dataset("text", text_file, **recipe.data_options)
    assert build_model(recipe, text)[0].config.vocabulary == text.vocabulary == len(text.characters)
    with pytest.raises(
        ValueError, match="dataset must be given for a recipe with tokens characters, got None"
    ):
        build_model(recipe)


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_loss_and_accuracy_are_means_over_all_tokens(text_file, kind):
    recipe = short(kind, label_smoothing=0.1)
    dataset = load_dataset("text", text_file, **recipe.data_options)
    trainer = Trainer(build_model(recipe, dataset)[0], dataset, recipe)
    inputs, labels = trainer.batch(0)
    with torch.no_grad():
        shares = trainer.model(inputs).double().log_softmax(-1)
    right = shares.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    expected = -(0.9 * right + 0.1 * shares.mean(-1)).mean().item()
    trainer.train_step()
    record = trainer.train_record()
    assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert record["accuracy"] == (shares.argmax(-1) == labels).double().mean().item()
    unit = {"bytes": "bits_per_byte", "characters": "bits_per_character"}[kind]
    assert record[unit] == record["loss"] / math.log(2)

    record = trainer.test_record()
    inputs, labels = dataset.test_examples(slice(None))
    with torch.no_grad():
        logits = trainer.model.eval()(inputs).double()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert record["loss"] == pytest.approx(loss, rel=1e-5)
    assert record["accuracy"] == (logits.argmax(-1) == labels).double().mean().item()
    assert record[unit] == record["loss"] / math.log(2)


def test_all_that_measures_takes_text(text_file, tmp_path):
    """The fixed examples of growing and of the gradient flow are blocks; at_init takes magnitudes."""
    more = {"grow_gradient": "holdout", "grow_batch_size": 9, "gradient_flow_every": 3}
    recipe = short("bytes", **more, gradient_flow_examples=7, at_init="magnitude")
    recipe = recipe.override({"at_init_scope": "layer"})
    assert quiet(recipe, tmp_path / "run", text_file).steps == 6
    kinds = [record["kind"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("gradient") == 2
    assert kinds.count("gradient_change") == 2
    recipe = short("characters", benchmark_steps=1)
    dataset = load_dataset("text", text_file, **recipe.data_options)
    bytes_ = compare_with_dense(recipe, dataset, torch.device("cpu"))
    assert bytes_.sparse_bytes.weights < bytes_.dense_bytes.weights / 3


class TestResumingOnAnotherText:
    @pytest.fixture
    def output(self, tmp_path, text_file):
        stopped_after(short("characters"), tmp_path / "run", text_file, 3)
        return tmp_path / "run"

    def refusal(self, output, text_file, capsys, *more):
        options = {**SHORT, **RUNS["characters"][1]}
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        arguments += ["--data-dir", str(text_file), "--output", str(output), "--resume", *more]
        before = {file: file.read_bytes() for file in output.iterdir()}
        assert main(["train", "gpt-text", *arguments]) == 2
        assert {file: file.read_bytes() for file in output.iterdir()} == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def test_the_characters_are_kept(self, output, text_file):
        assert read_checkpoint(output / "checkpoint.pt")["characters"] == "".join(
            sorted(set(text_file.read_text()))
        )

    def test_unknown_characters_are_named(self, output, text_file, capsys):
        text_file.write_text(text_file.read_text().replace("fox", "FOX"))
        message = "expected a run that knows the characters of this text, found one without 'F' and 2 more"
        assert message in self.refusal(output, text_file, capsys)

    def test_another_text_of_the_same_characters_is_refused(self, output, text_file, capsys):
        text_file.write_text(text_file.read_text().replace("fox", "oxf"))
        assert "expected a run on this text data set" in self.refusal(output, text_file, capsys)

    def test_other_tokens_are_another_recipe(self, output, text_file, capsys):
        error = self.refusal(output, text_file, capsys, "--tokens", "bytes")
        assert "holds a run of another recipe: tokens: characters there, bytes here" in error

    def test_a_line_without_bits_is_none_of_the_run(self, output, text_file, capsys):
        metrics = output / "metrics.jsonl"
        records = read_metrics(metrics)
        del records[0]["bits_per_character"]
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        message = "line 1: expected the train metrics of step 1, found"
        assert message in self.refusal(output, text_file, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-text"], "the data set 'text' needs --data-dir, a text file or a folder of .txt files"),
        (
            ["gpt-text", "--data-dir", "."],
            "expected at least 1,290 bytes, for 10 blocks of context + 1 = 129, f",
        ),
        (
            ["gpt-text", "--data-dir", ".", "--context", "9"],
            "must be from 1 to the number of training examples, 10, got 32",
        ),
        (
            ["resnet20-cifar10"],
            "the data set 'cifar10' needs --data-dir, the folder that holds its binary files",
        ),
        (
            ["resnet20-cifar10", "--data-dir", "."],
            "expected data_batch_1.bin to data_batch_5.bin and test_batch",
        ),
        (
            ["resnet20-cifar10", "--milestones", "half"],
            "milestones must be rising whole numbers with commas and",
        ),
        (
            ["gpt-text", "--at-init", "synflow"],
            "at_init must be random or magnitude with dataset text, whose",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("nine words and no more than these, as it is" * 2 + " " * 20)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["words.txt"]
