"""A run from its first step, or from the last checkpoint, to its result."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import save_checkpoint
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.display import Display, Watcher
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.folder import Result, RunFolder
from sparsekern.experiments.metrics import MetricsFile, TensorBoard, kinds_at, read_metrics, summary_writer
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.resume import read_state, resume, run_state
from sparsekern.experiments.runtime import Stopped, StopSignals, flushed_denormals, usable_device
from sparsekern.experiments.summary import compare_with_dense
from sparsekern.experiments.trainer import Trainer
from sparsekern.files import write_atomically


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
    workers: int = 0


@flushed_denormals()
def run(
    recipe: Recipe,
    options: RunOptions,
    say: Callable[[str], None] = print,
    watch: Callable[[Recipe, int], Watcher] | None = None,
) -> Result:
    """Train ``recipe`` in ``options.output``, or carry on, or report that it is finished.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    options : RunOptions
        Where and how.
    say : callable
        Takes what is printed before and after training.
    watch : callable, optional
        Makes, of the recipe and the steps done before, what follows the training; a :class:`Display` if None.

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
    state = _earlier_state(recipe, folder, options)
    device = usable_device(options.device)
    if options.tensorboard:
        summary_writer()
    dataset = load_dataset(recipe.dataset, options.data_dir, workers=options.workers, **recipe.data_options)
    model, report = build_model(recipe if state is None else with_masks_of(folder, recipe), dataset)
    with closing(Trainer(model.to(device), dataset, recipe)) as trainer:
        resumed = None if state is None else resume(trainer, state, folder)
        say(_headline(recipe))
        if report is not None:
            say(f"{report}\n")
        if options.overwrite:
            folder.clear()
        folder.create()
        if resumed is not None:
            say("\n".join(resumed.notes))
        elif options.resume:
            say(f"nothing to resume in {folder.path}: starting at the first step")
        write_atomically(folder.recipe, recipe.to_yaml().encode())
        _train(trainer, folder, options, watch, resumed.metrics if resumed else "")
    result = _finish(trainer, folder)
    # One that is pruned would be timed as it starts, dense.
    if recipe.benchmark_steps and recipe.is_sparse and not recipe.prunes:
        say(f"\n{compare_with_dense(recipe, dataset, device)}")
    say(f"\n{result}; saved in {folder.path}")
    return result


def _train(
    trainer: Trainer,
    folder: RunFolder,
    options: RunOptions,
    watch: Callable[[Recipe, int], Watcher] | None,
    metrics: str,
) -> None:
    recipe = trainer.recipe
    sinks: list[Any] = [MetricsFile(folder.metrics, metrics)]
    if watch is None:
        display: Watcher = Display(recipe.name, trainer.step, recipe.steps, options.bar)
    else:
        display = watch(recipe, trainer.step)
    try:
        if options.tensorboard:
            sinks.append(TensorBoard(folder.tensorboard, trainer.step or None))
        with StopSignals() as signals:
            _loop(trainer, folder, sinks, display, signals)
    finally:
        display.close()
        for sink in sinks:
            sink.close()


def _loop(
    trainer: Trainer, folder: RunFolder, sinks: list[Any], display: Watcher, signals: StopSignals
) -> None:
    recipe = trainer.recipe
    measure = {
        "train": trainer.train_record,
        "test": trainer.test_record,
        "gradient": trainer.gradient_record,
    }

    def write(record: dict[str, Any]) -> None:
        for sink in sinks:
            sink.write(record)
        display.record(record)

    while trainer.step < recipe.steps:
        trainer.train_step()
        display.advance()
        step, last = trainer.step, trainer.step == recipe.steps
        for update in trainer.update_records():
            write(update)
        for kind in kinds_at(recipe, step):
            write(measure[kind]())
        if step == recipe.keep_step:
            trainer.check_finite()
            save_checkpoint(folder.kept(step), run_state(trainer))
        if last or step % recipe.checkpoint_every == 0 or signals.received:
            trainer.check_finite()
            sinks[0].sync()
            _save(trainer, folder)
        if signals.received and not last:
            raise Stopped(signals.received, step)


def _earlier_state(recipe: Recipe, folder: RunFolder, options: RunOptions) -> dict[str, Any] | None:
    """The checkpoint of an unfinished run in the folder; None where this run starts at its first step."""
    if options.overwrite or not folder.is_started():
        return None
    if not options.resume:
        raise ExperimentError(
            f"{folder.path} holds an unfinished run: --resume carries on, --overwrite starts anew"
        )
    if not folder.checkpoint.exists():
        folder.refuse_another(recipe, folder.read_recipe())
        return None
    return read_state(recipe, folder)


def with_masks_of(folder: RunFolder, recipe: Recipe) -> Recipe:
    """A recipe that takes the masks of the folder's checkpoint where this one would score weights.

    Scores differ in their last bits with the machine and the number of threads, and may then share weights
    out among layers in other numbers than those of the run.
    """
    if recipe.at_init is None or not recipe.is_sparse:
        return recipe
    return recipe.override({"at_init": None, "masks": str(folder.checkpoint)})


def _save(trainer: Trainer, folder: RunFolder) -> None:
    save_checkpoint(folder.checkpoint, run_state(trainer))


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
    folder.refuse_another(recipe, folder.read_recipe())
    say(f"{folder.path} holds this run already, finished; --overwrite trains it again\n{result}")
    return result


def _headline(recipe: Recipe) -> str:
    if recipe.is_two_four:
        kind = f"2:4 sparse{' both ways' if recipe.transposable else ''}, {recipe.method}"
    elif recipe.is_sparse:
        percent = 100 * recipe.sparsity
        source = f"masks of {recipe.masks}" if recipe.masks else recipe.distribution
        if recipe.at_init:
            shares = "global" if recipe.at_init_scope == "global" else recipe.distribution
            source = f"{recipe.at_init} at initialization, {shares}"
        kind = f"{percent:.4g} % sparse ({source}, {recipe.storage}, {recipe.init} init), {recipe.method}"
        if recipe.prunes:
            span = f"steps {recipe.prune_begin:,} to {recipe.prune_end:,}"
            kind = f"pruned to {percent:.4g} % ({recipe.distribution}) in {span}"
        if recipe.updates_masks:
            kind += f" every {recipe.update_every:,}"
    else:
        kind = "dense"
    if recipe.weights:
        kind += f", from the weights of {recipe.weights}"
    return (
        f"{recipe.name}: {recipe.network} on {recipe.dataset}, {kind}, {recipe.optimizer}, "
        f"{recipe.steps:,} steps of {recipe.batch_size}, seed {recipe.seed}"
    )
