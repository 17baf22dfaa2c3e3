"""The layers of a state dict, in whatever form they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparsekern.convert.errors import ConvertError
from sparsekern.export.dense import dense_from_packed
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.two_four import TwoFour

# form -> the tensors that it consists of, the first of which says whether two layers are tied.
FORMS = {
    "int8 2:4": ("values", "metadata", "scale", "x_scale"),
    "2:4": ("values", "metadata"),
    "2:4 masked": ("weight", "metadata", "age"),
    "packed": ("values", "pattern"),
    "masked": ("weight", "pattern"),
    "pruned": ("weight_orig", "weight_mask"),
    "csr": ("weight",),
    "bsr": ("weight",),
    "dense": ("weight",),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = {torch.sparse_csr: "csr", torch.sparse_bsr: "bsr", torch.strided: "dense"}


@dataclass(frozen=True)
class Layer:
    """The weight of a linear layer or a convolution.

    Attributes
    ----------
    name : str
        The layer's; empty where the whole model is one layer.
    form : str
        One of `FORMS`.
    tensors : dict of str to Tensor
        Those of the form, by their own names.
    given_shape : tuple of int, optional
        Of the dense weight, where somebody knows: a packed 2:4 convolution is a matrix.
    """

    name: str
    form: str
    tensors: dict[str, Tensor]
    given_shape: tuple[int, ...] | None = None

    @property
    def prefix(self) -> str:
        return f"{self.name}." if self.name else ""

    @property
    def stored(self) -> Tensor:
        """The values, or the dense weight."""
        return self.tensors[FORMS[self.form][0]]

    @property
    def nbytes(self) -> int:
        return sum(map(nbytes, self.tensors.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        if self.form in ("packed", "masked"):
            return tuple(self._pattern.shape)
        if self.form not in ("2:4", "int8 2:4"):
            return tuple(self.stored.shape)
        matrix = (self.stored.shape[0], 2 * self.stored.shape[1])
        return matrix if self.given_shape is None else self.given_shape

    @cached_property
    def _pattern(self) -> Pattern:
        return Pattern(self.tensors["pattern"])

    @property
    def dense(self) -> Tensor:
        """The dense weight, 0 where nothing is stored; float32 for int8 values."""
        if self.form == "dense":
            return self.stored
        if self.form in ("csr", "bsr"):
            return self.stored.to_dense()
        if self.form == "pruned":
            return torch.where(self.tensors["weight_mask"] != 0, self.stored, 0)
        matrix = dense_from_packed(self.tensors)["weight"]
        return from_matrix(matrix, self.shape)

    @property
    def mask(self) -> Tensor:
        """bool, True at the positions that are stored; of a dense weight, where it is not 0."""
        if self.form in ("packed", "masked"):
            return self._pattern.to_mask()
        if self.form in ("2:4", "int8 2:4"):
            return from_matrix(TwoFour(self.stored, self.tensors["metadata"]).to_mask(), self.shape)
        if self.form == "2:4 masked":
            matrix = to_matrix(self.stored)
            packed = TwoFour(matrix.new_empty(len(matrix), matrix.shape[1] // 2), self.tensors["metadata"])
            return from_matrix(packed.to_mask(), self.shape)
        if self.form == "pruned":
            return self.tensors["weight_mask"] != 0
        if self.form in ("csr", "bsr"):
            ones = torch.ones_like(self.stored.values(), dtype=torch.uint8)
            make = torch.sparse_csr_tensor if self.form == "csr" else torch.sparse_bsr_tensor
            places = (self.stored.crow_indices(), self.stored.col_indices(), ones, self.shape)
            stored = make(*places, check_invariants=True).to_dense() != 0
            # A block is stored for the sake of one weight; the zeros beside it are none.
            return stored if self.form == "csr" else stored & (self.dense != 0)
        return self.dense != 0

    @cached_property
    def pattern(self) -> Pattern:
        return self._pattern if self.form in ("packed", "masked") else Pattern.from_mask(self.mask)

    @cached_property
    def sparsity(self) -> float:
        """The fraction of positions that are not stored."""
        numel = max(1, torch.Size(self.shape).numel())
        if self.form in ("packed", "masked"):
            return 1 - self._pattern.nnz / numel
        return 1 - int(torch.count_nonzero(self.mask)) / numel


def nbytes(tensor: Tensor) -> int:
    """Of what a file has of a tensor."""
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return sum(map(nbytes, parts))
    return tensor.numel() * tensor.element_size()


def to_matrix(weight: Tensor) -> Tensor:
    """A convolution's has input channels last."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_matrix`; takes a weight that has the shape as well."""
    if matrix.shape == shape:
        return matrix
    rows, channels, height, width = shape
    return matrix.view(rows, height, width, channels).permute(0, 3, 1, 2).contiguous()


