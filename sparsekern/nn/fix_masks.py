"""`fix_masks_`: from 2:4 masks that follow a dense weight to fixed ones, for fine-tuning."""

from __future__ import annotations

from torch import nn

from sparsekern.formats.checks import describe
from sparsekern.nn.checks import check_unwrapped
from sparsekern.nn.two_four_layer import TwoFourLayer


def fix_masks_(model: nn.Module) -> list[str]:
    """Turns every 2:4 layer with a dense weight into one of ``method="fixed"``, in place.

    Each keeps the mask that it has now and half of its weight, as a new Parameter ``values``: call this
    before the optimizer is made. Layers that share a weight go on sharing it.

    Parameters
    ----------
    model : torch.nn.Module
        May be a single layer.

    Returns
    -------
    list of str
        The names of the layers turned, empty when there was none.

    Raises
    ------
    TypeError, ValueError
        When `model` is no module or wrapped in DDP, or a weight has NaN or an infinity. Nothing has been
        changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    check_unwrapped(model)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, TwoFourLayer) and layer.method != "fixed"
    }
    # All are packed before the first is changed: that fails where a weight is not finite.
    packed = {}
    for name, layer in layers.items():
        if id(layer.weight) not in packed:
            try:
                packed[id(layer.weight)] = layer.packed
            except ValueError as error:
                raise ValueError(
                    f"model must have weights that can be packed, got {name!r}: {error}"
                ) from error
    fixed: dict[int, TwoFourLayer] = {}
    for layer in layers.values():
        weight = id(layer.weight)
        layer.fix_mask_(packed[weight])
        if (first := fixed.setdefault(weight, layer)) is not layer:
            layer.tie_weight(first)
    return list(layers)
