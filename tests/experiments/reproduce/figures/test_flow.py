"""Figures 2, 3 and 7: curves of made-up records, and the first point of a network whose gradient is known."""

import json

import numpy
import pytest
import torch
from torch import nn

from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.errors import CheckpointError
from sparsekern.experiments.reproduce.figures.flow import flow_section, update_section
from sparsekern.experiments.reproduce.statistics import RULE

SEEDS = (3, 4, 7)
#: The runs of each curve, by seed: method, init, and the seeds of data, initial weights and mask.
RUNS = {
    "Dense": lambda seed: ("dense", "dense", seed, seed, None),
    "Small-Dense": lambda seed: ("small_dense", "dense", seed, seed, None),
    "Lottery": lambda seed: ("static", "dense", 1000 + seed, seed, seed),
    "Scratch": lambda seed: ("static", "dense", 1000 + seed, 1000 + seed, seed),
    "Scratch+": lambda seed: ("static", "per_neuron", 1000 + seed, 1000 + seed, seed),
    "SET": lambda seed: ("set", "dense", 1000 + seed, 1000 + seed, seed),
    "SET+": lambda seed: ("set", "per_neuron", 1000 + seed, 1000 + seed, seed),
    "RigL": lambda seed: ("rigl", "dense", 1000 + seed, 1000 + seed, seed),
    "RigL+": lambda seed: ("rigl", "per_neuron", 1000 + seed, 1000 + seed, seed),
    "RigL Inverted+": lambda seed: ("rigl_inverted", "per_neuron", 1000 + seed, 1000 + seed, seed),
}
STATIC = ["Dense", "Small-Dense", "Lottery", "Scratch", "Scratch+"]
UPDATED = ["Scratch+", "SET", "SET+", "RigL", "RigL+"]
CHANGED = ["SET+", "RigL+", "RigL Inverted+"]
NAMES = {"lenet5": "LeNet-5", "mlp": "MLP"}
NORM_STEPS, UPDATE_STEPS = [200, 400, 600, 800], [100, 200, 300, 400]


def draw(kind, network, label, seed, count):
    """The made-up numbers of a run, different for each."""
    key = [
        ["norm", "before", "after", "weights"].index(kind),
        [*NAMES].index(network),
        [*RUNS].index(label),
        seed,
    ]
    return numpy.random.default_rng(key).uniform(0.5, 2, count)


def place_of(facts):
    """The curve and the seed of a run."""
    ((label, seed),) = [(name, s) for name, of in RUNS.items() for s in SEEDS if of(s) == facts[1:]]
    return label, seed


def weights_of(network, label, seed):
    """Weight (4, 3) and bias (4,) of the network that a run starts from."""
    numbers = draw("weights", network, label, seed, 16).reshape(4, 4)
    return numbers[:, :3], numbers[:, 3]


def initial(facts):
    model = nn.Linear(3, 4, dtype=torch.float64)
    weight, bias = weights_of(facts.network, *place_of(facts))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.bias.copy_(torch.from_numpy(bias))
    return model


@pytest.fixture(scope="module")
def dataset():
    """Of the training examples, those after the first 1,000 would change every norm."""
    images = numpy.random.default_rng(0).normal(size=(1003, 3))
    images[1000:] *= 1000
    images = torch.from_numpy(images)
    return InMemoryDataset("made-up", images, torch.arange(1003) % 4, images[:0], torch.arange(0), "0" * 64)


def norm_at_start(dataset, network, label, seed):
    x, y = dataset.train_images[:1000].numpy(), dataset.train_labels[:1000].numpy()
    weight, bias = weights_of(network, label, seed)
    logits = x @ weight.T + bias
    odds = numpy.exp(logits)
    by_logit = (odds / odds.sum(1, keepdims=True) - numpy.eye(4)[y]) / 1000
    return numpy.sqrt(((by_logit.T @ x) ** 2).sum() + (by_logit.sum(0) ** 2).sum())


