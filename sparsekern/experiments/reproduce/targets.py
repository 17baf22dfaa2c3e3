"""What can be reproduced: each target's runs, and the section that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparsekern.experiments.reproduce.accuracy import accuracy_section, imagenet_section
from sparsekern.experiments.reproduce.document import Section
from sparsekern.experiments.reproduce.figures.flow import flow_section, update_section
from sparsekern.experiments.reproduce.figures.hessian import spectrum_section, update_spectrum_section
from sparsekern.experiments.reproduce.figures.landscape import interpolation_section, positions_section
from sparsekern.experiments.reproduce.figures.signal import signal_section
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import SPARSE_METHODS, PaperRun, PaperRuns
from sparsekern.experiments.reproduce.similarity import agreement_section, divergence_section

Paper = Mapping[str, PaperRuns]


@dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes
    ----------
    about : str
        One line of help.
    runs : callable
        Of the paper's runs by network, those that it needs.
    sections : callable
        Makes its part of the report of the results.
    """

    about: str
    runs: Callable[[Paper], list[PaperRun]]
    sections: Callable[[Results], list[Section]]


def _table(network: str) -> Callable[[Paper], list[PaperRun]]:
    return lambda paper: paper[network].accuracy_table()


def _flows(network: str) -> Callable[[Paper], list[PaperRun]]:
    def runs(paper: Paper) -> list[PaperRun]:
        of = paper[network]
        dense = [run for seed in of.seeds for run in (of.dense(seed), of.small_dense(seed), of.lottery(seed))]
        inits = ("dense", "per_neuron")
        return dense + [of.sparse(m, init, s) for m in SPARSE_METHODS for init in inits for s in of.seeds]

    return runs


def _solutions(*networks: str) -> Callable[[Paper], list[PaperRun]]:
    return lambda paper: [
        run for network in networks for runs in paper[network].solutions().values() for run in runs
    ]


def _landscape(*networks: str) -> Callable[[Paper], list[PaperRun]]:
    def runs(paper: Paper) -> list[PaperRun]:
        found = []
        for network in networks:
            solutions = paper[network].solutions()
            found += [*solutions["lottery"], *solutions["scratch_other_init"]]
        return found

    return runs


def _updates(paper: Paper) -> list[PaperRun]:
    found = []
    for runs in paper.values():
        for method in ("set", "rigl"):
            found += [runs.sparse(method, "per_neuron", seed) for seed in runs.seeds]
        found += runs.inverted()
    return found


def _spectra(paper: Paper) -> list[PaperRun]:
    runs = paper["lenet5"]
    seed = runs.seeds[0]
    methods = [("static", "dense"), ("static", "per_neuron"), ("rigl", "per_neuron")]
    return [runs.lottery(seed), *(runs.sparse(method, init, seed) for method, init in methods)]


def _spectra_of_updates(paper: Paper) -> list[PaperRun]:
    runs = paper["lenet5"]
    return [runs.sparse(method, "per_neuron", runs.seeds[0]) for method in ("rigl", "set")]


TARGETS: dict[str, Target] = {
    "table1": Target(
        "LeNet-5: test accuracy of every method and initialization",
        _table("lenet5"),
        lambda results: [accuracy_section(results, "lenet5", "Table 1"), imagenet_section()],
    ),
    "table2": Target(
        "ensembles and disagreement of tickets and networks from scratch",
        _solutions("lenet5", "mlp"),
        lambda results: [agreement_section(results, "lenet5"), agreement_section(results, "mlp")],
    ),
    "table5": Target(
        "MLP: test accuracy of every method and initialization",
        _table("mlp"),
        lambda results: [accuracy_section(results, "mlp", "Table 5")],
    ),
    "table6": Target(
        "divergences of the predictions of tickets and networks from scratch",
        _solutions("lenet5", "mlp"),
        lambda results: [divergence_section(results, "lenet5"), divergence_section(results, "mlp")],
    ),
    "fig1c": Target("signal propagation at initialization", lambda paper: [], lambda r: [signal_section(r)]),
    "fig2": Target(
        "gradient flow during training, LeNet-5",
        _flows("lenet5"),
        lambda results: [flow_section(results, "lenet5", "fig2", "2")],
    ),
    "fig3": Target("effect of mask updates on the gradient", _updates, lambda r: [update_section(r)]),
    "fig5": Target(
        "where tickets and other solutions lie, and the loss between them, LeNet-5",
        _landscape("lenet5"),
        lambda results: [
            positions_section(results, "lenet5", "fig5a", "5a"),
            interpolation_section(results, "lenet5", "fig5b", "5b"),
        ],
    ),
    "fig7": Target(
        "gradient flow during training, MLP",
        _flows("mlp"),
        lambda results: [flow_section(results, "mlp", "fig7", "7")],
    ),
    "fig8": Target("the Hessian before and after training", _spectra, lambda r: [spectrum_section(r)]),
    "fig9": Target(
        "the Hessian around a mask update", _spectra_of_updates, lambda r: [update_spectrum_section(r)]
    ),
    "fig10": Target(
        "where tickets and other solutions lie, MLP",
        _landscape("mlp"),
        lambda results: [positions_section(results, "mlp", "fig10", "10")],
    ),
    "fig11": Target(
        "the loss between tickets, other solutions and the pruning solution, MLP",
        _landscape("mlp"),
        lambda results: [interpolation_section(results, "mlp", "fig11", "11")],
    ),
}
