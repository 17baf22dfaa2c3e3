"""The four stages of a pipeline, one after the other; what is finished is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import Dataset, load_dataset
from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.folder import RunFolder
from sparsekern.experiments.pipeline.measure import StageCost, stage_cost
from sparsekern.experiments.pipeline.plan import Pipeline
from sparsekern.experiments.pipeline.report import as_json, as_line, as_markdown, as_table
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.run import RunOptions, run, with_masks_of
from sparsekern.experiments.runtime import usable_device
from sparsekern.files import write_atomically
from sparsekern.nn import fix_masks_, quantize_int8_

Say = Callable[[str], None]


def run_pipeline(pipeline: Pipeline, options: RunOptions, say: Say = print) -> list[StageCost]:
    """Train, round and measure; print and save the table.

    Parameters
    ----------
    pipeline : Pipeline
    options : RunOptions
        Its folder gets one for each training run (``dense``, ``sparse``, ``two-four``), the last network as
        ``model.safetensors``, and the table as ``pipeline.md`` and ``pipeline.json``.
    say : callable
        Takes what is printed.

    Raises
    ------
    ExperimentError
        As `run` does; and when the folder holds another pipeline.
    Stopped
        After SIGINT or SIGTERM, with the state saved.
    """
    folder = options.output
    _refuse_another(pipeline, folder, options)
    device = usable_device(options.device)
    recipe = pipeline.sparse
    dataset = load_dataset(recipe.dataset, options.data_dir, workers=options.workers, **recipe.data_options)
    say(f"{pipeline.name}: {pipeline.sparse.description}\n")
    dense = _trained("dense", pipeline.sparse.dense_twin(), options, dataset, say).to(device).eval()
    on_device = dataset.to(device)
    stages: list[StageCost] = []

    def measure(name: str, model: nn.Module) -> None:
        stages.append(stage_cost(name, model.to(device), dense, on_device))
        say(f"{as_line(stages[-1])}\n")

    measure("dense", dense)
    start, _ = build_model(pipeline.sparse, dataset)
    measure(f"1 {pipeline.sparse.at_init} at initialization", start)
    measure(f"2 {pipeline.sparse.method}", _trained("sparse", pipeline.sparse, options, dataset, say))
    weights = str(RunFolder(folder / "sparse").checkpoint)
    refine = pipeline.refine.override({"weights": weights})
    refined = _trained("two-four", refine, options, dataset, say)
    fix_masks_(refined)
    measure(f"3 2:4, {pipeline.refine.method}", refined)
    # Products of int8 are for CPUs, so what they are measured against is there too.
    device, on_device, dense = torch.device("cpu"), dataset, dense.cpu()
    _round(pipeline, refined.cpu(), dataset)
    measure(f"4 2:4 and int8, {pipeline.last.activations}", refined)
    sk.export.save_safetensors(refined, folder / "model.safetensors")
    _write(pipeline, stages, folder)
    say(as_table(stages))
    say(f"saved in {folder}: pipeline.md, pipeline.json, model.safetensors")
    return stages


def _trained(name: str, recipe: Recipe, options: RunOptions, dataset: Dataset, say: Say) -> nn.Module:
    """The network that a run of the recipe ends with, from its folder if it is there."""
    folder = RunFolder(options.output / name)
    resume = options.resume and folder.is_started()
    run(recipe, replace(options, output=folder.path, resume=resume), say)
    state = read_checkpoint(folder.checkpoint)
    model, _ = build_model(with_masks_of(folder, recipe), dataset)
    model.load_state_dict(state["trainer"]["model"])
    return model.eval()


def _round(pipeline: Pipeline, model: nn.Module, dataset: Dataset) -> None:
    images, _ = dataset.train_examples(slice(pipeline.last.calibration_examples))
    static = pipeline.last.activations == "static"
    with torch.no_grad():
        quantize_int8_(
            model,
            activations=pipeline.last.activations,
            calibrate=(lambda: model(images)) if static else None,
        )


def _refuse_another(pipeline: Pipeline, folder: Path, options: RunOptions) -> None:
    path = folder / "pipeline.json"
    if not path.exists() or options.overwrite:
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: expected the result of a pipeline; --overwrite starts anew") from None
    if settings != json.loads(json.dumps(pipeline.settings())):
        raise ExperimentError(f"{folder} holds another pipeline; --output names another folder")


def _write(pipeline: Pipeline, stages: list[StageCost], folder: Path) -> None:
    try:
        write_atomically(folder / "pipeline.md", as_markdown(pipeline, stages).encode())
        content = json.dumps(as_json(pipeline, stages), indent=2) + "\n"
        write_atomically(folder / "pipeline.json", content.encode())
    except OSError as error:
        raise ExperimentError(f"{error.filename}: cannot be written: {error.strerror}") from None
