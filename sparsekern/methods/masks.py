"""Masks from elsewhere: of a model that is there, of a pruning run, of a file."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsekern.files import write_atomically
from sparsekern.formats.checks import check_mask, check_strided, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.two_four import TwoFour
from sparsekern.methods.straight_through import learned_mask
from sparsekern.nn import SparseLayer, SparseModule, TwoFourLinearInt8
from sparsekern.nn.reasons import DENSE_TYPES
from sparsekern.state_files import PLACES, at_place, outline, read_torch, reason

__all__ = ["load_masks", "masks_of", "save_masks"]

KINDS = ("pattern", "weight_mask", "metadata")


def masks_of(model: nn.Module) -> dict[str, Pattern]:
    """Which weights of a model are active, by layer name, as ``sparsify_(other, masks=...)`` takes them.

    - Sparse layers: their patterns; of 2:4 layers, the masks.
    - ``nn.Linear`` and ``nn.Conv2d`` pruned by `torch.nn.utils.prune`: the mask, also where it removes
      nothing. A parametrization of the weight with a buffer ``mask`` counts as one, and so does
      `straight_through_` with its mask of evaluation mode.
    - Any other ``nn.Linear`` and ``nn.Conv2d`` whose weight has exact zeros (pruning made permanent, or
      `densify_`): what is not zero. A layer without a zero is taken to be dense and left out.

    Parameters
    ----------
    model : torch.nn.Module
        It is left unchanged. A layer used in several places has its first name.

    Returns
    -------
    dict of str to Pattern
        In module order, each on its layer's device; empty for a dense model.

    Raises
    ------
    TypeError, ValueError
        When `model` is no module, or zeros are looked for in a weight on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            masks[name] = module.pattern
        elif isinstance(module, (SparseModule, TwoFourLinearInt8)):
            masks[name] = Pattern.from_mask(module.mask)
        elif parametrize.type_before_parametrizations(module) in DENSE_TYPES:
            mask = _pruning_mask(module)
            mask = _zeros(module, name) if mask is None else mask
            if mask is not None:
                masks[name] = Pattern.from_mask(mask)
    return masks


def _pruning_mask(module: nn.Module) -> Tensor | None:
    mask = module._buffers.get("weight_mask")
    if mask is not None:
        return mask != 0
    if (learned := learned_mask(module)) is not None:
        return learned.mask()
    if not parametrize.is_parametrized(module, "weight"):
        return None
    masks = [step._buffers.get("mask") for step in module.parametrizations.weight]
    masks = [mask != 0 for mask in masks if mask is not None]
    return torch.stack(masks).all(0) if masks else None


@torch.no_grad()
def _zeros(module: nn.Module, name: str) -> Tensor | None:
    mask = check_strided(module.weight, f"{name}.weight" if name else "weight") != 0
    return None if mask.all() else mask


