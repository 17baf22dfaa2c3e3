import math
from dataclasses import dataclass

import pytest

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
from sparsekern.experiments.reproduce.runs import PaperRuns, Scale


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
