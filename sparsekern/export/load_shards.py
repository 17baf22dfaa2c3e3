"""Loading what `save_sharded` wrote, with the memory of one layer beside the model's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sparsekern.export.header import check_layers, describe_layers
from sparsekern.export.shard_index import Shards, open_shards
from sparsekern.export.shards import checked_folder
from sparsekern.export.tensors import Named, named_tensors
from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseModule, sparsify_
from sparsekern.nn.attributes import swap
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.fused import restore_fused_paths
from sparsekern.nn.materialize import Materialization, ResetFn, check_device, tensors_on_meta

STORAGE_OF = {"pattern values": "compact", "pattern weight": "masked"}


def load_sharded(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    reset_fn: ResetFn | None = None,
) -> None:
    """Load what `save_sharded` wrote, whole or not at all as far as the files can tell.

    Every file is read and checked first: header, offsets, lengths, SHA-256, patterns, and that all fits the
    model. Then one layer after the other is loaded.

    Parameters
    ----------
    model : torch.nn.Module
        With the same layers. Sparse ones may have other patterns; where one has another number of active
        positions, its Parameter is resized, so load before the optimizer is made. What is on the meta device
        gets its memory on `device`: also linear layers and convolutions that are dense there and that the
        files have as layers on a pattern, which become sparse without a dense weight at any time. Ties stay.
    folder : path
    device : torch.device or str
        For what is on meta. All else stays where it is.
    reset_fn : callable (module), optional
        Called in place of ``reset_parameters()`` for the modules on meta with tensors that are in no state
        dict, as buffers that are not persistent; see `sparsify_`.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, a file is missing, damaged, or of another kind or version, its
        layers are not the model's, or nothing writes the tensors on meta that are in no state dict. Names the
        file, or what differs first. Nothing is changed then.
    OSError
        When the index is missing, or a file cannot be read; while layers are loaded some of them are loaded
        then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    folder = checked_folder(folder)
    target = check_device(device)
    if reset_fn is not None and not callable(reset_fn):
        raise TypeError(f"reset_fn must be callable, got {describe(reset_fn)}")
    with ExitStack() as files:
        shards = open_shards(folder, files)
        with _sparse_on_meta(model, shards):
            check_layers(shards.path, describe_layers(model), shards.layers)
            named = named_tensors(model)
            _check_tensors(shards, named)
            _check_patterns(shards, named)
            _give_memory(named, Materialization(model, target, reset_fn))
        _load(shards, named)


@contextmanager
def _sparse_on_meta(model: nn.Module, shards: Shards) -> Iterator[None]:
    """Dense layers on meta as the sparse layers that are stored; dense again if something is raised."""
    modules = dict(model.named_modules(remove_duplicate=False))
    dense: dict[str, dict[str, Pattern]] = {}
    patterns: dict[str, Pattern] = {}
    for name, layer in shards.layers.items():
        storage = STORAGE_OF.get(layer.get("stored") if isinstance(layer, dict) else None)
        module, key = modules.get(name), shards.kept(f"{name}.pattern")
        if storage is None or type(module) not in (nn.Linear, nn.Conv2d) or not module.weight.is_meta:
            continue
        if list(module.weight.shape) != layer.get("shape") or shards.stored(key) is None:
            continue  # an error, which tells more when the layers are compared
        if key not in patterns:
            patterns[key] = _read_pattern(shards, key)
        dense.setdefault(storage, {})[name] = patterns[key]
    try:
        for storage, masks in dense.items():
            sparsify_(model, masks=masks, storage=storage)
        yield
    except BaseException:
        now = dict(model.named_modules(remove_duplicate=False))
        swap(model, {id(now[name]): modules[name] for masks in dense.values() for name in masks})
        restore_fused_paths(model)
        raise


def _read_pattern(shards: Shards, key: str) -> Pattern:
    try:
        return Pattern(shards.read(key))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shards.path}: expected a valid pattern for {key!r}: {error}") from error


def _check_tensors(shards: Shards, named: dict[str, Named]) -> None:
    def differ(key: str, expected: Any, found: Any) -> None:
        raise ValueError(f"{shards.path}: expected {expected} for {key!r}, found {found}")

    for key, entry in named.items():
        stored = shards.stored(key)
        if stored is None:
            differ(key, "a tensor", "none")
        # Two weights may be on one pattern by chance, and each have its own in the files.
        if not key.endswith("pattern") and shards.kept(entry.kept) != shards.kept(key):
            differ(key, f"the tensor of {entry.kept!r}, which the model shares with it", "another")
        if not _has_free_length(key, entry) and stored.shape != entry.shape:
            differ(key, f"shape {entry.shape}", stored.shape)
        both_float = stored.dtype.is_floating_point and entry.dtype.is_floating_point
        if stored.dtype != entry.dtype and not both_float:
            differ(key, entry.dtype, stored.dtype)
    for key in [*shards.tensors, *shards.aliases]:
        if key not in named:
            differ(key, "no tensor, which the model has not", "one")


def _has_free_length(key: str, entry: Named) -> bool:
    return isinstance(entry.module, SparseLayer) and key[len(entry.prefix) :] in ("values", "pattern")


def _check_patterns(shards: Shards, named: dict[str, Named]) -> None:
    """Each is read for itself: all of them together are not held twice."""
    seen: set[tuple[str, ...]] = set()
    for key, entry in named.items():
        layer = entry.module
        if not isinstance(layer, SparseLayer) or key != f"{entry.prefix}pattern":
            continue
        weight = f"{entry.prefix}{layer.weight_name}"
        stored = shards.kept(key), shards.kept(weight)
        if stored in seen:
            continue
        seen.add(stored)
        pattern, found = _read_pattern(shards, key), shards.stored(weight).shape
        expected = (pattern.nnz,) if layer.storage == "compact" else layer.weight_shape
        if pattern.shape != layer.weight_shape or found != expected:
            raise ValueError(
                f"{shards.path}: expected a pattern of shape {layer.weight_shape} for {key!r} and a weight to"
                f" fit it, found {pattern.shape} with {pattern.nnz} active, and a weight of shape {found}"
            )


def _give_memory(named: dict[str, Named], memory: Materialization) -> None:
    """Uninitialized tensors for what is read next; what no state dict has is written by its module."""
    saved: dict[int, set[str]] = {id(module): set() for module in memory.modules.values()}
    for key, entry in named.items():
        if id(entry.module) in saved:
            saved[id(entry.module)].add(key[len(entry.prefix) :])
    resets = [
        name for name, module in memory.modules.items() if not saved[id(module)] >= {*tensors_on_meta(module)}
    ]
    memory.check(resets)
    memory.fill(resets)


def _load(shards: Shards, named: dict[str, Named]) -> None:
    keys_of: dict[int, list[str]] = {}
    for key, entry in named.items():
        keys_of.setdefault(id(entry.module), []).append(key)
    for keys in keys_of.values():
        module, prefix = named[keys[0]].module, named[keys[0]].prefix
        # A module in several places has the same keys again, under other prefixes. Tied tensors are read
        # once, but for those of sparse layers, which come with their pattern.
        wanted = [
            key
            for key in keys
            if named[key].prefix == prefix and (named[key].kept == key or isinstance(module, SparseModule))
        ]
        state = {key[len(prefix) :]: shards.read(key) for key in wanted}
        if isinstance(module, SparseLayer) and module.storage == "compact":
            pattern = Pattern(state["pattern"])
            if pattern.nnz != module.pattern.nnz:
                module.set_pattern(pattern, resize=True)
        try:
            module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{shards.path}: expected the tensors of {prefix[:-1]!r}: {error}") from error
