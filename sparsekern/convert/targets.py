"""The formats that weights are converted to, a function of one layer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparsekern.convert.errors import ConvertError
from sparsekern.convert.layers import Layer, to_matrix
from sparsekern.export.torch_sparse import bsr_tensor, csr_tensor
from sparsekern.nn.two_four_checks import misfit
from sparsekern.ops.two_four_values import pack_two_four


@dataclass(frozen=True)
class Options:
    """What decides how layers are converted.

    Attributes
    ----------
    to : str
        One of `TARGETS`.
    min_sparsity : float
        A dense weight with a smaller fraction of zeros stays as it is.
    prune : bool
        Whether ``"2:4"`` makes weights 2:4 that are not.
    block_size : int
        Of ``"bsr"``.
    """

    to: str
    min_sparsity: float = 0.05
    prune: bool = False
    block_size: int = 64


@dataclass(frozen=True)
class Converted:
    """A layer in its new form.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By their own names.
    form : str
        One of `sparsekern.convert.layers.FORMS`.
    reason : str, optional
        Why it was left as it was, or as a dense weight.
    pruned : int
        Weights that were not 0 and are now.
    """

    tensors: dict[str, Tensor]
    form: str
    reason: str | None = None
    pruned: int = 0


def to_dense(layer: Layer, options: Options) -> Converted:
    return Converted({"weight": layer.dense}, "dense")


def to_packed(layer: Layer, options: Options) -> Converted:
    """As small as it gets without changing a position: what is packed stays, and masks become patterns."""
    if layer.form in ("packed", "2:4", "int8 2:4"):
        return Converted(layer.tensors, layer.form)
    if layer.form == "2:4 masked":
        return _two_four(layer)
    if (reason := _too_dense(layer, options)) is not None:
        return Converted({"weight": layer.dense}, "dense", reason)
    pattern = layer.pattern
    return Converted({"values": pattern.pack(layer.dense), "pattern": pattern.data}, "packed")


def to_masked(layer: Layer, options: Options) -> Converted:
    if (reason := _too_dense(layer, options)) is not None:
        return Converted({"weight": layer.dense}, "dense", reason)
    return Converted({"weight": layer.dense, "pattern": layer.pattern.data}, "masked")


def to_csr(layer: Layer, options: Options) -> Converted:
    if (reason := _no_torch_matrix(layer, options)) is not None:
        return Converted({"weight": layer.dense}, "dense", reason)
    return Converted({"weight": csr_tensor(layer.dense, layer.mask)}, "csr")


def to_bsr(layer: Layer, options: Options) -> Converted:
    reason, size = _no_torch_matrix(layer, options), options.block_size
    if reason is None and any(side % size for side in layer.shape):
        reason = f"its sizes are no multiples of --block-size {size}"
    if reason is not None:
        return Converted({"weight": layer.dense}, "dense", reason)
    return Converted({"weight": bsr_tensor(layer.dense, layer.mask, size)}, "bsr")


def to_two_four(layer: Layer, options: Options) -> Converted:
    """Refuses a sparse layer that is not 2:4; a dense one is pruned where that was asked for, else left."""
    if layer.form == "2:4":
        return Converted(layer.tensors, "2:4")
    if layer.form in ("2:4 masked", "int8 2:4"):
        return _two_four(layer)
    dense, inputs = layer.dense, "in_features" if len(layer.shape) == 2 else "in_channels / groups"
    reason = misfit({inputs: layer.shape[1]})
    if reason is None and not options.prune:
        reason = _too_dense(layer, options)
    if reason is not None:
        return Converted({"weight": dense}, "dense", reason)
    if not bool(dense.isfinite().all()):
        raise ConvertError(f"layer {layer.name!r} must have finite weights to be 2:4, got NaN or an infinity")
    groups = (to_matrix(dense) != 0).unflatten(1, (-1, 4)).sum(2)
    over = groups - 2
    wrong = int((over > 0).sum())
    if wrong and not options.prune:
        raise ConvertError(
            f"layer {layer.name!r} must have at most two weights in every four that are not 0, got more in "
            f"{wrong:,} of {groups.numel():,} groups: --prune sets the least of them to 0, --exclude leaves "
            "the layer dense"
        )
    packed = pack_two_four(to_matrix(dense))
    tensors = {"values": packed.values, "metadata": packed.metadata}
    return Converted(tensors, "2:4", pruned=int(over.clamp(min=0).sum()))


def _two_four(layer: Layer) -> Converted:
    """With the mask that it has: the values at those positions, whatever their magnitudes."""
    metadata, matrix = layer.tensors["metadata"], to_matrix(layer.dense)
    values = matrix[to_matrix(layer.mask)].view(len(matrix), -1)
    return Converted({"values": values, "metadata": metadata}, "2:4")


def _too_dense(layer: Layer, options: Options) -> str | None:
    """Why a layer without a mask of its own counts as dense, if so."""
    if layer.form != "dense":
        return None
    if layer.sparsity == 0:
        return "it has no zeros"
    if layer.sparsity >= options.min_sparsity:
        return None
    return f"its zeros are {layer.sparsity:.2%}, less than --min-sparsity {options.min_sparsity:g}"


def _no_torch_matrix(layer: Layer, options: Options) -> str | None:
    if len(layer.shape) != 2:
        return "PyTorch has no such tensor for a convolution"
    return _too_dense(layer, options)


TARGETS: dict[str, Callable[[Layer, Options], Converted]] = {
    "packed": to_packed,
    "dense": to_dense,
    "masked": to_masked,
    "2:4": to_two_four,
    "csr": to_csr,
    "bsr": to_bsr,
}
