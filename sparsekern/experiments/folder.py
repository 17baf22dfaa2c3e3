"""The folder of a run: its files, and what they must not be mixed with."""

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.recipe import Recipe, differences, load_recipe
from sparsekern.files import remove_unfinished


@dataclass(frozen=True)
class Result:
    """How a finished run ended; the content of ``result.json``."""

    recipe: str
    digest: str
    steps: int
    test_accuracy: float
    test_loss: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"test accuracy {self.test_accuracy:.2%}, loss {self.test_loss:.4f}, "
            f"after {self.steps:,} steps in {self.seconds:.1f} s of training"
        )


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.result = path / "result.json"
        self.tensorboard = path / "tensorboard"

    def kept(self, step: int) -> Path:
        """The state after a step that a recipe keeps beside the last one."""
        return self.path / f"step-{step}.pt"

    def is_started(self) -> bool:
        return any(file.exists() for file in (self.recipe, self.metrics, self.checkpoint))

    def clear(self) -> None:
        """Remove the run's own files, the result first, and nothing else."""
        for file in self._files():
            file.unlink(missing_ok=True)
        if self.tensorboard.is_dir():
            shutil.rmtree(self.tensorboard)

    def create(self) -> None:
        """Make the folder; in one that is there, remove what a killed process had not finished writing.

        Raises
        ------
        ExperimentError
            If it cannot be made or is no folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(
                f"--output {self.path}: the folder cannot be made: {error.strerror}"
            ) from None
        for file in self._files():
            remove_unfinished(file)

    def read_recipe(self) -> Recipe:
        """The recipe of the run that is there; RecipeError if its file is missing or damaged."""
        return load_recipe(str(self.recipe))

    def read_result(self) -> Result:
        """The result of a finished run.

        Raises
        ------
        CheckpointError
            If ``result.json`` is not one.
        """
        try:
            content = json.loads(self.result.read_text(encoding="utf-8"))
            types = {field.name: field.type for field in fields(Result)}
            if {name: type(value) for name, value in content.items()} != types:
                raise ValueError
            return Result(**content)
        except (OSError, ValueError, AttributeError):
            raise CheckpointError(
                f"{self.result}: expected the result of a run; --overwrite starts anew"
            ) from None

    def refuse_another(self, ours: Recipe, theirs: Recipe) -> None:
        """Refuse to mix two runs in one folder.

        Raises
        ------
        CheckpointError
            Names every setting that differs.
        """
        differing = differences(ours, theirs)
        if differing:
            raise CheckpointError(f"{self.path} holds a run of another recipe: {'; '.join(differing)}")

    def _files(self) -> tuple[Path, ...]:
        return self.result, self.checkpoint, *self.path.glob("step-*.pt"), self.metrics, self.recipe
