"""The weights that are scored, and the model left as it was however scoring ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_shape, check_strided
from sparsekern.nn.conversion import PatternConversion
from sparsekern.nn.survey import check_any, check_model, check_replaceable, survey, tied_groups

__all__ = ["left_unchanged", "masked", "weights_to_score"]


def weights_to_score(model: Any, exclude: Iterable[str]) -> dict[str, nn.Parameter]:
    """The weights that ``sparsify_(model, exclude=exclude)`` would convert, by layer name, in module order.

    A weight that several layers share is there once, under the first one's name.

    Raises
    ------
    TypeError, ValueError
        For what `sparsify_` refuses too, a model without a dense layer left, and a weight without contents.
    """
    check_model(model)
    check_replaceable(model, PatternConversion.types)
    found = survey(model, exclude, None, None)
    check_any(model, found)
    weights = {group[0].name: group[0].module.weight for group in tied_groups(found)}
    if not weights:
        raise ValueError(
            f"model must have a dense layer that can become sparse, got {type(model).__name__}, whose layers "
            "are sparse already"
        )
    for name, weight in weights.items():
        check_shape(tuple(check_strided(weight, f"{name}.weight").shape), f"{name}.weight.shape")
    return weights


@contextmanager
def left_unchanged(model: nn.Module, weights: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Gradients are on inside, for `weights` also where they are frozen; afterwards all is as before.

    That is: what every module has as buffers, and their contents; the flags of training and of gradients; the
    state of torch's generators. Inside, buffers have other memory, so nothing has to be copied back.
    """
    modules = list(model.modules())
    training = [module.training for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    contents = {buffer: buffer.data for buffer in model.buffers()}
    frozen = [weight for weight in weights if not weight.requires_grad]
    devices = {tensor.device.index for tensor in (*model.parameters(), *contents) if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.enable_grad():
        try:
            for buffer, content in contents.items():
                buffer.data = content.clone()
            for weight in frozen:
                weight.requires_grad_(True)
            yield
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            for buffer, content in contents.items():
                buffer.data = content
            for module, flag, own in zip(modules, training, buffers):
                module.training = flag
                module._buffers.clear()
                module._buffers.update(own)


@contextmanager
def masked(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """The weights are 0 outside of `masks` inside, and have their own memory back afterwards."""
    contents = {name: weights[name].data for name in masks}
    try:
        for name, mask in masks.items():
            weights[name].data = torch.where(mask, contents[name], 0)
        yield
    finally:
        for name, content in contents.items():
            weights[name].data = content
