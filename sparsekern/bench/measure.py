"""A model measured: its layers one by one, then whole, dense beside sparse, taking turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import sparsekern as sk
from sparsekern.bench.contenders import Contenders, Settings, build
from sparsekern.bench.findings import About, Cost, Findings, LayerFinding, Variant, WholeFinding
from sparsekern.bench.layer_calls import Alike, LayerRun, alike, record_calls
from sparsekern.bench.live_bytes import measure_bytes
from sparsekern.bench.subject import Subject
from sparsekern.timing import CudaClock, Timing, cpu_clock, interleave

Tell = Callable[[str], None]
DENSE = "dense"


def measure(subject: Subject, settings: Settings, tell: Tell) -> Findings:
    """Everything that `Findings` has.

    Parameters
    ----------
    subject : Subject
        On the settings' device.
    settings : Settings
    tell : callable
        Called with what is being measured.

    Raises
    ------
    BenchError
        As `sparsekern.bench.contenders.build` does.
    """
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    tell("building")
    contenders = build(subject, settings)
    for variant, why in contenders.dropped.items():
        tell(f"note: {variant} is left out: {why}")
    calls = record_calls(contenders)
    groups = alike(contenders, calls)
    stopwatch = Stopwatch(settings)
    tell("the whole model, training")
    steps, optimizers, spread = _train(contenders, stopwatch)
    held = {
        name: measure_bytes(each.model, each.optimizer, each.step, settings.device)
        for name, each in contenders.all.items()
    }
    layer_steps = [_layer(contenders, group, settings, stopwatch, "step", tell) for group in groups]
    _to_evaluation(contenders)
    tell("the whole model, evaluation")
    evaluations = stopwatch({name: each.evaluate for name, each in contenders.all.items()})
    layer_evaluations = [_layer(contenders, group, settings, stopwatch, "evaluate", tell) for group in groups]
    whole = {
        name: WholeFinding(Cost(steps[name], evaluations[name]), optimizers[name], held[name])
        for name in contenders.all
    }
    layers = tuple(
        _finding(group, list(contenders.sparse), *costs)
        for group, *costs in zip(groups, layer_steps, layer_evaluations, strict=True)
    )
    never = {name: "no call in a step" for name, made in calls.items() if not made}
    return Findings(
        about=_about(subject, settings, contenders),
        layers=layers,
        left={**contenders.left, **never},
        dense=whole.pop(DENSE),
        masked=whole.pop("masked-dense"),
        sparse=whole,
        spread=spread,
        load=load,
    )


class Stopwatch:
    """Median seconds of functions that take turns."""

    def __init__(self, settings: Settings) -> None:
        self._clock = CudaClock() if settings.device.type == "cuda" else cpu_clock
        self._seconds = settings.seconds

    def __call__(self, runs: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
        return {name: timing.median for name, timing in self.timings(runs).items()}

    def timings(self, runs: Mapping[Any, Callable[[], Any]]) -> dict[Any, Timing]:
        """Medians with all else that is known."""
        return interleave(runs, seconds=self._seconds, clock=self._clock)


def _train(contenders: Contenders, stopwatch: Stopwatch) -> tuple[dict[Any, float], dict[Any, float], float]:
    """Seconds of steps and of the optimizers' part, and how much the dense model's steps vary."""
    timings = stopwatch.timings({name: each.step for name, each in contenders.all.items()})
    steps = {name: timing.median for name, timing in timings.items()}
    optimizers = stopwatch({name: each.optimizer.step for name, each in contenders.all.items()})
    return steps, optimizers, timings[DENSE].spread / steps[DENSE]


def _to_evaluation(contenders: Contenders) -> None:
    for trainee in contenders.all.values():
        trainee.optimizer.zero_grad(set_to_none=True)
    for variant, trainee in contenders.sparse.items():
        if variant.pattern == "2:4":
            # Nobody evaluates often with weights that are packed in every pass.
            sk.nn.fix_masks_(trainee.model)
    for trainee in contenders.all.values():
        trainee.model.eval()


def _layer(
    contenders: Contenders,
    group: Alike,
    settings: Settings,
    stopwatch: Stopwatch,
    what: str,
    tell: Tell,
) -> dict[Any, float]:
    tell(f"{group.names[0]}, {'training' if what == 'step' else 'evaluation'}")
    layers: dict[Any, nn.Module | None] = {DENSE: contenders.dense.model.get_submodule(group.names[0])}
    layers |= {variant: contenders.layer(group.names[0], variant) for variant in contenders.sparse}
    inputs = [call.tensor(settings.device) for call in group.calls]
    runs = {name: LayerRun(layer, inputs, settings) for name, layer in layers.items() if layer is not None}
    return stopwatch({name: getattr(run, what) for name, run in runs.items()})


def _finding(
    group: Alike, variants: list[Variant], steps: dict[Any, float], evaluations: dict[Any, float]
) -> LayerFinding:
    costs = {name: Cost(steps[name], evaluations[name]) for name in steps}
    return LayerFinding(
        names=group.names,
        kind=group.kind,
        weight_shape=group.weight_shape,
        input_shapes=tuple(call.shape for call in group.calls),
        input_gradient=any(call.needs_grad for call in group.calls),
        dense=costs[DENSE],
        sparse={variant: costs.get(variant) for variant in variants},
    )


def _about(subject: Subject, settings: Settings, contenders: Contenders) -> About:
    model = contenders.dense.model
    weights = {id(weight): weight.numel() for weight in _weights(model, contenders.converted)}
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    precision = ", ".join(sorted(dtypes))
    if settings.autocast is not None:
        precision += f", autocast to {str(settings.autocast).removeprefix('torch.')}"
    if settings.device.type == "cuda":
        device = torch.cuda.get_device_name(settings.device)
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' * (threads > 1)}"
    return About(
        name=subject.name,
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        convertible=sum(weights.values()),
        inputs=subject.inputs,
        batch=subject.batch,
        optimizer={"sgd": "SGD", "adamw": "AdamW"}[settings.optimizer],
        precision=precision,
        device=device,
    )


def _weights(model: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    return [model.get_submodule(name).weight for name in names]
