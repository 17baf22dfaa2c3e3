import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.folder import Result
from sparsekern.experiments.reproduce.document import (
    Curves,
    Figure,
    Points,
    Report,
    Section,
    Series,
    Spectrum,
    Table,
)
from sparsekern.experiments.reproduce.execute import Ended, Runs
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import NETWORKS, PaperRuns, Scale, unique


@dataclass(frozen=True)
class Tiny(Scale):
    """Runs of a few steps on digits."""

    dataset: str = "digits"

    def base(self, network):
        changes = {"steps": 12, "update_every": 4, "prune_begin": 2, "prune_end": 8, "grow_batch_size": 50}
        changes |= {"log_every": 4, "evaluate_every": 12, "checkpoint_every": 6, "gradient_flow_every": 4}
        return super().base(network).override({**changes, "gradient_flow_examples": 50})

    @property
    def prune_every(self):
        return 3


@pytest.fixture
def tiny():
    """The runs of LeNet-5 for two seeds, each of 12 steps."""
    return PaperRuns("lenet5", [0, 1], Tiny())


def example_report(quick: bool = False) -> Report:
    """Small, with every kind of panel, values that are not finite, and characters that need escaping."""
    table = Table(
        ["method", "accuracy (%)", "paper", "verdict"],
        [
            ["a|b <i>", "91.25 ± 0.4", "–", "agrees"],
            ["`per_neuron`", "8", "97.8 ± 0.2", "differs (p = 0.01)"],
        ],
        ["Five seeds & one `mask`.", "All of them."],
    )
    curves = Curves(
        "Loss <test>",
        "step",
        "loss (nats)",
        [Series("RigL & co", [0, 1, 2, 3], [1.0, math.nan, 0.5, math.inf], [0.1] * 4)],
    )
    points = Points(
        "Solutions",
        {"RigL & co start": [(0.0, 0.0)], "RigL & co end": [(1.0, 2.0)]},
        [("RigL & co start", 0, "RigL & co end", 0)],
    )
    spectrum = Spectrum("Hessian", {"before": [-0.5, 0.0, 1e-9, 2.0, 123.456789]})
    sections = [
        Section(
            "Results", ["See `a < b` & *c*."], [table], [Figure("figure-1", "All <kinds>.", [curves, points])]
        ),
        Section("Results", figures=[Figure("figure-2", "", [spectrum])]),
    ]
    return Report("Gradient flow & <sparsity>", quick, ["What `was` done."], sections)


@pytest.fixture
def report() -> Report:
    return example_report()


@pytest.fixture
def quick_report() -> Report:
    return example_report(quick=True)


#: A run, told apart by its recipe alone. `order` is the seed of the order of data, `weights` that of the
#: initial weights ("pruned 3" for those that the pruning run of seed 3 ended with), `mask` that of the
#: pruning run whose mask it has, None for none.
Facts = namedtuple("Facts", "network method init order weights mask")


class MadeUp:
    """Results of runs that nobody did.

    Parameters
    ----------
    results : Results
    facts : dict of str to Facts
        By folder.
    """

    def __init__(self, results, facts):
        self.results = results
        self.facts = facts

    def folder(self, *facts):
        """The folder of the one run that `facts` are of."""
        (found,) = [folder for folder, own in self.facts.items() if own == facts]
        return self.results.runs.folder / found


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Makes results of all runs of both networks.

    ``outcome`` takes the `Facts` of a run: a number is its test accuracy, text how else it ended ("diverged",
    "failed"). ``initial`` and ``final`` take them too and return networks.
    """

    def make(outcome=lambda facts: 0.9, initial=None, final=None, seeds=(3, 4, 7), quick=False, dataset=None):
        paper = {network: PaperRuns(network, seeds, Scale(quick)) for network in NETWORKS}
        runs = unique(
            run
            for of in paper.values()
            for group in (of.accuracy_table(), of.inverted(), *of.solutions().values())
            for run in group
        )
        facts = _facts(runs)
        ended = {run.folder: _ended(run, outcome(facts[run.folder])) for run in runs}
        if dataset is None:
            dataset = InMemoryDataset("made-up", *[torch.zeros(0)] * 4, fingerprint="0" * 64)
        results = Results(
            paper,
            Runs(tmp_path / "runs"),
            ended,
            dataset,
            tmp_path / "measurements",
            quick,
            lambda text: None,
        )
        for name, network in (("initial", initial), ("final", final)):
            if network is not None:
                monkeypatch.setattr(Results, name, lambda self, run, of=network: of(facts[run.folder]))
        return MadeUp(results, facts)

    return make


def _facts(runs):
    masks = {
        f"{run.folder}/checkpoint.pt": run.recipe.seed
        for run in runs
        if run.recipe.method == "gradual_pruning"
    }
    return {
        run.folder: Facts(
            run.recipe.model,
            run.recipe.method,
            run.recipe.init,
            run.recipe.seed_of("data"),
            f"pruned {masks[run.recipe.weights]}" if run.recipe.weights else run.recipe.seed_of("init"),
            masks[run.recipe.masks] if run.recipe.masks else None,
        )
        for run in runs
    }


def _ended(run, outcome):
    if isinstance(outcome, str):
        return Ended(run, error=outcome, diverged=outcome == "diverged")
    result = Result(run.recipe.name, run.recipe.digest, run.recipe.steps, outcome, 0.1, 1.0)
    return Ended(run, result)