@pytest.fixture
def results(made_up, dataset):
    """Makes results with the records of the runs of `labels`; ``ends`` says of some runs how they ended."""

    def make(labels, ends=None, without_updates=(), **options):
        def outcome(facts):
            return (ends or {}).get(facts, (ends or {}).get(facts[1:], 0.9))

        made = made_up(outcome, initial=initial, dataset=dataset, **options)
        for network in NAMES:
            for label in labels:
                for seed in SEEDS:
                    folder = made.folder(network, *RUNS[label](seed))
                    folder.mkdir(parents=True)
                    write_metrics(folder, network, label, seed, (label, seed) not in without_updates)
        return made.results

    return make


def write_metrics(folder, network, label, seed, updates):
    columns = {kind: draw(kind, network, label, seed, 4) for kind in ("norm", "before", "after")}
    records = [{"kind": "gradient", "step": s, "norm": n} for s, n in zip(NORM_STEPS, columns["norm"])]
    if updates:
        records += [
            {"kind": "gradient_change", "step": step, "before": before, "after": after}
            for step, before, after in zip(UPDATE_STEPS, columns["before"], columns["after"])
        ]
    records += [{"kind": "test", "step": 600, "norm": 9.0, "before": 9.0, "after": 0.0}]
    records.sort(key=lambda record: record["step"])
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def flows(dataset, network, label, seeds=SEEDS):
    """One row a run."""
    return numpy.array(
        [
            [norm_at_start(dataset, network, label, seed), *draw("norm", network, label, seed, 4)]
            for seed in seeds
        ]
    )


def changes(network, label, seeds=SEEDS):
    return numpy.array(
        [draw("after", network, label, s, 4) - draw("before", network, label, s, 4) for s in seeds]
    )


def check(series, label, steps, values):
    """A curve against one row of values a run."""
    assert series.label == label
    assert series.x == steps
    numpy.testing.assert_allclose(series.y, values.mean(0), rtol=1e-9)
    spread = values.std(0, ddof=0) if len(values) > 1 else []
    numpy.testing.assert_allclose(series.spread, spread, rtol=1e-9)


@pytest.mark.parametrize(("network", "number"), [("lenet5", "2"), ("mlp", "7")])
def test_curves_are_of_their_own_runs_from_the_initial_network_on(results, dataset, network, number):
    section = flow_section(results({*STATIC, *UPDATED}), network, f"fig{number}", number)
    name = NAMES[network]
    assert section.title == f"Figure {number}: gradient flow during training, {name}"
    assert section.text == []
    (figure,) = section.figures
    assert figure.name == f"fig{number}"
    assert name in figure.caption
    assert [panel.title for panel in figure.panels] == [
        f"{name}, static masks",
        f"{name}, masks that are updated",
    ]
    for panel, labels in zip(figure.panels, (STATIC, UPDATED), strict=True):
        assert (panel.x_label, panel.y_label) == ("training step", "L2 norm of the gradient")
        assert panel.log_y
        for series, label in zip(panel.series, labels, strict=True):
            check(series, label, [0, *NORM_STEPS], flows(dataset, network, label))


def test_runs_without_an_end_are_not_in_the_curves(results, dataset):
    ends = {RUNS["Dense"](4): "failed", RUNS["RigL"](3): "diverged", RUNS["RigL"](7): "failed"}
    ends |= {RUNS["Lottery"](seed): "diverged" for seed in SEEDS}
    section = flow_section(results({*STATIC, *UPDATED}, ends), "lenet5", "fig2", "2")
    static, updated = section.figures[0].panels
    assert [series.label for series in static.series] == ["Dense", "Small-Dense", "Scratch", "Scratch+"]
    assert [series.label for series in updated.series] == UPDATED
    check(static.series[0], "Dense", [0, *NORM_STEPS], flows(dataset, "lenet5", "Dense", (3, 7)))
    check(updated.series[3], "RigL", [0, *NORM_STEPS], flows(dataset, "lenet5", "RigL", (4,)))
    assert section.text == [
        "Dense: 1 of 3 runs failed and are left out.",
        "Lottery: 3 of 3 runs diverged and are left out.",
        "RigL: 1 of 3 runs diverged and are left out, 1 of 3 runs failed and are left out.",
    ]


