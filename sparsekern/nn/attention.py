"""`split_attention_` and `merge_attention_`: attention with layers that `sparsify_` converts, and back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from sparsekern.formats.checks import describe
from sparsekern.nn.attention_weights import PROJECTIONS, input_biases, input_weights, why_not_split
from sparsekern.nn.attributes import carry_beside, swap
from sparsekern.nn.checks import check_unwrapped
from sparsekern.nn.fused import leave_fused_paths, restore_fused_paths
from sparsekern.nn.split_attention import SplitAttention

# What every instance holds; anything else was put there by a user.
ATTENTION_OWN = frozenset(vars(nn.MultiheadAttention(1, 1, device="meta")))
SPLIT_OWN = frozenset(vars(SplitAttention(1, 1, device="meta")))


def split_attention_(model: nn.Module) -> list[str]:
    """Replaces every ``nn.MultiheadAttention`` by the `SplitAttention` that computes the same, in place.

    Its four projections are ``nn.Linear`` layers, which `sparsify_` converts. Call it before that, and before
    the optimizer and any DDP wrapper are made: the weights of queries, keys and values become new Parameters.
    ``out_proj``'s Parameters stay the same, and so do hooks, flags, training mode, attributes set on the
    module, and ties of modules and Parameters. Only the exact type is replaced. Transformer encoders lose
    their fused inference, which reads weights past the layers, until `merge_attention_`.

    Parameters
    ----------
    model : torch.nn.Module
        A module that contains attention.

    Returns
    -------
    list of str
        The names of the modules replaced, empty when there was none.

    Raises
    ------
    TypeError, ValueError
        For what is no module, a model in DDP, a single ``nn.MultiheadAttention``, and one whose weights are
        parametrized, pruned or hooked, or whose ``out_proj`` or ``forward`` was replaced. Nothing has been
        changed then.
    """
    _check(model)
    if _is_attention(model):
        raise TypeError(
            "model must be a module that contains attention, got a single MultiheadAttention, which cannot "
            "replace itself; use SplitAttention.from_attention"
        )
    found = {name: module for name, module in model.named_modules() if _is_attention(module)}
    for name, attention in found.items():
        why = why_not_split(attention) or _shared_elsewhere(model, attention)
        if why is not None:
            raise ValueError(f"model must have attention that can be split, got {name!r}: {why}")
    weights: dict[int, list[nn.Parameter]] = {}
    biases: dict[int, list[nn.Parameter | None]] = {}
    swaps: dict[int, nn.Module] = {}
    for attention in found.values():
        # Attention that shares its packed weight, or bias, goes on sharing what is made of it.
        packed, bias = (attention.in_proj_weight, attention.in_proj_bias)
        split = SplitAttention.from_attention(
            attention,
            None if packed is None else weights.setdefault(id(packed), input_weights(attention)),
            None if bias is None else biases.setdefault(id(bias), input_biases(attention)),
        )
        carry_beside(attention, split, ATTENTION_OWN)
        swaps[id(attention)] = split
    swap(model, swaps)
    leave_fused_paths(model)
    return list(found)


def merge_attention_(model: nn.Module) -> list[str]:
    """Replaces every `SplitAttention` by the ``nn.MultiheadAttention`` that computes the same, in place.

    After it, the state dict has PyTorch's own names. Sparse projections are made dense before, by `densify_`.
    What `split_attention_` keeps is kept here too.

    Parameters
    ----------
    model : torch.nn.Module
        A module that contains split attention.

    Returns
    -------
    list of str
        The names of the modules replaced, empty when there was none.

    Raises
    ------
    TypeError, ValueError
        For what is no module, a model in DDP, a single `SplitAttention`, and one with a projection that is no
        plain ``nn.Linear``, or whose Parameters are to be packed and are held elsewhere too. Nothing has been
        changed then.
    """
    _check(model)
    if isinstance(model, SplitAttention):
        raise TypeError(
            "model must be a module that contains attention, got a single SplitAttention, which cannot "
            "replace itself; use its to_attention()"
        )
    names = []
    swaps: dict[int, nn.Module] = {}
    packed: dict[tuple[int, ...], nn.Parameter] = {}
    for name, split in model.named_modules():
        if not isinstance(split, SplitAttention):
            continue
        try:
            attention = split.to_attention()
        except ValueError as error:
            raise ValueError(
                f"model must have attention that can be merged, got {name!r}: {error}"
            ) from error
        for end in ("weight", "bias"):
            parts = tuple(id(getattr(getattr(split, layer), end)) for layer in PROJECTIONS)
            if (own := getattr(attention, f"in_proj_{end}")) is not None:
                setattr(attention, f"in_proj_{end}", packed.setdefault(parts, own))
        carry_beside(split, attention, SPLIT_OWN)
        swaps[id(split)] = attention
        names.append(name)
    if (why := _shared_part(model, packed)) is not None:
        raise ValueError(f"model must have attention that can be merged, got {why}")
    swap(model, swaps)
    restore_fused_paths(model)
    return names


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module that contains attention, got {describe(model)}")
    check_unwrapped(model)


def _is_attention(module: nn.Module) -> bool:
    """The exact type; parametrizing one changes its type, and it is refused by `why_not_split`."""
    kind = type(module)
    return kind is nn.MultiheadAttention or (
        parametrize.is_parametrized(module) and kind.__base__ is nn.MultiheadAttention
    )


def _shared_elsewhere(model: nn.Module, attention: nn.MultiheadAttention) -> str | None:
    """Whether other modules hold its packed Parameters, which would not be theirs any more."""
    packed = {id(attention.in_proj_weight), id(attention.in_proj_bias)} - {id(None)}
    for name, module in model.named_modules():
        if not _is_attention(module) and any(id(p) in packed for p in module._parameters.values()):
            return f"its packed weight or bias is tied to one of {name or type(module).__name__}"
    return None


def _shared_part(model: nn.Module, packed: Collection[tuple[int, ...]]) -> str | None:
    """Whether a Parameter that is to be packed is also held elsewhere, where it would be another then."""
    places: dict[int, tuple[tuple[int, ...], str]] = {}
    shared = {
        part
        for parts in packed
        for part, name in zip(parts, PROJECTIONS, strict=True)
        if places.setdefault(part, (parts, name)) != (parts, name)
    }
    for name, module in model.named_modules(remove_duplicate=False):
        parent, _, own = name.rpartition(".")
        is_projection = own in PROJECTIONS and isinstance(model.get_submodule(parent), SplitAttention)
        for parameter in module._parameters.values():
            if id(parameter) in (shared if is_projection else places):
                return (
                    f"a projection whose weight or bias is tied to one of {name or type(module).__name__!r}"
                )
    return None
