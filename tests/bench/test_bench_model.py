"""``sparsekern bench MODEL``: what is measured and written, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from sparsekern.bench import measure, model_plot
from sparsekern.bench.command import build_parser
from sparsekern.bench.contenders import PATTERNS
from sparsekern.cli import main
from sparsekern.timing import Timing

MODULE = "bench_models_of_a_test"
SOURCE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.narrow(torch.relu(self.widen(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width=8, odd=False):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 3, bias=False)
        self.unused = nn.Linear(width, width)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tokens(vocabulary):
    return nn.Sequential(nn.Embedding(vocabulary, 8), nn.Linear(8, 8))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(8)

    def forward(self, *, x, scale):
        return {"loss": (scale * self.linear(x)).sum(), "other": x}


def named():
    return Named(), {"x": torch.randn(4, 6), "scale": 2.0}


class ReadsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x @ self.linear.weight


def single():
    return nn.Linear(8, 8)


def frozen():
    return nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)


def no_gradient():
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    return Detached(nn.Linear(8, 8))


def normal():
    return nn.LayerNorm(8)


def sparse():
    import sparsekern

    model = nn.Sequential(nn.Linear(8, 8))
    sparsekern.sparsify_(model, 0.5)
    return model


def channels_last():
    layers = [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 4)]
    x = torch.randn(2, 4, 4, 4)
    last = {"memory_format": torch.channels_last}
    return nn.Sequential(*layers).to(**last), x.to(**last)


def failing():
    raise RuntimeError("first line\\nsecond line")


def text():
    return "text"


def on_meta():
    return nn.Linear(8, 8, device="meta")


def lazy_head():
    return nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 8))


instance = nn.Linear(2, 2)
number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The folder that the command runs in, with a module and one that cannot be imported."""
    path = tmp_path_factory.mktemp("models")
    (path / f"{MODULE}.py").write_text(SOURCE)
    (path / f"{MODULE}_exits.py").write_text("import sys\nsys.exit('usage: something')\n")
    before = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        threads = torch.get_num_threads()
        yield path
        torch.set_num_threads(threads)
    sys.path[:] = before
    sys.modules.pop(MODULE, None)


def bench(*arguments):
    try:
        return main(["bench", *map(str, arguments), "--seconds", "1e-4", "--threads", "1"])
    except SystemExit as ended:
        return ended.code


