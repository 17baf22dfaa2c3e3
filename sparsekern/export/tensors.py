"""The tensors that a model's state dict names, one module at a time and without copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekern.export.safetensors_stream import DTYPE_NAMES, size_of
from sparsekern.formats.checks import describe
from sparsekern.nn.base import SparseLayer


@dataclass(frozen=True)
class Named:
    """One entry of a state dict.

    Attributes
    ----------
    module : torch.nn.Module
        Whose tensor it is; `prefix` and the tensor's own name make the key.
    kept : str
        The first key of the same tensor: its own, but for tied weights and modules in several places.
    """

    module: nn.Module
    prefix: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_meta: bool
    kept: str

    @property
    def nbytes(self) -> int:
        return size_of(self.dtype, self.shape)


def own_state(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's part of the state dict: the very tensors, but for masks of 2:4 weights, which are copied."""
    state: dict[str, Tensor] = {}
    module._save_to_state_dict(state, prefix, keep_vars=True)
    if isinstance(module, SparseLayer):
        state[f"{prefix}pattern"] = module.pattern.data
    return state


def named_tensors(model: nn.Module) -> dict[str, Named]:
    """What the state dict of a model names, in its order.

    Raises
    ------
    TypeError, ValueError
        For what is in state dicts and has no place in files of tensors.
    """
    named: dict[str, Named] = {}
    first: dict[int, str] = {}
    for prefix, module in modules_by_prefix(model):
        _check_hooks(prefix, module)
        state = own_state(prefix, module)
        # Identities of what lives on; those of copies may come again.
        lasting = {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
        if isinstance(module, SparseLayer):
            lasting.add(id(module.pattern.data))
        for key, tensor in state.items():
            _check_tensor(key, tensor)
            kept = first.setdefault(id(tensor), key) if id(tensor) in lasting else key
            named[key] = Named(module, prefix, tensor.dtype, tuple(tensor.shape), tensor.is_meta, kept)
    return named


def modules_by_prefix(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every place of every module, with what keys of a state dict begin with there."""
    for name, module in model.named_modules(remove_duplicate=False):
        yield (f"{name}." if name else ""), module


def _check_hooks(prefix: str, module: nn.Module) -> None:
    if module._state_dict_hooks or module._state_dict_pre_hooks:
        raise ValueError(
            f"model must have no state-dict hooks, which want all of it at once, got some on {prefix[:-1]!r} "
            f"({type(module).__name__}): use save_safetensors and load_safetensors"
        )


def _check_tensor(key: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"model must have a state dict of tensors, got {describe(tensor)} for {key!r}")
    if is_lazy(tensor):
        raise ValueError(f"model must have initialized modules, got a lazy one that has not run for {key!r}")
    if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
        raise TypeError(
            f"model must have dense tensors of a dtype that safetensors has, got {describe(tensor)}, "
            f"{tensor.layout}, for {key!r}"
        )
    if hasattr(tensor, "full_tensor"):
        raise ValueError(
            f"model must have whole tensors, got a shard of a distributed one for {key!r}: gather it before"
        )
