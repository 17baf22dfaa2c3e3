"""Figure 1c: how much of a signal reaches the outputs of a sparse network at its initialization."""

from __future__ import annotations

import torch

from sparsekern import analysis
from sparsekern.experiments.build import build_model
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.reproduce.accuracy import INIT_NAMES
from sparsekern.experiments.reproduce.document import Curves, Figure, Panel, Section, Series
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import INITS, NETWORKS
from sparsekern.experiments.reproduce.statistics import Sample
from sparsekern.seeds import generator

SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
LABELS = {"lenet5": "LeNet-5", "mlp": "MLP"}
_EXAMPLES = 1000


def signal_section(results: Results) -> Section:
    """Both networks, all initializations."""
    panels: list[Panel] = [_panel(results, network) for network in NETWORKS]
    caption = (
        f"Standard deviation of the outputs before the softmax, at initialization, for {_EXAMPLES:,} inputs "
        "of standard normal noise: mean and standard deviation (no band where it would reach 0) over "
        "networks with random masks of uniform sparsity."
    )
    return Section(
        "Figure 1c: signal propagation at initialization", [], [], [Figure("fig1c", caption, panels)]
    )


def _panel(results: Results, network: str) -> Curves:
    seeds = list(results.paper[network].seeds)
    inputs = {
        "recipe": results.paper[network].base.digest,
        "seeds": seeds,
        "sparsities": SPARSITIES,
        "examples": _EXAMPLES,
    }
    measured = results.cached("signal", inputs, lambda: _measure(results, network))
    series = []
    for init in INITS:
        samples = [Sample(tuple(values)) for values in measured[init]]
        means = [sample.mean for sample in samples]
        stds = [sample.std for sample in samples] if len(seeds) > 1 else []
        series.append(Series(INIT_NAMES[init], list(SPARSITIES), means, stds))
    x_label = "sparsity (fraction of zeros; spaced by the logarithm of the rest)"
    y_label = "std of the outputs (logits)"
    return Curves(LABELS[network], x_label, y_label, series, sparsity_x=True, log_y=True)


def _measure(results: Results, network: str) -> dict[str, list[list[float]]]:
    """By initialization, for each sparsity, one value a seed."""
    paper = results.paper[network]
    noise = torch.randn(_EXAMPLES, 1, 28, 28, generator=generator(0, "noise"))
    measured: dict[str, list[list[float]]] = {}
    for init in INITS:
        measured[init] = [
            [analysis.output_std(_network(paper.base, init, sparsity, seed), noise) for seed in paper.seeds]
            for sparsity in SPARSITIES
        ]
    return measured


def _network(base: Recipe, init: str, sparsity: float, seed: int) -> torch.nn.Module:
    changes = {"method": "static", "init": init, "sparsity": sparsity, "seed": seed}
    return build_model(base.override(changes))[0]