def find_layers(
    state: Mapping[str, Tensor], header: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Any]
) -> dict[str, Layer]:
    """The layers of a state dict, by name, in its order.

    Parameters
    ----------
    state : mapping of str to Tensor
    header : mapping
        What the file says of sparse layers: ``stored`` and ``shape``, by name.
    shapes : mapping of str to tuple of int
        Of dense weights, by layer name, where a model is known.

    Raises
    ------
    ConvertError
        For a layer whose tensors do not fit together, or that the header says is there and is not; for a
        2:4 layer whose mask cannot be known.
    """
    names = dict.fromkeys(key.rpartition(".")[0] for key in state)
    layers = {}
    for name in names:
        prefix = f"{name}." if name else ""
        form = next((form for form in FORMS if _has(state, prefix, form)), None)
        if form is None:
            continue
        own = {part: state[prefix + part] for part in FORMS[form] if prefix + part in state}
        given = header.get(name, {}).get("shape", shapes.get(name))
        layers[name] = _checked(Layer(name, form, own, None if given is None else tuple(given)))
    for name, described in header.items():
        form = layers[name].form if name in layers else "none"
        if form == "none" or form == "dense":
            if described["stored"] == "2:4 weight" and form == "dense":
                raise ConvertError(
                    f"layer {name!r} must have a 2:4 mask in the file, got the dense weight of a layer that "
                    "is trained with one: call sparsekern.nn.fix_masks_(model), then save it"
                )
            raise ConvertError(f"layer {name!r} must be there as the header says, got {form}")
    return layers


def _has(state: Mapping[str, Tensor], prefix: str, form: str) -> bool:
    """Whether a state dict has a layer in that form."""
    main, *others = (state.get(prefix + part) for part in FORMS[form])
    if main is None:
        return False
    if form in LAYOUTS.values():
        return (
            LAYOUTS.get(main.layout) == form
            and (main.dim() == 2 or (main.dim() == 4 and form == "dense"))
            and main.dtype in DTYPES
        )
    needed = others[:2] if form == "int8 2:4" else others[:1]
    if any(tensor is None for tensor in needed):
        return False
    second = needed[0]
    if form in ("packed", "masked"):
        return second.dtype == torch.int32 and second.dim() == 1
    if form == "pruned":
        return main.dim() in (2, 4) and second.shape == main.shape
    return second.dtype == torch.uint8 and second.dim() == 2


def _checked(layer: Layer) -> Layer:
    """Raise for tensors that do not fit together: everything is decoded before anything is written."""
    try:
        shape = layer.shape
        if layer.form == "packed" and layer.stored.shape != (layer.pattern.nnz,):
            raise ValueError(f"{layer.pattern.nnz} values, got {tuple(layer.stored.shape)}")
        if layer.form == "masked" and tuple(layer.stored.shape) != shape:
            raise ValueError(f"a weight of shape {shape}, got {tuple(layer.stored.shape)}")
        if "2:4" in layer.form:
            rows = to_matrix(layer.stored)
            values = rows if "values" in layer.tensors else rows.new_empty(len(rows), rows.shape[1] // 2)
            TwoFour(values, layer.tensors["metadata"]).check()
            numel = values.numel() * 2
            if len(shape) not in (2, 4) or torch.Size(shape).numel() != numel or shape[0] != len(rows):
                raise ValueError(f"a matrix of shape {shape}, got {numel} positions in {len(rows)} rows")
        if layer.form == "int8 2:4" and layer.tensors["scale"].shape != shape[:1]:
            raise ValueError(f"{shape[0]} scales, got shape {tuple(layer.tensors['scale'].shape)}")
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConvertError(f"layer {layer.name!r} must have tensors that fit together: {error}") from None
    return layer
