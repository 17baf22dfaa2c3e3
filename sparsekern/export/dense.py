"""Packed weights as those of a dense model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.two_four import TwoFour
from sparsekern.nn import SparseModule, TwoFourLinearInt8
from sparsekern.ops.two_four_values import unpack_two_four

PACKED = (SparseModule, TwoFourLinearInt8)


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the dense model, as before `sparsify_`, with zeros where weights are inactive.

    Parameters
    ----------
    model : torch.nn.Module
        Any, with or without sparse layers.

    Returns
    -------
    dict of str to Tensor
        Each sparse layer has ``weight`` in place of what it stores; all else is as in ``model.state_dict()``,
        in the same order. Dense weights are new tensors.

    Raises
    ------
    TypeError
        When `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    layers = {
        f"{name}." if name else "": module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PACKED)
    }
    dense: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        prefix, _, own = key.rpartition(".")
        prefix = f"{prefix}." if prefix else ""
        if prefix not in layers or own == "bias":
            dense[key] = value
        elif f"{prefix}weight" not in dense:
            dense[f"{prefix}weight"] = layers[prefix].to_dense().detach()
    return dense


def dense_from_packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dense state dict of a state dict with packed weights, without the model.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of a model with sparse layers; on the CPU. Layers without a ``pattern`` or ``metadata`` are taken as
        they are: so is a 2:4 one whose mask is a function of its dense weight. A convolution with a fixed 2:4
        mask has the matrix that it is stored as, the shape of its weight being nowhere.

    Returns
    -------
    dict of str to Tensor
        As `dense_state_dict` of the model, but for those.

    Raises
    ------
    TypeError, ValueError
        When `state` is no such mapping, or what a layer stores does not fit together: names the layer.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a state dict, got {describe(state)}")
    dense: dict[str, Tensor] = {}
    for key, value in state.items():
        prefix, _, own = key.rpartition(".")
        layer = f"{prefix}." if prefix else ""
        packed = [name for name in PACKED_BY if f"{layer}{name}" in state]
        if own in (*PACKED_BY, *BESIDE) and packed:
            continue
        if own not in ("values", "weight") or not packed:
            dense[key] = value
            continue
        try:
            weight = PACKED_BY[packed[0]](own, value, state[f"{layer}{packed[0]}"])
            scale = state.get(f"{layer}scale")
            dense[f"{layer}weight"] = weight if scale is None else weight.float() * scale[:, None]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"state must have a weight for the {packed[0]} of {key!r}: {error}") from error
    return dense


def _of_pattern(name: str, stored: Tensor, data: Tensor) -> Tensor:
    pattern = Pattern(data)
    return pattern.unpack(stored if name == "values" else pattern.pack(stored))


def _of_metadata(name: str, stored: Tensor, metadata: Tensor) -> Tensor:
    if name == "values":
        return unpack_two_four(TwoFour(stored, metadata).check())
    # The dense weight, of which the mask was chosen; a convolution's matrix has input channels last.
    matrix = stored if stored.dim() == 2 else stored.permute(0, 2, 3, 1).flatten(1)
    packed = TwoFour(matrix.new_empty(len(matrix), matrix.shape[1] // 2), metadata).check()
    masked = matrix.where(packed.to_mask(), 0)
    if stored.dim() == 2:
        return masked
    rows, channels, height, width = stored.shape
    return masked.view(rows, height, width, channels).permute(0, 3, 1, 2).contiguous()


# What says where the weights beside it belong.
PACKED_BY = {"pattern": _of_pattern, "metadata": _of_metadata}
# What 2:4 and int8 layers have besides, which a dense one has not.
BESIDE = ("age", "scale", "x_scale")