def test_a_run_without_its_records_is_an_error(results):
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: expected the metrics of a finished run"):
        flow_section(results({*STATIC, *UPDATED} - {"SET"}), "lenet5", "fig2", "2")


def test_changes_are_after_less_before_for_both_networks(results):
    section = update_section(results(CHANGED))
    (figure,) = section.figures
    assert (section.title, figure.name) == ("Figure 3: effect of mask updates", "fig3")
    assert section.text == []
    assert [panel.title for panel in figure.panels] == ["LeNet-5", "MLP"]
    for panel, network in zip(figure.panels, NAMES, strict=True):
        assert (panel.x_label, panel.y_label) == ("training step", "change of the L2 norm of the gradient")
        assert panel.zero_line
        assert not panel.log_y
        for series, label in zip(panel.series, CHANGED, strict=True):
            check(series, label, UPDATE_STEPS, changes(network, label))
            assert min(series.y) < max(series.y)


def test_runs_without_an_end_or_without_updates_are_not_in_the_changes(results):
    ends = {RUNS["SET+"](seed): "failed" for seed in SEEDS} | {RUNS["RigL+"](7): "diverged"}
    section = update_section(results(CHANGED, ends, without_updates=[("RigL Inverted+", 3)]))
    for panel, network in zip(section.figures[0].panels, NAMES, strict=True):
        rigl, inverted = panel.series
        check(rigl, "RigL+", UPDATE_STEPS, changes(network, "RigL+", (3, 4)))
        check(inverted, "RigL Inverted+", UPDATE_STEPS, changes(network, "RigL Inverted+", (4, 7)))
    assert section.text == [
        f"{name}, {what}"
        for name in NAMES.values()
        for what in (
            "SET+: 3 of 3 runs failed and are left out.",
            "RigL+: 1 of 3 runs diverged and are left out.",
        )
    ]


def test_the_accuracy_of_inverted_growth(results):
    accuracies = {"lenet5": (0.8, 0.95, 0.72), "mlp": (0.61, 0.62, 0.66)}
    ends = {
        (network, *RUNS["RigL Inverted+"](seed)): value
        for network, values in accuracies.items()
        for seed, value in zip(SEEDS, values)
    }
    (table,) = update_section(results(CHANGED, ends)).tables
    assert table.headers[1:] == ["paper", "here, mean ± std (runs)", "agreement"]
    # The mean of LeNet-5 is 10.38 below; its deviation, sqrt((2.33² + 12.67² + 10.33²) / 3), is 9.53.
    assert table.rows == [
        ["LeNet-5", "92.71 ± 7.67", "82.33 ± 9.53 (3)", "agrees"],
        ["MLP", "", "63.00 ± 2.16 (3)", ""],
    ]
    assert table.notes == [RULE]


@pytest.mark.parametrize("quick", [False, True])
def test_what_diverged_counts_as_chance_and_a_quick_report_has_no_verdict(results, quick):
    ends = dict(zip(map(RUNS["RigL Inverted+"], SEEDS), ("diverged", "failed", "diverged")))
    ends[("mlp", *RUNS["RigL Inverted+"](3))] = "failed"
    (table,) = update_section(results(CHANGED, ends, quick=quick)).tables
    verdict = "" if quick else "differs: -82.71"
    assert table.rows[0] == ["LeNet-5", "92.71 ± 7.67", "10.00 ± 0.00 (2)", verdict]
    assert table.notes == [
        *([] if quick else [RULE]),
        "LeNet-5, RigL Inverted+: 2 of 3 runs diverged and count as chance, 10 %, 1 of 3 runs failed and are "
        "left out.",
        "MLP, RigL Inverted+: 1 of 3 runs diverged and count as chance, 10 %, 2 of 3 runs failed and are "
        "left out.",
    ]
