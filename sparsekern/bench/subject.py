"""The model that is measured, with a batch for it: a recipe's, or what a callable returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.bench.errors import BenchError
from sparsekern.user_code import UserCodeError, find_callable, one_line

DEFAULT_BATCH = 32
# A recipe's batch may be one of many devices, or of accumulated steps.
LARGEST_RECIPE_BATCH = 256
# Of the data sets whose images have one size.
IMAGES = {"digits": (1, 28, 28), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Wanted:
    """What the command line says of the model and its inputs; None where it says nothing."""

    name: str
    arguments: Mapping[str, Any]
    input_shape: tuple[int, ...] | None
    input_tokens: tuple[int, int] | None
    batch: int | None


@dataclass
class Subject:
    """A dense model, the arguments of a call, and the loss of its output.

    Attributes
    ----------
    name : str
    model : torch.nn.Module
    args, kwargs : tuple, dict
        Of ``model(*args, **kwargs)``.
    loss : callable
        From the output to one number.
    optimizer : str or None
        ``"adamw"`` or ``"sgd"`` where the model comes with one.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Loss
    optimizer: str | None = None

    @property
    def inputs(self) -> str:
        """The tensors of a batch, in words."""
        return ", ".join(_describe(tensor) for tensor in tensors_in((self.args, self.kwargs))) or "no tensor"

    @property
    def batch(self) -> int | None:
        """The first size of the first input."""
        first = next(tensors_in((self.args, self.kwargs)), None)
        return first.shape[0] if first is not None and first.dim() else None

    def to(self, device: torch.device) -> Subject:
        """This one on a device."""
        args, kwargs = (_moved(part, device) for part in (self.args, self.kwargs))
        return Subject(self.name, self.model.to(device), args, kwargs, self.loss, self.optimizer)


def find(wanted: Wanted) -> Subject:
    """The subject that is asked for, on the CPU.

    Raises
    ------
    BenchError
        When there is no such recipe or callable, it fails or returns no model, or inputs are not told or told
        twice.
    """
    torch.manual_seed(0)
    return _from_callable(wanted) if ":" in wanted.name else _from_recipe(wanted)


def _from_callable(wanted: Wanted) -> Subject:
    returned = _call(_callable(wanted.name), wanted)
    is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    model, example = returned if is_pair else (returned, None)
    if not isinstance(model, nn.Module):
        raise BenchError(
            f"{wanted.name} must return a torch.nn.Module, or one and its inputs, "
            f"got {type(returned).__name__}"
        )
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise BenchError(f"{wanted.name} must return a model with its weights in memory, got one on meta")
    given = [
        option
        for option, value in (
            ("--input-shape", wanted.input_shape),
            ("--input-tokens", wanted.input_tokens),
        )
        if value is not None
    ]
    if example is not None:
        given += ["--batch"] if wanted.batch is not None else []
        if given:
            raise BenchError(f"{given[0]} must be left out where {wanted.name} returns the inputs as well")
        return Subject(wanted.name, model, *_arguments(example), loss_of)
    if len(given) != 1:
        raise BenchError(
            f"one of --input-shape and --input-tokens must be given for {wanted.name}, "
            f"which returns a model alone, got {' and '.join(given) or 'neither'}"
        )
    return Subject(wanted.name, model, (_example(wanted),), {}, loss_of)


def _callable(name: str) -> Callable[..., Any]:
    try:
        found = find_callable(name)
    except UserCodeError as error:
        raise BenchError(str(error)) from error
    if isinstance(found, nn.Module):
        raise BenchError(f"{name} must return a model when it is called, got a {type(found).__name__} itself")
    return found


def _call(build: Callable[..., Any], wanted: Wanted) -> Any:
    try:
        return build(**wanted.arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in wanted.arguments.items())
        raise BenchError(f"{wanted.name}({given}) failed: {one_line(error)}") from error


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as arguments: a mapping has names, a list or tuple is all of them in order."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (list, tuple)) else ((example,), {})


def _example(wanted: Wanted) -> Tensor:
    batch = wanted.batch or DEFAULT_BATCH
    if wanted.input_tokens is not None:
        vocabulary, length = wanted.input_tokens
        return torch.randint(vocabulary, (batch, length))
    return torch.randn(batch, *wanted.input_shape)


def _from_recipe(wanted: Wanted) -> Subject:
    try:
        from sparsekern.experiments.build import build_model
        from sparsekern.experiments.errors import ExperimentError
        from sparsekern.experiments.models import GPT
        from sparsekern.experiments.recipe import load_recipe
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise BenchError("recipes need the package yaml, of the extra [train]") from None
    try:
        recipe = load_recipe(wanted.name)
    except ExperimentError as error:
        raise BenchError(f"{error}; a model of your own is MODULE:CALLABLE, a layer OUTxIN") from None
    for option, value in (
        ("--input-shape", wanted.input_shape),
        ("--input-tokens", wanted.input_tokens),
        ("--model-args", wanted.arguments or None),
    ):
        if value is not None:
            raise BenchError(f"{option} must be left out for a recipe, which has its own")
    try:
        model, _ = build_model(recipe.dense_twin())
    except (ExperimentError, ValueError) as error:
        raise BenchError(f"the network of {wanted.name} cannot be built without its data: {error}") from None
    batch = wanted.batch or min(recipe.batch_size, LARGEST_RECIPE_BATCH)
    if isinstance(model, GPT):
        x = torch.randint(model.config.vocabulary, (batch, model.config.context))
    else:
        side = recipe.image_size
        x = torch.randn(batch, *(IMAGES.get(recipe.dataset) or (3, side, side)))
    return Subject(wanted.name, model, (x,), {}, CrossEntropy(), recipe.optimizer)


class CrossEntropy:
    """Of logits (..., classes) and random classes, which are drawn once."""

    def __init__(self) -> None:
        self._classes: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self._classes is None:
            self._classes = torch.randint(logits.shape[-1], logits.shape[:-1], device=logits.device)
        return F.cross_entropy(logits.flatten(0, -2), self._classes.flatten())


def loss_of(output: Any) -> Tensor:
    """The output's own loss, where it is one number or has one by that name; else the mean of its squares.

    Raises
    ------
    BenchError
        When no tensor in it depends on a parameter.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.requires_grad and own.numel() == 1:
        return own.sum()
    tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
    if not tensors:
        raise BenchError(
            f"the model's output must hold a tensor that needs a gradient, got {type(output).__name__}"
        )
    if len(tensors) == 1 and tensors[0].numel() == 1:
        return tensors[0].sum()
    return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(part, device) for part in value)
    return value


def _describe(tensor: Tensor) -> str:
    kind = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return "x".join(map(str, tensor.shape)) + kind
