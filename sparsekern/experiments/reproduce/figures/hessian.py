"""Figures 8 and 9: spectra of the Hessian of LeNet-5, along training and around a mask update."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparsekern import analysis
from sparsekern.experiments.reproduce.document import Figure, Section, Spectrum, Table
from sparsekern.experiments.reproduce.failures import left_out_notes
from sparsekern.experiments.reproduce.figures.replay import networks_around_update
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import PaperRun

_TEXT = (
    "Eigenvalues of the exact Hessian of the mean cross-entropy with respect to the active weights and the "
    "biases, on the first {examples:,} training examples (the paper: 60,000), without a regularizer; runs "
    "of the first seed."
)
#: An eigenvalue counts as negative or positive beyond this fraction of the largest magnitude.
_NEGLIGIBLE = 1e-6


def spectrum_section(results: Results) -> Section:
    """Networks at the start and at the end of training."""
    paper = results.paper["lenet5"]
    seed = paper.seeds[0]
    runs = {
        "Scratch": paper.sparse("static", "dense", seed),
        "Scratch+": paper.sparse("static", "per_neuron", seed),
        "RigL+": paper.sparse("rigl", "per_neuron", seed),
        "Lottery": paper.lottery(seed),
    }
    panels, rows = [], []
    for end, title in (("initial", "at initialization"), ("final", "after training")):
        spectra = {}
        for label, run in runs.items():
            if results.finished([run]) and not (end == "initial" and label == "RigL+"):
                measured = _measured(results, run, end)
                spectra[label] = measured["eigenvalues"]
                rows.append(_row(f"{label}, {title}", measured))
        panels.append(Spectrum(f"LeNet-5, {title}", spectra))
    caption = "Spectrum of the Hessian of LeNet-5, 95 % sparse. RigL+ starts where Scratch+ does."
    title = "Figure 8: the Hessian before and after training"
    return _section(results, title, rows, Figure("fig8", caption, panels), runs)


def update_spectrum_section(results: Results) -> Section:
    """Networks right before and right after a mask update in the middle of training."""
    paper = results.paper["lenet5"]
    seed = paper.seeds[0]
    runs = {
        label: paper.sparse(method, "per_neuron", seed)
        for label, method in (("RigL+", "rigl"), ("SET+", "set"))
    }
    panels, rows = [], []
    for label, run in runs.items():
        if not results.finished([run]):
            continue
        step = _update_step(run)
        around = dict(zip(("before", "after"), _around(results, run, step)))
        spectra = {when: measured["eigenvalues"] for when, measured in around.items()}
        panels.append(Spectrum(f"LeNet-5, {label}, step {step:,}", spectra))
        rows += [_row(f"{label}, {when}", measured) for when, measured in around.items()]
    caption = "Spectrum of the Hessian of LeNet-5, 95 % sparse, right before and right after a mask update."
    title = "Figure 9: the Hessian around a mask update"
    return _section(results, title, rows, Figure("fig9", caption, panels), runs)


def _section(
    results: Results, title: str, rows: list[list[str]], figure: Figure, runs: Mapping[str, PaperRun]
) -> Section:
    headers = [
        "network",
        "most negative",
        "largest",
        "negative, of all",
        "positive, of all",
        "seconds (threads)",
    ]
    notes = [
        f"Eigenvalues count as negative or positive beyond {_NEGLIGIBLE:g} of the largest magnitude. Seconds "
        "are those of the Hessian and its eigenvalues.",
        *left_out_notes(results, {label: [run] for label, run in runs.items()}),
    ]
    text = _TEXT.format(examples=_examples(results))
    return Section(title, [text], [Table(headers, rows, notes)], [figure])


def _examples(results: Results) -> int:
    return min(len(results.dataset.train_labels), 500 if results.quick else 10_000)


def _update_step(run: PaperRun) -> int:
    """The last update in the first quarter of training, where updates are still large."""
    every = run.recipe.update_every
    return max(run.recipe.steps // 4 // every, 1) * every


def _measured(results: Results, run: PaperRun, end: str) -> dict[str, Any]:
    inputs = {"run": run.folder, "end": end, "examples": _examples(results)}

    def measure() -> dict[str, Any]:
        return _spectrum_of(results, results.initial(run) if end == "initial" else results.final(run))

    return results.cached("hessian", inputs, measure)


def _around(results: Results, run: PaperRun, step: int) -> list[dict[str, Any]]:
    inputs: dict[str, Any] = {"run": run.folder, "step": step, "examples": _examples(results)}

    def measure() -> list[dict[str, Any]]:
        networks = networks_around_update(results, run, step)
        return [_spectrum_of(results, network) for network in networks]

    return results.cached("hessian-update", inputs, measure)


def _spectrum_of(results: Results, network: nn.Module) -> dict[str, Any]:
    """Eigenvalues, ascending, and how long they took."""
    examples = _examples(results)
    images, labels = results.dataset.train_images[:examples], results.dataset.train_labels[:examples]
    started = time.perf_counter()
    found = analysis.hessian(network, images, labels).eigenvalues().tolist()
    seconds = time.perf_counter() - started
    return {
        "eigenvalues": [float(f"{value:.6g}") for value in found],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }


def _row(label: str, measured: dict[str, Any]) -> list[str]:
    eigenvalues = measured["eigenvalues"]
    bound = _NEGLIGIBLE * max(map(abs, eigenvalues))
    negative = sum(value < -bound for value in eigenvalues)
    positive = sum(value > bound for value in eigenvalues)
    count = len(eigenvalues)
    return [
        label,
        f"{min(eigenvalues):.3g}",
        f"{max(eigenvalues):.3g}",
        f"{negative:,} of {count:,}",
        f"{positive:,} of {count:,}",
        f"{measured['seconds']:.0f} ({measured['threads']})",
    ]
