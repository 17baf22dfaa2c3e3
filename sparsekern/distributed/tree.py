"""Nested states cut in two: tensors with their places, and the document that says where each belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_sharded", "join", "split", "tensors_of"]

# A dict with this key alone stands in a document for the tensor of that place.
PLACE = "sparsekern.tensor"


def is_sharded(value: Any) -> bool:
    """Whether a tensor is spread over processes."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def split(tree: Any, place: str) -> tuple[Any, dict[str, Tensor]]:
    """A document of plain values, and the tensors by their places, such as ``"model/0.values"``.

    Single numbers stay in the document, as optimizers count their steps in; so do sparse layouts. All else
    that is no dict, list or tuple stays as it is.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(part, f"{place}/{_escaped(key)}") for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk(part, f"{place}/{i}") for i, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        if is_sharded(value) or (value.dim() > 0 and value.layout == torch.strided):
            tensors[place] = value.detach()
            return {PLACE: place}
        # Written as a part of what it is a view of, it would take the whole along.
        return value.detach().clone()

    return walk(tree, place), tensors


def join(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state whose document and tensors these are."""
    if isinstance(document, dict):
        if document.keys() == {PLACE}:
            return tensors[document[PLACE]]
        return {key: join(part, tensors) for key, part in document.items()}
    if type(document) in (list, tuple):
        return type(document)(join(part, tensors) for part in document)
    return document


def tensors_of(document: Any) -> list[str]:
    """The places of all tensors that a document speaks of."""
    if isinstance(document, dict):
        if document.keys() == {PLACE}:
            return [document[PLACE]]
        document = list(document.values())
    if type(document) in (list, tuple):
        return [place for part in document for place in tensors_of(part)]
    return []


def _escaped(key: Any) -> str:
    """A key as a part of a place, different for each."""
    if isinstance(key, str):
        return key.replace("~", "~0").replace("/", "~1")
    return f"~({key!r})"
