"""A model made several times: dense, with masks multiplied to its weights, and sparse; each in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.bench.errors import BenchError
from sparsekern.bench.findings import Variant
from sparsekern.bench.subject import Subject
from sparsekern.nn.module import SparseModule
from sparsekern.user_code import one_line

OPTIMIZERS = ("sgd", "adamw")
PATTERNS = ("unstructured", "block", "2:4")


@dataclass(frozen=True)
class Settings:
    """How a model is measured.

    Attributes
    ----------
    variants : tuple of Variant
    exclude : tuple of str
        As in `sparsekern.sparsify_`.
    optimizer : str
        One of `OPTIMIZERS`.
    device : torch.device
    autocast : torch.dtype or None
    seconds : float
        Meant for each thing that is timed.
    """

    variants: tuple[Variant, ...]
    exclude: tuple[str, ...]
    optimizer: str
    device: torch.device
    autocast: torch.dtype | None
    seconds: float

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, or nothing."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)


class Trainee:
    """A model and its optimizer, with what is timed of them.

    The learning rate is 0: all arithmetic is done, and the weights stay what they are, so that every step
    measures the same network and none diverges.
    """

    def __init__(self, model: nn.Module, subject: Subject, settings: Settings) -> None:
        self.model = model.train()
        self._subject, self._settings = subject, settings
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=True
            )
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)

    def forward(self) -> Any:
        """The output for the batch."""
        with self._settings.precision():
            return self.model(*self._subject.args, **self._subject.kwargs)

    def step(self) -> None:
        """A training step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._settings.precision():
            loss = self._subject.loss(self.forward())
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        """A forward pass alone; the model has to be in evaluation mode."""
        self.forward()


@dataclass
class Contenders:
    """All that are compared, and what the conversions said.

    Attributes
    ----------
    dense, masked : Trainee
    sparse : dict of Variant to Trainee
    converted : tuple of str
        Layers that at least one variant converts, in module order.
    left : dict of str to str
        The other layers with weights, and why.
    dropped : dict of Variant to str
        Variants for which nothing could be converted, and why.
    """

    dense: Trainee
    masked: Trainee
    sparse: dict[Variant, Trainee]
    converted: tuple[str, ...]
    left: dict[str, str]
    dropped: dict[Variant, str]

    @property
    def all(self) -> dict[Any, Trainee]:
        return {"dense": self.dense, "masked-dense": self.masked, **self.sparse}

    def layer(self, name: str, variant: Variant) -> nn.Module | None:
        """A variant's layer, None where it is left dense."""
        found = self.sparse[variant].model.get_submodule(name)
        return found if isinstance(found, SparseModule) else None


def build(subject: Subject, settings: Settings) -> Contenders:
    """Everything that is compared, each after one training step.

    Raises
    ------
    BenchError
        When the model does not run on its inputs, dense or sparse, or has nothing to convert.
    """
    _check_dense(subject.model)
    if type(subject.model) in (nn.Linear, nn.Conv2d):
        # A single layer cannot replace itself.
        subject.model = nn.Sequential(subject.model)
    dense = _dense(subject, settings)
    reports, models, dropped = {}, {}, {}
    for variant in settings.variants:
        model = _copied(subject)
        try:
            reports[variant] = _sparsify(model, variant, settings.exclude)
        except (TypeError, ValueError) as error:
            dropped[variant] = str(error)
            continue
        models[variant] = model
    if not models:
        raise BenchError(next(iter(dropped.values())))
    taken = {layer.name for report in reports.values() for layer in report.converted}
    # Reports list all layers with weights, in module order.
    listed = {layer.name: layer.reason for report in reports.values() for layer in report.layers}
    converted = tuple(name for name in listed if name in taken)
    left = {name: reason for name, reason in listed.items() if name not in taken}
    sparse = {v: _running(model, str(v), subject, settings) for v, model in models.items()}
    highest = max(variant.sparsity for variant in models)
    model = _copied(subject)
    mask_dense_(model, converted, highest)
    masked = _running(model, "masked-dense", subject, settings)
    return Contenders(dense, masked, sparse, converted, left, dropped)


def _check_dense(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, SparseModule):
            raise BenchError(f"the model must be dense, got one whose {name or 'whole'} is already sparse")


def _dense(subject: Subject, settings: Settings) -> Trainee:
    """The dense model after one step, which also gives lazy layers their shapes."""
    subject.model.train()
    if not any(parameter.requires_grad for parameter in subject.model.parameters()):
        raise BenchError(f"{subject.name} must have parameters that require a gradient, got none")
    try:
        with settings.precision():
            output = subject.model(*subject.args, **subject.kwargs)
    except torch.OutOfMemoryError as error:
        raise _too_large(error) from error
    except Exception as error:
        raise BenchError(
            f"{subject.name} does not take inputs of shape {subject.inputs}: {one_line(error)}"
        ) from error
    subject.loss(output)
    del output
    dense = Trainee(subject.model, subject, settings)
    return _stepped(dense, f"a training step of {subject.name} failed")


def _running(model: nn.Module, what: str, subject: Subject, settings: Settings) -> Trainee:
    return _stepped(
        Trainee(model, subject, settings),
        f"the model does not train with {what} layers (--exclude leaves layers dense)",
    )


def _stepped(trainee: Trainee, complaint: str) -> Trainee:
    try:
        trainee.step()
    except torch.OutOfMemoryError as error:
        raise _too_large(error) from error
    except Exception as error:
        raise BenchError(f"{complaint}: {one_line(error)}") from error
    return trainee


def _too_large(error: Exception) -> BenchError:
    return BenchError(f"not enough memory, try a smaller --batch or fewer variants: {one_line(error)}")


def _copied(subject: Subject) -> nn.Module:
    for parameter in subject.model.parameters():
        parameter.grad = None
    try:
        return copy.deepcopy(subject.model)
    except Exception as error:
        raise BenchError(f"the model cannot be copied: {one_line(error)}") from error


def _sparsify(model: nn.Module, variant: Variant, exclude: Sequence[str]) -> sk.nn.SparsifyReport:
    if variant.pattern == "2:4":
        return sk.sparsify_(model, pattern="2:4", exclude=exclude)
    # Weights of their own size, since kept ones would let signals fade to where arithmetic is slow.
    return sk.sparsify_(model, variant.sparsity, pattern=variant.pattern, init="per_neuron", exclude=exclude)


@torch.no_grad()
def mask_dense_(model: nn.Module, names: Sequence[str], sparsity: float) -> None:
    """Simulates sparsity: random masks, multiplied to the dense weights of layers in every forward pass.

    By `torch.nn.utils.prune`. Weights grow so that results keep their size.
    """
    done = set()
    for name in names:
        layer = model.get_submodule(name)
        prune.custom_from_mask(layer, "weight", torch.rand_like(layer.weight) >= sparsity)
        if id(layer.weight_orig) not in done:
            layer.weight_orig.div_(math.sqrt(1 - sparsity))
            done.add(id(layer.weight_orig))
