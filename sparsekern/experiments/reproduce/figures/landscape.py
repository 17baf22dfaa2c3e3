"""Figures 5, 10 and 11: where solutions lie, and the loss on the lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparsekern import analysis
from sparsekern.experiments.evaluate import evaluate
from sparsekern.experiments.reproduce.document import Curves, Figure, Panel, Points, Section, Series, Table
from sparsekern.experiments.reproduce.failures import left_out_notes
from sparsekern.experiments.reproduce.figures.signal import LABELS
from sparsekern.experiments.reproduce.paper import DISTANCES, Printed
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import PaperRun
from sparsekern.experiments.reproduce.statistics import RULE, Sample, printed_text, verdict

GROUPS = {"lottery": "Lottery", "scratch_other_init": "Scratch"}
_TEXT = (
    "Solutions share the mask of the first pruning run. Lottery runs differ in the order of the data, "
    "Scratch runs also in the paper's initialization that they start from."
)


def positions_section(results: Results, network: str, name: str, number: str) -> Section:
    """Multidimensional scaling, and distances to the pruning solution."""
    measured = _positions(results, network)
    title = f"Figure {number}: where the solutions of the {LABELS[network]} lie"
    if measured is None:
        return Section(title, ["The runs it needs are not there."])
    panel = _points(network, measured)
    table = _distances(network, measured, _notes(results, network), results.quick)
    caption = (
        "Multidimensional scaling of the L2 distances between networks: initial and final weights, biases "
        f"included. Stress {measured['stress']:.3g} of a sum of squared distances of {measured['scale']:.3g}."
    )
    return Section(title, [_TEXT], [table], [Figure(name, caption, [panel])])


def interpolation_section(results: Results, network: str, name: str, number: str) -> Section:
    """Training loss along lines to the pruning solution."""
    title = f"Figure {number}: loss between solutions of the {LABELS[network]}"
    panels, rows = [], []
    for end, description in (("final", "solutions"), ("initial", "starting points")):
        lines = {label: _lines(results, network, group, end) for group, label in GROUPS.items()}
        series = [_series(label, values) for label, values in lines.items() if values]
        if not series:
            continue
        panels.append(_loss_panel(results, network, description, series))
        rows += [_barrier_row(f"{label}, {description}", values) for label, values in lines.items() if values]
    if not panels:
        return Section(title, ["The runs it needs are not there."])
    headers = ["line to the pruning solution, from", "barrier in nats, mean ± std (networks)"]
    notes = [
        "The barrier is the largest amount by which the loss on the segment is above the straight line "
        "between the losses of its ends.",
        *_notes(results, network),
    ]
    caption = (
        "Training loss on the line from a network (0) to the pruning solution (1), mean and standard "
        f"deviation over runs (no band where it would reach 0); {_examples(results):,} training examples."
    )
    return Section(title, [_TEXT], [Table(headers, rows, notes)], [Figure(name, caption, panels)])


def _notes(results: Results, network: str) -> list[str]:
    solutions = results.paper[network].solutions()
    return left_out_notes(results, {label: solutions[group] for group, label in GROUPS.items()})


def _examples(results: Results) -> int:
    """How many training examples losses are averaged over; the paper takes all, which is six times slower."""
    return min(len(results.dataset.train_labels), 1000 if results.quick else 10_000)


def _groups(results: Results, network: str) -> tuple[list[PaperRun], dict[str, list[PaperRun]]]:
    paper = results.paper[network]
    reference = results.finished([paper.prune(paper.seeds[0])])
    return reference, {group: results.finished(paper.solutions()[group]) for group in GROUPS}


def _positions(results: Results, network: str) -> dict[str, Any] | None:
    reference, groups = _groups(results, network)
    if not reference or not all(groups.values()):
        return None
    inputs = {
        "pruned": reference[0].folder,
        **{g: [run.folder for run in runs] for g, runs in groups.items()},
    }
    return results.cached("map", inputs, lambda: _measure_positions(results, reference[0], groups))


def _measure_positions(
    results: Results, reference: PaperRun, groups: dict[str, list[PaperRun]]
) -> dict[str, Any]:
    names, networks = ["pruned"], [results.final(reference)]
    for group, runs in groups.items():
        starts, _ = _starts(runs)
        names += [f"{group} initial"] * len(starts) + [f"{group} final"] * len(runs)
        networks += [results.initial(run) for run in starts] + [results.final(run) for run in runs]
    distances = analysis.distance_matrix(networks)
    embedding = analysis.mds(distances)
    return {
        "names": names,
        "starts": {group: _starts(runs)[1] for group, runs in groups.items()},
        "points": embedding.coordinates.tolist(),
        "stress": embedding.stress,
        "scale": float(distances.square().sum() / 2),
        "to_pruned": distances[0].tolist(),
    }


def _starts(runs: Sequence[PaperRun]) -> tuple[list[PaperRun], list[int]]:
    """One run for each network that runs start from, and for every run which of these is its own."""
    firsts: dict[tuple[object, ...], PaperRun] = {}
    for run in runs:
        firsts.setdefault(run.start, run)
    order = list(firsts)
    return list(firsts.values()), [order.index(run.start) for run in runs]


def _network(results: Results, run: PaperRun, end: str) -> nn.Module:
    return results.initial(run) if end == "initial" else results.final(run)


def _points(network: str, measured: dict[str, Any]) -> Points:
    labels = {"pruned": "Pruning solution"}
    for group, label in GROUPS.items():
        labels |= {f"{group} initial": f"{label} start", f"{group} final": f"{label} end"}
    groups: dict[str, list[tuple[float, float]]] = {label: [] for label in labels.values()}
    for name, (x, y) in zip(measured["names"], measured["points"]):
        groups[labels[name]].append((x, y))
    paths = [
        (f"{label} start", start, f"{label} end", end)
        for group, label in GROUPS.items()
        for end, start in enumerate(measured["starts"][group])
    ]
    return Points(LABELS[network], groups, paths)


def _distances(network: str, measured: dict[str, Any], left_out: list[str], quick: bool) -> Table:
    headers = ["distance to the pruning solution"]
    headers += [f"{what}, {end}" for end in ("start", "end") for what in ("paper", "here", "agreement")]
    rows = []
    for group, label in GROUPS.items():
        key = "scratch" if group == "scratch_other_init" else group
        printed = DISTANCES.get(key) if network == "lenet5" else None
        row = [label]
        for position, end in enumerate(("initial", "final")):
            found = zip(measured["names"], measured["to_pruned"])
            sample = Sample(tuple(distance for name, distance in found if name == f"{group} {end}"))
            paper = None if printed is None else Printed(printed[position])
            row += [printed_text(paper), sample.text(), "" if quick else verdict(sample, paper)]
        rows.append(row)
    notes = [
        "L2 norms over all weights and biases; mean ± standard deviation (networks: tickets of one mask all "
        "start from one)."
    ]
    rule = [RULE] if network == "lenet5" and not quick else []
    return Table(headers, rows, [*notes, *rule, *left_out])


def _lines(results: Results, network: str, group: str, end: str) -> list[list[float]]:
    """One line of losses a network: several runs may start from the same one."""
    reference, groups = _groups(results, network)
    if not reference:
        return []
    runs = groups[group] if end == "final" else _starts(groups[group])[0]
    return [_line(results, run, end, reference[0]) for run in runs]


def _line(results: Results, run: PaperRun, end: str, reference: PaperRun) -> list[float]:
    examples = _examples(results)
    inputs = {"pruned": reference.folder, "run": run.folder, "end": end, "examples": examples}
    return results.cached("line", inputs, lambda: _losses(results, run, end, reference, examples))


def _losses(results: Results, run: PaperRun, end: str, reference: PaperRun, examples: int) -> list[float]:
    images, labels = results.dataset.train_images[:examples], results.dataset.train_labels[:examples]
    pruned = results.final(reference)
    alphas = analysis.paper_alphas()

    def loss(model: nn.Module) -> float:
        return evaluate(model, images, labels).loss

    return analysis.interpolate(pruned, _network(results, run, end), pruned, alphas, loss)


def _series(label: str, lines: Sequence[Sequence[float]]) -> Series:
    samples = [Sample(tuple(losses)) for losses in zip(*lines)]
    spread = [sample.std for sample in samples] if len(lines) > 1 else []
    return Series(label, analysis.paper_alphas(), [sample.mean for sample in samples], spread)


def _loss_panel(results: Results, network: str, description: str, series: list[Series]) -> Panel:
    title = f"{LABELS[network]}, from {description}"
    return Curves(
        title,
        "position on the line (0: network, 1: pruning solution)",
        "training loss (nats)",
        series,
        log_y=True,
    )


def _barrier_row(label: str, lines: Sequence[Sequence[float]]) -> list[str]:
    barriers = [analysis.barrier(losses, analysis.paper_alphas()) for losses in lines]
    return [label, Sample(tuple(barriers)).text(3)]
