"""A run and its folder: start, resume, finish."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint, save_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.display import Display
from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.files import write_atomically
from sparsekern.experiments.metrics import MetricsFile, TensorBoard, read_metrics, summary_writer
from sparsekern.experiments.recipe import Recipe, differences, load_recipe, recipe_from
from sparsekern.experiments.runtime import Stopped, StopSignals, usable_device
from sparsekern.experiments.summary import compare_with_dense
from sparsekern.experiments.trainer import Trainer


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run; unlike the recipe, none of it decides the outcome."""

    output: Path
    data_dir: Path | None = None
    resume: bool = False
    overwrite: bool = False
    device: str = "cpu"
    tensorboard: bool = False
    bar: bool | None = None


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

    def is_started(self) -> bool:
        return any(file.exists() for file in (self.recipe, self.metrics, self.checkpoint))

    def clear(self) -> None:
        """Remove the run's own files, the result first, and nothing else."""
        for file in (self.result, self.checkpoint, self.metrics, self.recipe):
            file.unlink(missing_ok=True)
        if self.tensorboard.is_dir():
            shutil.rmtree(self.tensorboard)

    def create(self) -> None:
        """Make the folder.

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
            return Result(**json.loads(self.result.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise CheckpointError(
                f"{self.result}: expected the result of a run; --overwrite starts anew"
            ) from None


def run(recipe: Recipe, options: RunOptions, say: Callable[[str], None] = print) -> Result:
    """Train ``recipe`` in ``options.output``, or carry on, or report that it is finished.

    Raises
    ------
    ExperimentError
        Before anything is changed: the folder holds another run, or an unfinished one and ``resume`` is off;
        the data or a checkpoint is damaged.
    Stopped
        After SIGINT or SIGTERM, with the state saved.
    """
    folder = RunFolder(options.output)
    if folder.result.exists() and not options.overwrite:
        return _report_finished(recipe, folder, say)
    earlier = _earlier_state(recipe, folder, options)
    device = usable_device(options.device)
    if options.tensorboard:
        summary_writer()
    dataset = load_dataset(recipe.dataset, options.data_dir)
    model, report = build_model(recipe)
    trainer = Trainer(model.to(device), dataset, recipe)
    say(_headline(recipe))
    if report is not None:
        say(f"{report}\n")
    if options.overwrite:
        folder.clear()
    folder.create()
    if earlier is not None:
        _resume(trainer, earlier, say)
    elif options.resume:
        say(f"nothing to resume in {folder.path}: starting at the first step")
    write_atomically(folder.recipe, recipe.to_yaml().encode())
    _train(trainer, folder, options)
    result = _finish(trainer, folder)
    if recipe.benchmark_steps and recipe.sparsity:
        say(f"\n{compare_with_dense(recipe, dataset, device)}")
    say(f"\n{result}; saved in {folder.path}")
    return result


def _train(trainer: Trainer, folder: RunFolder, options: RunOptions) -> None:
    recipe = trainer.recipe
    done = trainer.step or None
    sinks: list[Any] = [MetricsFile(folder.metrics, done)]
    display = Display(recipe.name, trainer.step, recipe.steps, options.bar)
    try:
        if options.tensorboard:
            sinks.append(TensorBoard(folder.tensorboard, done))
        with StopSignals() as signals:
            _loop(trainer, folder, sinks, display, signals)
    finally:
        display.close()
        for sink in sinks:
            sink.close()


def _loop(
    trainer: Trainer, folder: RunFolder, sinks: list[Any], display: Display, signals: StopSignals
) -> None:
    recipe = trainer.recipe

    def write(record: dict[str, Any]) -> None:
        for sink in sinks:
            sink.write(record)
        display.record(record)

    while trainer.step < recipe.steps:
        trainer.train_step()
        display.advance()
        step, last = trainer.step, trainer.step == recipe.steps
        if last or step % recipe.log_every == 0:
            write(trainer.train_record())
        if last or step % recipe.evaluate_every == 0:
            write(trainer.test_record())
        if last or step % recipe.checkpoint_every == 0 or signals.received:
            trainer.check_finite()
            sinks[0].sync()
            _save(trainer, folder)
        if signals.received and not last:
            raise Stopped(signals.received, step)


def _save(trainer: Trainer, folder: RunFolder) -> None:
    state = {
        "recipe": asdict(trainer.recipe),
        "threads": torch.get_num_threads(),
        "trainer": trainer.state_dict(),
    }
    save_checkpoint(folder.checkpoint, state)


def _earlier_state(recipe: Recipe, folder: RunFolder, options: RunOptions) -> dict[str, Any] | None:
    """What an unfinished run left in the folder; None where this run starts at its first step."""
    if options.overwrite or not folder.is_started():
        return None
    if not options.resume:
        raise ExperimentError(
            f"{folder.path} holds an unfinished run: --resume carries on, --overwrite starts anew"
        )
    if not folder.checkpoint.exists():
        _refuse_another(recipe, folder.read_recipe(), folder)
        return None
    state = read_checkpoint(folder.checkpoint)
    _refuse_another(recipe, recipe_from(state["recipe"], str(folder.checkpoint)), folder)
    return state


def _resume(trainer: Trainer, state: dict[str, Any], say: Callable[[str], None]) -> None:
    trainer.load_state_dict(state["trainer"])
    say(f"resumed after step {trainer.step:,}")
    before, now = state["threads"], torch.get_num_threads()
    if before != now:
        say(f"note: {before} threads before, {now} now: the last bits of dense layers may differ")


def _finish(trainer: Trainer, folder: RunFolder) -> Result:
    final = [record for record in read_metrics(folder.metrics) if record["kind"] == "test"][-1]
    recipe = trainer.recipe
    result = Result(
        recipe=recipe.name,
        digest=recipe.digest,
        steps=final["step"],
        test_accuracy=final["accuracy"],
        test_loss=final["loss"],
        seconds=final["seconds"],
    )
    write_atomically(folder.result, (json.dumps(asdict(result), indent=2) + "\n").encode())
    return result


def _report_finished(recipe: Recipe, folder: RunFolder, say: Callable[[str], None]) -> Result:
    result = folder.read_result()
    _refuse_another(recipe, folder.read_recipe(), folder)
    say(f"{folder.path} holds this run already, finished; --overwrite trains it again\n{result}")
    return result


def _refuse_another(ours: Recipe, theirs: Recipe, folder: RunFolder) -> None:
    differing = differences(ours, theirs)
    if differing:
        raise CheckpointError(f"{folder.path} holds a run of another recipe: {'; '.join(differing)}")


def _headline(recipe: Recipe) -> str:
    if recipe.sparsity:
        percent = 100 * recipe.sparsity
        kind = f"{percent:.4g} % sparse ({recipe.distribution}, {recipe.storage}, {recipe.init} init)"
    else:
        kind = "dense"
    return (
        f"{recipe.name}: {recipe.model} on {recipe.dataset}, {kind}, {recipe.optimizer}, "
        f"{recipe.steps:,} steps of {recipe.batch_size}, seed {recipe.seed}"
    )