@pytest.fixture(scope="module")
def measured(folder):
    """A model measured with all patterns: what is printed and written."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, **options: printed.append(" ".join(map(str, parts))))
        code = bench(
            *(f"{MODULE}:Net", "--model-args", "width=12", "--input-shape", "7x5", "--batch", "3"),
            *("--pattern", "unstructured,block,2:4", "--sparsities", "0.9,0.5", "--optimizer", "adamw"),
            *("--json", folder / "found.json", "--plot", folder / "found.png"),
        )
    assert code == 0, printed
    return "\n".join(printed), json.loads((folder / "found.json").read_text())


def test_the_layers_of_a_kind_are_timed_once(measured):
    layers = measured[1]["layers"]
    assert [each["names"] for each in layers] == [
        ["first"],
        ["blocks.0.widen", "blocks.1.widen"],
        ["blocks.0.narrow", "blocks.1.narrow"],
        ["head"],
    ]
    assert [each["weight_shape"] for each in layers] == [[12, 5], [24, 12], [12, 24], [3, 12]]
    assert [each["input_shapes"] for each in layers] == [
        [[3, 7, 5]],
        [[3, 7, 12]],
        [[3, 7, 24]],
        [[3, 7, 12]],
    ]
    # A first layer's backward pass has one gradient less.
    assert [each["input_gradient"] for each in layers] == [False, True, True, True]
    assert all(each["dense"][f"{what}_ms"] > 0 for each in layers for what in ("step", "evaluation"))


def test_every_variant_is_measured_where_it_fits(measured):
    layers = measured[1]["layers"]
    names = [("unstructured", 0.5), ("unstructured", 0.9), ("block", 0.5), ("block", 0.9), ("2:4", 0.5)]
    for each in layers:
        assert [(sparse["pattern"], sparse["sparsity"]) for sparse in each["sparse"]] == names
        # Five inputs are no groups of four.
        assert ("stays_dense" in each["sparse"][-1]) == (each["names"] == ["first"])
        assert all(sparse["step_ms"] > 0 for sparse in each["sparse"] if "stays_dense" not in sparse)
    assert measured[1]["left"] == {"unused": "no call in a step"}


def test_memory_is_counted_exactly(measured):
    whole = measured[1]["whole"]
    weights = 12 * 5 + 2 * 2 * 12 * 24 + 3 * 12 + 12 * 12
    others = 12 + 2 * (24 + 12 + 2 * 12) + 12
    assert measured[1]["about"]["parameters"] == weights + others
    # A layer that is not called is converted as well.
    assert measured[1]["about"]["convertible"] == weights
    dense = whole["dense"]
    assert dense["weights_bytes"] == 4 * (weights + others)
    used = weights + others - (12 * 12 + 12)
    steps = 3 + 2 * 6  # AdamW counts the steps of each parameter, in float32
    assert dense["gradients_bytes"] == 4 * used
    assert dense["optimizer_bytes"] == 4 * (2 * used + steps)
    assert dense["pattern_bytes"] == 0
    half = whole["sparse"][0]
    assert half["weights_bytes"] == 4 * (round(0.5 * weights) + others)
    assert half["pattern_bytes"] > 0
    masked = whole["masked_dense"]
    assert masked["pattern_bytes"] == 4 * weights
    for each in (dense, half, masked, *whole["sparse"]):
        held = sum(each[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "pattern"))
        assert each["peak_bytes"] > held


def test_the_tables_fit_a_terminal_and_end_in_advice(measured):
    printed = measured[0]
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"{MODULE}:Net (Net): ")
    assert "inputs 3x7x5; AdamW; float32; CPU, 1 thread" in printed
    for pattern in ("unstructured", "block", "2:4"):
        assert f"{pattern}, training: times as fast as dense" in printed
    assert re.search(r"^blocks\.\*\.widen +2 +24x12 ", printed, re.MULTILINE)
    assert printed.index("whole model") < printed.index("Advice\n") < printed.index("Held to train")
    assert measured[1]["advice"]
    assert measured[1]["whole"]["load"] >= 0
    assert all(isinstance(each["exclude"], list) for each in measured[1]["exclude"])


def test_the_picture_is_one(measured, folder):
    assert (folder / "found.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.glob("found*")) == ["found.json", "found.png"]


@pytest.fixture
def untimed(monkeypatch):
    """Everything runs once, and takes a second."""

    def once(runs, **options):
        for run in runs.values():
            run()
        return dict.fromkeys(runs, Timing(1.0, 1.0, 0.0, 1))

    monkeypatch.setattr(measure, "interleave", once)


def test_a_recipe_brings_batch_and_optimizer(untimed, capsys):
    assert bench("lenet5-digits", "--sparsities", "0.9", "--batch", "2", "--exclude", "conv*") == 0
    printed = capsys.readouterr().out
    assert "lenet5-digits (LeNet5): 44,426 parameters, 41,640 of them" in printed
    assert "inputs 2x1x28x28; SGD" in printed
    assert "conv1  excluded by 'conv*'" in printed


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [("resnet20-cifar10", (2, 10)), ("mlp-mnist", (2, 10)), ("gpt-text", (2, 128, 256))],
)
def test_inputs_of_recipes_fit_their_models(recipe, shape):
    from sparsekern.bench.subject import Wanted, find

    subject = find(Wanted(recipe, {}, None, None, 2))
    with torch.no_grad():
        output = subject.model(*subject.args)
    assert output.shape == shape
    assert subject.loss(output).ndim == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tokens", "--model-args", "vocabulary=9", "--input-tokens", "9x4"), "inputs 32x4 int64"),
        # Lazy layers, keywords, and a loss of the model's own.
        (("named",), "inputs 4x6"),
        (("single", "--input-shape", "8"), "inputs 32x8; AdamW"),
        (("channels_last", "--autocast", "bfloat16"), "float32, autocast to bfloat16"),
    ],
)
def test_kinds_of_models(untimed, arguments, expected, capsys):
    name, *others = arguments
    assert bench(f"{MODULE}:{name}", *others, "--sparsities", "0.5", "--pattern", "block,2:4") == 0
    assert expected in capsys.readouterr().out


def test_a_pattern_that_no_layer_fits_is_left_out(untimed, capsys):
    arguments = ("--model-args", "vocabulary=9", "--input-tokens", "9x4", "--sparsities", "0.5")
    assert (
        bench(f"{MODULE}:Net", "--input-shape", "5", "--pattern", "2:4", "--exclude", "b*", "h*", "u*") == 2
    )
    assert "multiple of 4" in capsys.readouterr().err
    assert bench(f"{MODULE}:tokens", *arguments, "--pattern", "2:4,block") == 0


SHAPE = ("--input-shape", "8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_module_here:x", *SHAPE], "'no_such_module_here' cannot be imported: ModuleNotFoundError"),
        ([f"{MODULE}_exits:x", *SHAPE], "cannot be imported: SystemExit: usage: something"),
        ([f"{MODULE}.py:single", *SHAPE], f"a module is named as import does it: {MODULE}:single"),
        ([f"{MODULE}:nothing", *SHAPE], "has no 'nothing'"),
        ([f"{MODULE}:", *SHAPE], "must be MODULE:CALLABLE"),
        ([f"{MODULE}:number", *SHAPE], "must be callable, got int"),
        ([f"{MODULE}:instance", *SHAPE], "must return a model when it is called, got a Linear itself"),
        ([f"{MODULE}:failing", *SHAPE], "failing() failed: RuntimeError: first line"),
        ([f"{MODULE}:text", *SHAPE], "must return a torch.nn.Module, or one and its inputs, got str"),
        ([f"{MODULE}:tokens", *SHAPE], "tokens() failed: TypeError"),
        ([f"{MODULE}:Net", "--model-args", "wide=3", *SHAPE], "Net(wide=3) failed: TypeError"),
        ([f"{MODULE}:Net", "--model-args", "wide"], "must be KEY=VALUE, got 'wide'"),
        ([f"{MODULE}:Net"], "one of --input-shape and --input-tokens must be given"),
        (
            [f"{MODULE}:Net", "--input-shape", "5", "--input-tokens", "9x9"],
            "--input-shape and --input-tokens",
        ),
        ([f"{MODULE}:Net", "--input-shape", "3x-1"], "must be the sizes of one example"),
        ([f"{MODULE}:Net", "--input-tokens", "9"], "must be VOCABULARYxLENGTH"),
        ([f"{MODULE}:Net", *SHAPE], "Net does not take inputs of shape 32x8: RuntimeError: "),
        ([f"{MODULE}:named", "--batch", "3"], "--batch must be left out where"),
        ([f"{MODULE}:frozen", *SHAPE], "must have parameters that require a gradient"),
        ([f"{MODULE}:no_gradient", *SHAPE], "must hold a tensor that needs a gradient"),
        ([f"{MODULE}:normal", *SHAPE], "model must have an nn.Linear or nn.Conv2d to convert"),
        ([f"{MODULE}:sparse", *SHAPE], "the model must be dense, got one whose 0 is already sparse"),
        ([f"{MODULE}:ReadsWeight", *SHAPE], "does not train with 50 % unstructured layers (--exclude"),
        ([f"{MODULE}:single", *SHAPE, "--exclude", "fc9"], "got 'fc9', which matches none"),
        ([f"{MODULE}:single", *SHAPE, "--sparsities", "90"], "got '90'; 90 % is 0.9"),
        ([f"{MODULE}:single", *SHAPE, "--sparsities", "0.5,x"], "must be fractions of zeros"),
        ([f"{MODULE}:single", *SHAPE, "--sparsities", "0.9", "--pattern", "2:4"], "must be left out for"),
        ([f"{MODULE}:single", *SHAPE, "--pattern", "2:4-int8"], "among unstructured, block, 2:4 for a model"),
        ([f"{MODULE}:single", *SHAPE, "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        ([f"{MODULE}:single", *SHAPE, "--device", "meta"], "--device must be cpu or cuda, got meta"),
        ([f"{MODULE}:single", *SHAPE, "--device", "gpu"], "--device must be cpu or cuda, got gpu"),
        ([f"{MODULE}:on_meta", *SHAPE], "must return a model with its weights in memory, got one on meta"),
        ([f"{MODULE}", *SHAPE], "a model of your own is MODULE:CALLABLE, a layer OUTxIN"),
        ([f"{MODULE}:single", *SHAPE, "--plot", "found.txt"], "must end in .png, .svg, .pdf"),
        ([f"{MODULE}:single", *SHAPE, "--json", "no/such/folder"], "must be in a folder that exists"),
        ([f"{MODULE}:single", *SHAPE, "--json", "."], "must be a file"),
        ([f"{MODULE}:single", *SHAPE, "--tokens", "4"], "--tokens is for a layer, got it for a model"),
        ([f"{MODULE}:single", *SHAPE, "--sparsity", "0.9"], "a model takes --sparsities"),
        (["8x8", "--batch", "4"], "--batch is for a model, got it for a layer"),
        (["8x8", "--pattern", "block,2:4"], "--pattern must be one of them for a layer"),
        (["lenet5-digit"], "did you mean lenet5-digits"),
        (["lenet5-digits", *SHAPE], "--input-shape must be left out for a recipe"),
        (["lenet5-digits", "--model-args", "a=1"], "--model-args must be left out for a recipe"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert bench(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_picture_needs_matplotlib_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench(f"{MODULE}:single", *SHAPE, "--plot", "other.png") == 2
    assert capsys.readouterr().err.endswith("--plot needs the package matplotlib: pip install matplotlib\n")


def test_the_picture_has_a_style_for_every_pattern():
    assert set(model_plot.STYLES) == set(PATTERNS)


def test_commands_of_the_guide_are_accepted():
    text = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    commands = re.findall(r"^sparsekern bench .*$", text, re.MULTILINE)
    commands += re.findall(r"`(sparsekern bench [^`]*--[^`]*)`", text)
    assert len(commands) >= 6
    for command in commands:
        options = build_parser().parse_args(shlex.split(command)[2:])
        assert options.what


def test_help_names_both_kinds(capsys):
    assert bench("--help") == 0
    printed = capsys.readouterr().out
    assert "a layer:" in printed
    assert "a model:" in printed
