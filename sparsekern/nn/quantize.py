"""Rounding the 2:4 layers of a trained model to eight bits, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_choice, describe
from sparsekern.nn.attributes import swap
from sparsekern.nn.int8 import TwoFourLinearInt8
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.survey import check_model, excluded_names
from sparsekern.nn.two_four_linear import TwoFourLinear

__all__ = ["quantize_int8_"]


@torch.no_grad()
def quantize_int8_(
    model: nn.Module,
    *,
    activations: str = "dynamic",
    calibrate: Callable[[], Any] | None = None,
    exclude: Iterable[str] = (),
) -> SparsifyReport:
    """Replaces every `TwoFourLinear` by a `TwoFourLinearInt8`, in place.

    Weights are symmetric with one scale for each output. Activations are rounded as each call comes: with a
    scale for each sample (``"dynamic"``), or with one for all, the largest magnitude that `calibrate` brought
    over 127 (``"static"``); what is larger later is cut off there.

    Parameters
    ----------
    model : torch.nn.Module
        That contains such layers.
    activations : str
        ``"dynamic"`` or ``"static"``.
    calibrate : callable, optional
        For ``"static"``: runs the model, in the mode that it is to have, on data that stands for all.
    exclude : names or glob patterns
        Layers to leave as they are.

    Returns
    -------
    SparsifyReport
        Its bytes are those of the int8 layers.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, a model without such layers, weights that have no int8 form, and, for
        ``"static"``, a layer that `calibrate` did not reach, or only with zeros. Nothing is changed then.
    """
    check_model(model)
    check_choice(activations, ("dynamic", "static"), "activations")
    if (activations == "static") != (calibrate is not None) or not callable(calibrate or len):
        rule = "a function for activations='static', and left out for 'dynamic'"
        raise TypeError(f"calibrate must be {rule}, got {describe(calibrate)} for {activations!r}")
    excluded = excluded_names(model, exclude)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, TwoFourLinear) and name not in excluded
    }
    if not layers:
        raise ValueError(
            f"model must have a TwoFourLinear to quantize, got {type(model).__name__} with none; "
            "sparsify_(model, pattern='2:4', ...) makes them"
        )
    scales = _input_scales(layers, calibrate) if calibrate is not None else dict.fromkeys(layers)
    swaps: dict[int, nn.Module] = {}
    reports = []
    for name, layer in layers.items():
        try:
            rounded = TwoFourLinearInt8(layer.packed.detach(), layer.bias, x_scale=scales[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"model must have weights with an int8 form, got {name!r}: {error}") from error
        swaps[id(layer)] = rounded.train(layer.training)
        reports.append(_report(name, layer, rounded))
    swap(model, swaps)
    return SparsifyReport(tuple(reports))


def _input_scales(layers: dict[str, TwoFourLinear], calibrate: Callable[[], Any]) -> dict[str, float]:
    largest = dict.fromkeys(layers, 0.0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                largest[name] = max(largest[name], float(inputs[0].abs().amax()))

        return note

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(watch(name)))
        calibrate()
    for name, magnitude in largest.items():
        if not 0 < magnitude < float("inf"):
            raise ValueError(
                f"calibrate must bring every layer finite inputs that are not all 0, got {magnitude} as the "
                f"largest magnitude for layer {name!r}"
            )
    return {name: magnitude / 127 for name, magnitude in largest.items()}


def _report(name: str, layer: TwoFourLinear, rounded: TwoFourLinearInt8) -> LayerReport:
    mask = rounded.mask
    scales = [rounded._buffers[name] for name in rounded.SCALES if rounded._buffers[name] is not None]
    return LayerReport(
        name=name,
        shape=tuple(mask.shape),
        sparsity_asked=0.5,
        sparsity=0.5,
        nnz=mask.numel() // 2,
        numel=mask.numel(),
        fan_in_min=mask.shape[1] // 2,
        fan_in_mean=mask.shape[1] / 2,
        value_bytes=rounded.values.nbytes + sum(scale.nbytes for scale in scales),
        pattern_bytes=rounded.metadata.nbytes,
        dense_bytes=mask.numel() * layer.stored_weight.element_size(),
    )
