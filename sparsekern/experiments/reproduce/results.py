"""What the runs left, and measurements of it that are made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.reproduce.execute import Ended, Runs
from sparsekern.experiments.reproduce.runs import PaperRun, PaperRuns
from sparsekern.files import write_atomically

#: Test accuracy of a network whose loss became infinite: that of a guess.
CHANCE = 0.1
#: Below it a network has learnt nothing; always saying the commonest digit is right for 11.35 % of MNIST.
LEARNT = 0.2


@dataclass(frozen=True)
class Results:
    """Everything that tables and figures are made of.

    Attributes
    ----------
    paper : dict of str to PaperRuns
        By network.
    runs : Runs
    ended : dict of str to Ended
        By folder.
    dataset : InMemoryDataset
    measurements : Path
        The folder of what was measured before.
    quick : bool
    say : callable
        Takes a line about what is being measured.
    """

    paper: Mapping[str, PaperRuns]
    runs: Runs
    ended: Mapping[str, Ended]
    dataset: InMemoryDataset
    measurements: Path
    quick: bool
    say: Callable[[str], None]

    def accuracy(self, run: PaperRun) -> float | None:
        """Test accuracy in [0, 1]: chance for a run that diverged, None for one that failed."""
        ended = self.ended.get(run.folder)
        if ended is None:
            return None
        if ended.diverged:
            return CHANCE
        return None if ended.result is None else ended.result.test_accuracy

    def finished(self, runs: Sequence[PaperRun]) -> list[PaperRun]:
        """Those that came to their end."""
        return [run for run in runs if (end := self.ended.get(run.folder)) and end.result is not None]

    def records(self, run: PaperRun, kind: str) -> list[dict[str, Any]]:
        """The metrics of one kind that a run wrote."""
        path = self.runs.path(run) / "metrics.jsonl"
        try:
            return [record for record in read_metrics(path) if record["kind"] == kind]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{path}: expected the metrics of a finished run; remove {path.parent} to run it again"
            ) from None

    def initial(self, run: PaperRun) -> nn.Module:
        """The network that a run started from."""
        return build_model(self._absolute(run.recipe), self.dataset)[0].eval()

    def final(self, run: PaperRun) -> nn.Module:
        """The network that a run ended with."""
        checkpoint = self.runs.path(run) / "checkpoint.pt"
        state = read_checkpoint(checkpoint)
        changes: dict[str, Any] = {"weights": None}
        if run.recipe.is_sparse and not run.recipe.prunes:
            changes["masks"] = str(checkpoint)
        model, _ = build_model(run.recipe.override(changes), self.dataset)
        try:
            model.load_state_dict(state["trainer"]["model"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint}: expected a network of its recipe, found another ({reason})"
            ) from None
        return model.eval()

    def cached(self, name: str, inputs: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What ``measure`` returns (numbers, text, lists, dicts), from a file if it was measured before.

        Parameters
        ----------
        name : str
            Of the measurement.
        inputs : mapping
            All that decides the outcome: folders of runs, numbers; the data's fingerprint is added.
        measure : callable
        """
        inputs = {**inputs, "data": self.dataset.fingerprint}
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
        path = self.measurements / f"{name}-{digest}.json"
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["inputs"] == json.loads(json.dumps(inputs)):
                    return content["value"]
            except (ValueError, KeyError, TypeError):
                pass  # damaged: it is measured again
        self.say(f"measuring {name}")
        value = json.loads(json.dumps(measure()))
        try:
            self.measurements.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps({"inputs": inputs, "value": value}) + "\n").encode())
        except OSError as error:
            raise ExperimentError(f"{path}: cannot be written: {error.strerror or error}") from None
        return value

    def _absolute(self, recipe: Recipe) -> Recipe:
        changes = {}
        for key in ("masks", "weights"):
            if path := getattr(recipe, key):
                changes[key] = str(self.runs.folder / path)
        return recipe.override(changes)
