"""Figures 2, 3 and 7: the norm of the gradient while training, and what mask updates do to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from sparsekern import analysis
from sparsekern.experiments.reproduce.document import Curves, Figure, Section, Series, Table
from sparsekern.experiments.reproduce.failures import accuracy_notes, left_out_notes
from sparsekern.experiments.reproduce.figures.signal import LABELS
from sparsekern.experiments.reproduce.paper import INVERTED
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import NETWORKS, PaperRun, PaperRuns
from sparsekern.experiments.reproduce.statistics import RULE, Sample, printed_text, verdict

_NORM = "L2 norm of the gradient"
_EVERY = "on the first 1,000 training examples, without a regularizer, over active weights and biases"


def flow_section(results: Results, network: str, name: str, number: str) -> Section:
    """The gradient's norm along the runs of a network."""
    paper = results.paper[network]
    groups = {
        "static masks": {
            "Dense": [paper.dense(seed) for seed in paper.seeds],
            "Small-Dense": [paper.small_dense(seed) for seed in paper.seeds],
            "Lottery": [paper.lottery(seed) for seed in paper.seeds],
            "Scratch": _sparse(paper, "static", "dense"),
            "Scratch+": _sparse(paper, "static", "per_neuron"),
        },
        "masks that are updated": {
            "Scratch+": _sparse(paper, "static", "per_neuron"),
            "SET": _sparse(paper, "set", "dense"),
            "SET+": _sparse(paper, "set", "per_neuron"),
            "RigL": _sparse(paper, "rigl", "dense"),
            "RigL+": _sparse(paper, "rigl", "per_neuron"),
        },
    }
    panels = [
        Curves(f"{LABELS[network]}, {title}", "training step", _NORM, _flows(results, lines), log_y=True)
        for title, lines in groups.items()
    ]
    caption = (
        f"Gradient flow of the {LABELS[network]} during training: {_NORM} {_EVERY}; mean and standard "
        "deviation over runs (no band where it would reach 0). A plus marks the paper's initialization, its "
        "absence the original one."
    )
    title = f"Figure {number}: gradient flow during training, {LABELS[network]}"
    notes = left_out_notes(
        results, {label: runs for lines in groups.values() for label, runs in lines.items()}
    )
    return Section(title, notes, [], [Figure(name, caption, panels)])


def update_section(results: Results) -> Section:
    """What an update of the masks changes, for both networks."""
    panels, rows, notes = [], [], []
    for network in NETWORKS:
        paper = results.paper[network]
        rows.append(_inverted_row(results, network))
        lines = {
            "SET+": _sparse(paper, "set", "per_neuron"),
            "RigL+": _sparse(paper, "rigl", "per_neuron"),
            "RigL Inverted+": paper.inverted(),
        }
        series = [line for label, runs in lines.items() if (line := _changes(results, label, runs))]
        notes += left_out_notes(
            results, {f"{LABELS[network]}, {label}": runs for label, runs in lines.items()}
        )
        y_label = f"change of the {_NORM}"
        panels.append(Curves(LABELS[network], "training step", y_label, series, zero_line=True))
    caption = (
        f"Effect of mask updates: {_NORM} right after an update less that right before it, {_EVERY}; mean "
        "and standard deviation over runs."
    )
    headers = ["RigL Inverted+, test accuracy", "paper", "here, mean ± std (runs)", "agreement"]
    inverted = {
        f"{LABELS[network]}, RigL Inverted+": results.paper[network].inverted() for network in NETWORKS
    }
    rule = [] if results.quick else [RULE]
    table = Table(headers, rows, [*rule, *accuracy_notes(results, inverted)])
    return Section("Figure 3: effect of mask updates", notes, [table], [Figure("fig3", caption, panels)])


def _inverted_row(results: Results, network: str) -> list[str]:
    accuracies = [results.accuracy(run) for run in results.paper[network].inverted()]
    sample = Sample.of([None if a is None else 100 * a for a in accuracies])
    printed = INVERTED if network == "lenet5" else None
    agreement = "" if results.quick else verdict(sample, printed)
    return [LABELS[network], printed_text(printed), sample.text(), agreement]


def _sparse(paper: PaperRuns, method: str, init: str) -> list[PaperRun]:
    return [paper.sparse(method, init, seed) for seed in paper.seeds]


def _flows(results: Results, lines: dict[str, list[PaperRun]]) -> list[Series]:
    series = []
    for label, runs in lines.items():
        finished = results.finished(runs)
        if not finished:
            continue
        histories = [_history(results, run) for run in finished]
        steps = [step for step, _ in histories[0]]
        series.append(_mean(label, steps, [[norm for _, norm in history] for history in histories]))
    return series


def _history(results: Results, run: PaperRun) -> list[tuple[int, float]]:
    """Steps and norms, from the initial network on."""
    records = [(record["step"], record["norm"]) for record in results.records(run, "gradient")]
    size = run.recipe.gradient_flow_examples
    images, labels = results.dataset.train_images[:size], results.dataset.train_labels[:size]

    def at_start() -> float:
        network = results.initial(run)
        return analysis.gradient_flow(network, lambda model: F.cross_entropy(model(images), labels)).norm

    return [(0, results.cached("initial-flow", {"run": run.folder}, at_start)), *records]


def _changes(results: Results, label: str, runs: Sequence[PaperRun]) -> Series | None:
    records = [results.records(run, "gradient_change") for run in results.finished(runs)]
    records = [history for history in records if history]
    if not records:
        return None
    changes = [[record["after"] - record["before"] for record in history] for history in records]
    return _mean(label, [record["step"] for record in records[0]], changes)


def _mean(label: str, steps: Sequence[int], values: Sequence[Sequence[float]]) -> Series:
    samples = [Sample(tuple(at_step)) for at_step in zip(*values)]
    spread = [sample.std for sample in samples] if len(values) > 1 else []
    return Series(label, [float(step) for step in steps], [sample.mean for sample in samples], spread)
