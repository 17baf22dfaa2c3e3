"""Sparse weights in the formats that other code reads: dense state dicts, torch's sparse tensors, files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.cpp.two_four_packing import to_cutlass
from sparsekern.files import write_atomically
from sparsekern.formats.checks import check_choice, check_integer, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.two_four import TwoFour
from sparsekern.nn import SparseModule, TwoFourLayer, TwoFourLinearInt8
from sparsekern.ops.two_four_values import check_rows, unpack_two_four

__all__ = [
    "dense_from_packed",
    "dense_state_dict",
    "load_safetensors",
    "save_safetensors",
    "to_semi_structured",
    "to_torch_sparse",
]

PACKED = (SparseModule, TwoFourLinearInt8)
# The header's key, and the version of what is under it.
FORMAT, VERSION = "sparsekern", 1


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


def to_torch_sparse(
    layer: SparseModule | TwoFourLinearInt8, layout: str = "csr", *, block_size: int | None = None
) -> Tensor:
    """The weight of a linear layer as a sparse tensor of PyTorch.

    Parameters
    ----------
    layer : SparseLinear, TwoFourLinear or TwoFourLinearInt8
    layout : str
        ``"csr"``, or ``"bsr"``: square blocks, of which those with an active position are stored.
    block_size : int, optional
        Of a block, for ``"bsr"`` only, 64 by default; divides both dimensions.

    Returns
    -------
    Tensor
        ``(N, K)``, of the weight's dtype and device. An active position is stored even where it is 0.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; a convolution has no such matrix in PyTorch.
    """
    check_choice(layout, ("csr", "bsr"), "layout")
    if not isinstance(layer, PACKED) or len(layer.mask.shape) != 2:
        raise TypeError(f"layer must be a sparse linear layer, got {type(layer).__name__}")
    dense, mask = layer.to_dense().detach(), layer.mask
    if layout == "csr":
        if block_size is not None:
            raise ValueError(f"block_size must be left out for layout 'csr', got {describe(block_size)}")
        rows, columns = mask.nonzero(as_tuple=True)
        starts, values = _row_starts(rows, mask), dense[rows, columns]
        return torch.sparse_csr_tensor(starts, columns, values, dense.shape, check_invariants=True)
    block = check_integer(64 if block_size is None else block_size, "block_size")
    if any(size % block for size in dense.shape):
        raise ValueError(
            f"block_size must be a divisor of both dimensions, {tuple(dense.shape)}, got {block}"
        )
    stored = _blocks(mask, block).flatten(2).any(2)
    rows, columns = stored.nonzero(as_tuple=True)
    blocks = _blocks(dense, block)[rows, columns]
    starts = _row_starts(rows, stored)
    return torch.sparse_bsr_tensor(starts, columns, blocks, dense.shape, check_invariants=True)


def _row_starts(rows: Tensor, grid: Tensor) -> Tensor:
    counts = torch.bincount(rows, minlength=grid.shape[0])
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """``(N / size, K / size, size, size)``."""
    rows, columns = (side // size for side in matrix.shape)
    return matrix.reshape(rows, size, columns, size).transpose(1, 2)


def to_semi_structured(packed: TwoFour, kind: str | None = None) -> Tensor:
    """A 2:4 weight as `torch.sparse.SparseSemiStructuredTensor`, which `torch.nn.functional.linear` takes.

    Parameters
    ----------
    packed : TwoFour
        In the layout "rows"; float16, bfloat16 or int8. float32 is 1:2 to these kernels, and refused.
    kind : str, optional
        ``"cutlass"``, which can be made on any device, or ``"cusparselt"``, whose arrangement is its
        library's secret, so that a GPU has to make it. By default what PyTorch itself would take on a GPU,
        CUTLASS elsewhere.

    Returns
    -------
    Tensor
        Without gradient. Products need a GPU.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, and for shapes that the kernels do not take; says which
        multiple is needed and the nearest sizes.
    """
    from torch.sparse import SparseSemiStructuredTensor as Torch
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as CuSparseLt
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass

    check_rows(packed)
    packed.check()
    if kind is None:
        kind = "cusparselt" if packed.device.type == "cuda" and not Torch._FORCE_CUTLASS else "cutlass"
    check_choice(kind, ("cutlass", "cusparselt"), "kind")
    if kind == "cusparselt":
        if packed.device.type != "cuda":
            raise ValueError(f"packed must be on a GPU for kind 'cusparselt', got {packed.device}")
        return CuSparseLt.from_dense(unpack_two_four(packed).detach())
    host = packed.detach().to("cpu")
    values, metadata = (part.to(packed.device) for part in to_cutlass(host.values, host.metadata))
    return Cutlass(
        packed.shape,
        packed=values,
        meta=metadata,
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )


def save_safetensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state dict, packed as it is, to a safetensors file that says how to read it.

    The header's ``sparsekern`` is JSON with, for each sparse layer, its class, the dense weight's shape and
    what its tensors are; [the formats](docs/formats.md) are few lines to decode in any language.

    Parameters
    ----------
    model : torch.nn.Module
    path : path
        Ends in ``.safetensors``. Written whole or not at all.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    ImportError
        Without the package safetensors.
    OSError
        When the file cannot be written; one that was there is still there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    path = _checked_path(path)
    package = _safetensors()
    # Tied weights are stored once; safetensors refuses two names for one memory.
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        kept = first.setdefault(id(value), key)
        if kept == key:
            tensors[key] = value.detach().cpu().contiguous().clone()
        else:
            aliases[key] = kept
    header = {"version": VERSION, "layers": _describe_layers(model), "aliases": aliases}
    # One key: the package writes several in any order, and equal models are to make equal files.
    content = package.torch.save(tensors, {FORMAT: json.dumps(header)})
    write_atomically(path, content)


def load_safetensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_safetensors` wrote into a model with the same layers.

    Parameters
    ----------
    model : torch.nn.Module
        With the same sparse layers; their patterns may be others. Where one has another number of active
        positions, all Parameters become new ones: load before the optimizer is made.
    path : path

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, the file is damaged or of another kind or version, or its
        layers are not the model's: names the first that differs. Nothing is changed then.
    ImportError
        Without the package safetensors.
    OSError
        When the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    path = _checked_path(path)
    package = _safetensors()
    with open(path, "rb"):  # an unreadable file is an OSError, whatever the package makes of it
        pass
    try:
        with package.safe_open(path, framework="pt") as file:
            header = _read_header(path, file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except package.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, found a damaged one ({error})") from None
    _check_layers(path, _describe_layers(model), header["layers"])
    state = {**tensors, **{key: tensors[kept] for key, kept in header["aliases"].items() if kept in tensors}}
    own = model.state_dict()
    resized = any(
        key.endswith("values") and key in state and state[key].shape != tensor.shape
        for key, tensor in own.items()
    )
    for key, tensor in own.items():
        if key in state and tensor.is_floating_point() and state[key].is_floating_point():
            state[key] = state[key].to(tensor.dtype)
    try:  # on a copy, since PyTorch stops half way at what does not fit
        copy.deepcopy(model).load_state_dict(state, assign=resized)
    except RuntimeError as error:
        raise ValueError(f"{path}: expected the tensors of this model: {error}") from error
    model.load_state_dict(state, assign=resized)


def _describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {"class": type(layer).__name__, "shape": list(layer.mask.shape), "stored": _stored(layer)}
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, PACKED)
    }


def _stored(layer: SparseModule | TwoFourLinearInt8) -> str:
    """Which of the formats: its tensors are told apart by it."""
    if isinstance(layer, TwoFourLinearInt8):
        return "int8 2:4"
    return f"{'2:4' if isinstance(layer, TwoFourLayer) else 'pattern'} {layer.weight_name}"


def _read_header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(FORMAT)
    if text is None:
        raise ValueError(f"{path}: expected a file of save_safetensors, found one without its header")
    try:
        header = json.loads(text)
        version, _, aliases = header["version"], header["layers"].items(), header["aliases"].values()
        if not all(isinstance(name, str) for name in aliases):
            raise TypeError("aliases: expected names")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path}: expected the header of save_safetensors, found {text[:60]!r}") from None
    if version != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, found {version}")
    return header


def _check_layers(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        expected, found = ours.get(name, "a dense layer or none"), theirs.get(name, "a dense layer or none")
        if expected != found:
            raise ValueError(f"{path}: expected {expected} for layer {name!r}, found {found}")


def _checked_path(path: Any) -> Path:
    rule = "path must be the path of a .safetensors file"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{rule}, got {describe(path)}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{rule}, got {os.fspath(path)!r}")
    return Path(path)


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors
