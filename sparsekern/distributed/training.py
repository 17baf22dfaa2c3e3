"""What a checkpoint has of a training run: taken from it, compared with it, and given back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.distributed.tree import PLACE, is_sharded, join
from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_arguments, unwrapped
from sparsekern.methods.attached import AttachedMethod
from sparsekern.methods.attachment import KEY, attached_to
from sparsekern.methods.method_state import read_state
from sparsekern.nn import SparseLayer

__all__ = ["Sizes", "Training"]

# Shape and dtype of each saved tensor, by its place.
Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Training:
    """A model, its optimizer, and the method that is attached to that.

    Raises
    ------
    TypeError, ValueError
        For anything else, an optimizer of another model's Parameters, and weights that cannot be written by
        parts.
    """

    def __init__(self, model: Any, optimizer: Any, method: Any) -> None:
        check_arguments(model, optimizer, None)
        self.model = unwrapped(model)
        self.optimizer = optimizer
        self.method = method
        self.parameters = dict(self.model.named_parameters())
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, SparseLayer)}
        self._check_model()
        self._check_method()
        self.group_names = [[self._name(p) for p in g["params"]] for g in optimizer.param_groups]

    def state(self) -> dict[str, Any]:
        """Model and optimizer, whose state has those of its methods; tensors are not copied."""
        packed = self.optimizer.state_dict()
        indices = [i for group in packed["param_groups"] for i in group["params"]]
        names = [name for group in self.group_names for name in group]
        by_name = {name: packed["state"][i] for i, name in zip(indices, names) if i in packed["state"]}
        for name, entries in by_name.items():
            for key, value in entries.items():
                self._check_entry(name, key, value)
        groups = [
            {**group, "params": names} for group, names in zip(packed["param_groups"], self.group_names)
        ]
        others = {key: value for key, value in packed.items() if key not in ("state", "param_groups")}
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": {
                "kind": type(self.optimizer).__name__,
                "state": by_name,
                "groups": groups,
                "others": others,
            },
            "layers": {
                name: {"shape": list(layer.pattern.shape), "nnz": layer.pattern.nnz, "storage": layer.storage}
                for name, layer in self.layers.items()
            },
        }

    def check(self, saved: Mapping[str, Any], sizes: Sizes) -> None:
        """Raise ValueError unless the state whose document `saved` is can be loaded."""
        self._check_layers(saved["layers"])
        self._check_tensors(saved["model"], sizes)
        self._check_optimizer(saved["optimizer"])
        metas = {
            place: torch.empty(size, dtype=dtype, device="meta") for place, (size, dtype) in sizes.items()
        }
        self._check_method_states(join(saved["optimizer"]["others"].get(KEY, []), metas), saved["layers"])

    def likes(self, saved: Mapping[str, Any]) -> dict[str, Tensor]:
        """For each place in a document the tensor of this run that says on which device, and spread over
        processes how, the saved one is wanted."""
        current = self.model.state_dict()
        found = {v[PLACE]: current[k] for k, v in saved["model"].items() if _is_place(v)}
        for name, entries in saved["optimizer"]["state"].items():
            found |= {value[PLACE]: self.parameters[name] for value in entries.values() if _is_place(value)}
        return found

    def check_patterns(self, model_state: Mapping[str, Any]) -> None:
        """Raise ValueError for a loaded pattern that is none, or not one of its layer's size."""
        for name, layer in self.layers.items():
            key = _key(name, "pattern")
            try:
                pattern = Pattern(model_state[key])
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{key} must be a valid pattern: {error}") from error
            if pattern.shape != layer.pattern.shape:
                raise ValueError(f"{key} must have shape {layer.pattern.shape}, got {pattern.shape}")
            if layer.storage == "compact" and pattern.nnz != layer.pattern.nnz:
                raise ValueError(f"{key} must have nnz {layer.pattern.nnz}, got {pattern.nnz}")

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`check` and :meth:`check_patterns` have seen."""
        self.model.load_state_dict(state["model"])
        saved = state["optimizer"]
        indices = {name: i for i, name in enumerate(name for group in self.group_names for name in group)}
        groups = [
            {**_on_devices_of(group, mine), "params": [indices[name] for name in group["params"]]}
            for group, mine in zip(saved["groups"], self.optimizer.param_groups)
        ]
        states = {indices[name]: entries for name, entries in saved["state"].items()}
        self.optimizer.load_state_dict({**saved["others"], "state": states, "param_groups": groups})
        for name, entries in saved["state"].items():
            loaded = self.optimizer.state[self.parameters[name]]
            for key, value in entries.items():
                # PyTorch gives an optimizer's state the dtype of the weight.
                if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                    loaded[key] = value.to(loaded[key].device)

    def _name(self, parameter: nn.Parameter) -> str:
        if id(parameter) not in self._names:
            raise ValueError(
                f"optimizer must hold Parameters of the model only, got one of shape "
                f"{tuple(parameter.shape)} that the model has not"
            )
        return self._names[id(parameter)]

    def _check_model(self) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        if any(isinstance(module, FullyShardedDataParallel) for module in self.model.modules()):
            raise TypeError(
                "model must be sharded by fully_shard (FSDP2), got FullyShardedDataParallel, which makes one "
                "flat tensor of many weights"
            )
        if metas := [name for name, parameter in self.parameters.items() if parameter.is_meta]:
            raise ValueError(f"model must have weights with contents, got {metas[0]!r} on the meta device")

    def _check_method(self) -> None:
        attached = attached_to(self.optimizer)
        if self.method is None:
            if attached:
                raise ValueError(f"method must be the {attached[0]} of the optimizer, got None")
            return
        if not isinstance(self.method, AttachedMethod):
            raise TypeError(
                "method must be one that is attached to the optimizer, such as RigL, or None, got "
                f"{describe(self.method)}"
            )
        kind = type(self.method).__name__
        if self.method.optimizer is not self.optimizer:
            raise ValueError(f"method must be attached to the optimizer, got a {kind} of another one")
        if kind not in attached:
            raise ValueError(f"method must be attached to the optimizer, got a {kind} that was detached")

    def _check_entry(self, name: str, key: str, value: Any) -> None:
        parameter = self.parameters[name]
        if is_sharded(value) and value.dim() > 0 and value.shape != parameter.shape:
            raise TypeError(
                "optimizer must keep states of each weight's own shape where weights are sharded, got "
                f"{key!r} of {name!r} with {tuple(value.shape)} for {tuple(parameter.shape)}"
            )

    def _check_layers(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        if saved.keys() != self.layers.keys():
            raise ValueError(
                f"model must have the sparse layers of the checkpoint, {_few(saved)}, got {_few(self.layers)}"
            )
        for name, layer in self.layers.items():
            mine = {
                "shape": list(layer.pattern.shape),
                "storage": layer.storage,
                # A masked weight is stored whole, whatever its number of active positions.
                "nnz": layer.pattern.nnz if layer.storage == "compact" else saved[name]["nnz"],
            }
            for key, value in mine.items():
                if value != saved[name][key]:
                    raise ValueError(
                        f"model must have layer {name!r} with {key} {saved[name][key]}, as the checkpoint, "
                        f"got {value}"
                    )

    def _check_tensors(self, saved: Mapping[str, Any], sizes: Sizes) -> None:
        current = self.model.state_dict()
        lacking, more = saved.keys() - current.keys(), current.keys() - saved.keys()
        if lacking or more:
            raise ValueError(
                f"model must have the state of the checkpoint, with {_few(lacking)} and without {_few(more)}"
            )
        patterns = {_key(name, "pattern") for name in self.layers}
        for key, value in saved.items():
            if not _is_place(value):
                continue
            size, dtype = sizes[value[PLACE]]
            mine = current[key]
            fits = key in patterns or (isinstance(mine, Tensor) and tuple(mine.shape) == size)
            if not fits or mine.dtype != dtype:
                raise ValueError(
                    f"model must have {key!r} as a {dtype} tensor of shape {size}, as in the checkpoint, got "
                    f"{_shape_of(mine)}"
                )

    def _check_optimizer(self, saved: Mapping[str, Any]) -> None:
        if saved["kind"] != (mine := type(self.optimizer).__name__):
            raise ValueError(f"optimizer must be {saved['kind']}, as in the checkpoint, got {mine}")
        theirs = [group["params"] for group in saved["groups"]]
        if theirs != self.group_names:
            differing = [(t, m) for t, m in zip(theirs, self.group_names) if t != m]
            first = "" if not differing else f": {_few(differing[0][0])}, not {_few(differing[0][1])}"
            raise ValueError(
                f"optimizer must have the checkpoint's {len(theirs)} parameter groups, in their order, got "
                f"{len(self.group_names)}{first}"
            )

    def _check_method_states(self, found: list[Any], layers: Mapping[str, Any]) -> None:
        saved = found[0].get("method") if found else None
        if self.method is None or not found:
            mine = None if self.method is None else type(self.method).__name__
            if mine != saved:
                raise ValueError(f"method must be {saved or 'None'}, as in the checkpoint, got {mine}")
            return
        mine = {layer.name for layer in self.method.layers}
        state = next((s for s in found if set(s.get("layers", ())) == mine), found[0])
        state = {**state, "layers": dict(state["layers"])}
        for driven in self.method.layers:
            theirs = state["layers"].get(driven.name, {})
            # The layer will have the checkpoint's own pattern by then.
            if "nnz" in theirs and theirs["nnz"] == layers[driven.name]["nnz"]:
                state["layers"][driven.name] = {**theirs, "nnz": driven.pattern.nnz}
        read_state(self.method, state)


def _key(name: str, entry: str) -> str:
    return f"{name}.{entry}" if name else entry


def _is_place(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {PLACE}


def _on_devices_of(group: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings, those that are tensors where this run has them."""
    return {
        key: value.to(mine[key].device) if isinstance(value, Tensor) and key in mine else value
        for key, value in group.items()
    }


def _shape_of(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else describe(value)


def _few(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(map(repr, names[:3])) or "none") + more
