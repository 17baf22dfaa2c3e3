"""What the layers of a model are called with, and how long they take by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.bench.contenders import Contenders, Settings


@dataclass(frozen=True)
class Call:
    """The input of one call: its shape, strides and dtype, and whether it needs a gradient."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    needs_grad: bool

    @classmethod
    def of(cls, x: Tensor) -> Call:
        # Strides of a new tensor in the same order, which expanded ones are not.
        like = torch.empty_like(x, device="meta")
        return cls(tuple(x.shape), like.stride(), x.dtype, x.requires_grad)

    def tensor(self, device: torch.device) -> Tensor:
        """A random one."""
        x = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device).normal_()
        return x.requires_grad_(self.needs_grad)


@dataclass(frozen=True)
class Alike:
    """Layers that cost the same: of one kind and shape, called with the same."""

    names: tuple[str, ...]
    kind: str
    weight_shape: tuple[int, ...]
    calls: tuple[Call, ...]


def record_calls(contenders: Contenders) -> dict[str, list[Call]]:
    """The calls of each layer that can be sparse, in one step of the dense model."""
    model = contenders.dense.model
    found: dict[str, list[Call]] = {name: [] for name in contenders.converted}

    def hook(calls: list[Call]) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call.of(args[0] if args else kwargs["input"]))

        return note

    with ExitStack() as stack:
        for name, calls in found.items():
            layer = model.get_submodule(name)
            handle = layer.register_forward_pre_hook(hook(calls), with_kwargs=True)
            stack.callback(handle.remove)
        contenders.dense.step()
    return found


def alike(contenders: Contenders, calls: dict[str, list[Call]]) -> list[Alike]:
    """The layers that were called, in groups, in module order."""
    groups: dict[Any, list[str]] = {}
    for name, made in calls.items():
        if made:
            layer = contenders.dense.model.get_submodule(name)
            left = tuple(contenders.layer(name, variant) is None for variant in contenders.sparse)
            groups.setdefault((_signature(layer), left, tuple(made)), []).append(name)
    found = []
    for (_, _, made), names in groups.items():
        layer = contenders.dense.model.get_submodule(names[0])
        found.append(Alike(tuple(names), type(layer).__name__, tuple(layer.weight.shape), made))
    return found


def _signature(layer: nn.Linear | nn.Conv2d) -> tuple[Any, ...]:
    """All that the time of a layer depends on, besides its input."""
    weight, bias = layer.weight, layer.bias
    geometry = (
        (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else ()
    )
    grads = (weight.requires_grad, None if bias is None else bias.requires_grad)
    return (type(layer), tuple(weight.shape), weight.stride(), weight.dtype, grads, geometry)


class LayerRun:
    """All calls of a layer in a step.

    Parameters
    ----------
    layer : torch.nn.Module
    inputs : sequence of Tensor
        For each call.
    settings : Settings
    """

    def __init__(self, layer: nn.Module, inputs: Sequence[Tensor], settings: Settings) -> None:
        self.layer = layer
        self._settings = settings
        self._inputs = inputs
        with torch.no_grad():
            self._grads = [torch.randn_like(y) for y in self._outputs()]
        self._parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def _outputs(self) -> Iterator[Tensor]:
        for x in self._inputs:
            with self._settings.precision():
                y = self.layer(x)
            yield y

    def step(self) -> None:
        """Forward and backward, with the gradients of the parameters and of inputs that need one."""
        for x, y, grad in zip(self._inputs, self._outputs(), self._grads, strict=True):
            wanted = [*([x] if x.requires_grad else []), *self._parameters]
            if wanted:
                torch.autograd.grad(y, wanted, grad)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Forward alone."""
        for _ in self._outputs():
            pass
