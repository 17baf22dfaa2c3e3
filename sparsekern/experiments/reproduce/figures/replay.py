"""Networks from the middle of a run, made again: equal recipes train to equal bits on as many threads."""

from __future__ import annotations

import copy
from contextlib import closing

from torch import nn

from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import PaperRun
from sparsekern.experiments.runtime import flushed_denormals, threads
from sparsekern.experiments.trainer import Trainer


@flushed_denormals()
def networks_around_update(results: Results, run: PaperRun, step: int) -> tuple[nn.Module, nn.Module]:
    """The network of a run right before and right after the mask update that comes with a training step.

    The run is trained again up to that step, ``step``, from its start, on as many threads as it had.
    """
    recipe = run.recipe.override({"gradient_flow_every": 0})
    network = results.initial(run).train()
    before: nn.Module = network

    def keep() -> None:
        nonlocal before
        before = copy.deepcopy(network)

    count = read_checkpoint(results.runs.path(run) / "checkpoint.pt")["threads"]
    with threads(count), closing(Trainer(network, results.dataset, recipe, keep)) as trainer:
        for _ in range(step):
            trainer.train_step()
    return before.eval(), network.eval()
