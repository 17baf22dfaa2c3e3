from dataclasses import dataclass

import pytest

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