def save_masks(masks: Mapping[str, Tensor | Pattern] | nn.Module, path: str | os.PathLike[str]) -> None:
    """Write masks to a file that `load_masks` reads; whole or not at all.

    Parameters
    ----------
    masks : mapping of str to Pattern or bool tensor, or torch.nn.Module
        By layer name; of a model, those of `masks_of`.
    path : path
        ``*.safetensors`` is written in that format, any other by ``torch.save``: packed patterns (int32)
        under the keys ``NAME.pattern``, as in a state dict.

    Raises
    ------
    TypeError, ValueError
        When `masks` or `path` is none of the above, or `masks` has no mask.
    ImportError
        For ``*.safetensors`` without the package of that name.
    OSError
        When the file cannot be written; one that was there is still there.
    """
    path = _checked_path(path)
    given = masks_of(masks) if isinstance(masks, nn.Module) else masks
    if not isinstance(given, Mapping):
        raise TypeError(f"masks must be a mapping from layer name to mask, or a model, got {describe(masks)}")
    if not given:
        came = f"a {type(masks).__name__} without any" if isinstance(masks, nn.Module) else "none"
        raise ValueError(f"masks must be for at least one layer, got {came}")
    # Copies, since safetensors refuses two tensors that share memory.
    tensors = {_key(name): _pattern(name, mask).data.cpu().clone() for name, mask in given.items()}
    if path.suffix == ".safetensors":
        content = _safetensors(path).torch.save(tensors, {"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    write_atomically(path, content)


def _checked_path(path: Any) -> Path:
    rule = "path must be the path of a file"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{rule}, got {describe(path)}")
    if not Path(path).name:
        raise ValueError(f"{rule}, got {os.fspath(path)!r}")
    return Path(path)


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"masks must have layer names for keys, got {describe(name)}")
    return f"{name}.pattern" if name else "pattern"


def _pattern(name: str, mask: Any) -> Pattern:
    if isinstance(mask, Pattern):
        return mask
    argument = f"masks[{name!r}]"
    check_mask(mask, argument)
    if mask.dim() not in (2, 4):
        raise ValueError(f"{argument} must have 2 or 4 dimensions, got shape {tuple(mask.shape)}")
    return Pattern.from_mask(mask)


def load_masks(path: str | os.PathLike[str]) -> dict[str, Pattern]:
    """Read masks, as ``sparsify_(model, masks=...)`` takes them.

    The file may be one of `save_masks`; a state dict of sparse layers, or of layers pruned by
    `torch.nn.utils.prune`; the checkpoint of a run, or another file of ``torch.save`` with the state dict
    under ``state_dict``, ``model`` or ``model_state_dict``; or a dictionary of nothing but bool masks. Files
    of ``torch.save`` are read with ``weights_only=True``, those named ``*.safetensors`` by that package.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to Pattern
        By layer name, on the CPU.

    Raises
    ------
    TypeError
        When `path` is none.
    ValueError
        When the file is damaged or has no masks: names the file, what was expected and what was found.
    ImportError
        For ``*.safetensors`` without the package of that name.
    OSError
        When the file cannot be read.
    """
    path = _checked_path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for place in PLACES:
        state = at_place(content, place)
        if state is not None and (tensors := _mask_tensors(state)):
            return {name: _loaded(path, name, tensor) for name, tensor in tensors.items()}
    raise _unexpected(path, outline(content))


def _mask_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """What stands for a mask in a state dict, by layer name: packed patterns (int32) and masks."""
    tensors = {k: value for k, value in state.items() if isinstance(k, str) and isinstance(value, Tensor)}
    found = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind == "pattern" and tensor.dtype == torch.int32:
            found[name] = tensor
        elif kind == "metadata" and tensor.dtype == torch.uint8 and tensor.dim() == 2:
            found[name] = _two_four_mask(tensor, tensors, f"{name}." if name else "")
        # Pruned layers of other dimensions are none that can become sparse.
        elif kind == "weight_mask" and tensor.dim() in (2, 4):
            found[name] = tensor != 0
    only_masks = len(tensors) == len(state) and all(tensor.dtype == torch.bool for tensor in tensors.values())
    return tensors if only_masks and not found else found


def _two_four_mask(metadata: Tensor, tensors: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Of a linear layer; a convolution's shape is that of its dense weight, where it has one."""
    weight, values = (tensors.get(prefix + name) for name in ("weight", "values"))
    like = values if weight is None else weight
    if like is None:
        raise ValueError(f"{prefix}metadata must come with values or a weight, got it alone")
    columns = 2 * values.shape[1] if weight is None else weight[0].numel()
    packed = TwoFour(metadata.new_empty(len(metadata), columns // 2), metadata).check()
    mask = packed.to_mask()
    if weight is None or weight.dim() == 2:
        return mask
    rows, channels, height, width = weight.shape
    return mask.view(rows, height, width, channels).permute(0, 3, 1, 2)


def _loaded(path: Path, name: str, tensor: Tensor) -> Pattern:
    try:
        return Pattern.from_mask(tensor) if tensor.dtype == torch.bool else Pattern(tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unexpected(path, f"one for {name!r} that is none: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        return read_torch(path)
    except ValueError as error:
        raise _unexpected(path, str(error)) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Its masks, or everything if it is all bool: not the weights of a large model."""
    package = _safetensors(path)
    with open(path, "rb"):  # an unreadable file is an OSError, whatever the package makes of it
        pass
    try:
        with package.safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if not all(file.get_slice(key).get_dtype() == "BOOL" for key in keys):
                layers = {key.rpartition(".")[0] for key in keys if key.rpartition(".")[2] == "metadata"}
                keys = [key for key in keys if key.rpartition(".")[2] in KINDS or _is_of(key, layers)]
            return {key: file.get_tensor(key) for key in keys}
    except package.SafetensorError as error:
        raise _unexpected(path, f"a damaged file or one of another kind ({reason(error)})") from None


def _is_of(key: str, layers: set[str]) -> bool:
    """Whether it is the weight of a 2:4 layer, whose shape is needed."""
    name, _, kind = key.rpartition(".")
    return name in layers and kind in ("values", "weight")


def _safetensors(path: Path) -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{path}: a .safetensors file needs the package safetensors, which is not installed; a file with "
            f"another ending is one of torch.save"
        ) from error
    return safetensors


def _unexpected(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: expected masks (a file of save_masks, a state dict of sparse or pruned layers, or a "
        f"checkpoint with one), found {found}"
    )
