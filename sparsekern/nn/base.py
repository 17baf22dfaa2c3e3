"""What layers on a pattern share: the pattern, the one stored weight, and how the two travel together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import check_bool, check_choice, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.init import INITIALIZERS
from sparsekern.nn.checks import STORAGES, as_pattern, check_dtype, check_pattern, choose_pattern
from sparsekern.nn.module import SparseModule, target_device
from sparsekern.nn.saved import load_pattern
from sparsekern.nn.topology import Topology, on_device_of


class SparseLayer(SparseModule):
    """Base of `SparseLinear` and `SparseConv2d`.

    The weight is one Parameter: ``values`` (nnz,) for ``storage="compact"``, ``weight`` (dense shape) for
    ``storage="masked"``. The pattern is not a buffer: it has no gradient, never changes dtype, and a tensor
    that differs per layer in size would stop EMA copies and DDP from treating buffers alike. It follows the
    layer to another device, and the state dict holds a copy of it under the key ``pattern``.

    `load_state_dict` takes the pattern too, and keeps the Parameter object. So a state dict with another
    number of values is refused; load it before the optimizer is made, with ``assign=True``, which makes new
    Parameters, or after :meth:`set_pattern` with ``resize=True``.
    """

    form_attribute: ClassVar[str] = "storage"
    own_attributes: ClassVar[frozenset[str]] = frozenset({"values", "storage", "init", "groups", "_topology"})

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        *,
        sparsity: float | None,
        mask: Tensor | None,
        pattern: Pattern | None,
        storage: str,
        init: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        generator: torch.Generator | None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        check_bool(bias, "bias")
        check_choice(storage, STORAGES, "storage")
        if init is not None:
            check_choice(init, tuple(INITIALIZERS), "init")
        dtype = check_dtype(dtype)
        chosen = choose_pattern(shape, sparsity, mask, pattern, generator)

        self.storage = storage
        self.init = init
        self.groups = groups
        stored_shape = (chosen.nnz,) if storage == "compact" else shape
        self._make_parameters(stored_shape, shape[0] if bias else None, device, dtype)
        self._topology = Topology(on_device_of(chosen, self.stored_weight.device))
        if init is not None:
            self.reset_parameters(generator)

    @property
    def weight_name(self) -> str:
        """Name of the weight's Parameter: ``"values"`` for compact storage, ``"weight"`` for masked."""
        return "values" if self.storage == "compact" else "weight"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.pattern.shape)

    @property
    def pattern(self) -> Pattern:
        """Which positions are active; see :meth:`set_pattern` to change it."""
        return self._topology.pattern

    @property
    def mask_bytes(self) -> int:
        return self.pattern.nbytes

    @property
    def mask(self) -> Tensor:
        """The pattern as a new bool tensor of the dense weight's shape."""
        return self.pattern.to_mask()

    def to_dense(self) -> Tensor:
        """The dense weight, 0 at inactive positions; differentiable with respect to the stored weight."""
        if self.storage == "compact":
            return ops.unpack(self.values, self.pattern)
        return torch.where(self.mask, self.weight, 0)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight again with the layer's ``init`` (per neuron when it has none); the bias becomes
        0."""
        INITIALIZERS[self.init or "per_neuron"](self, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def set_pattern(self, pattern: Pattern, *, resize: bool = False) -> None:
        """Moves the weight to another pattern of the same shape; the Parameter object stays the same one.

        Compact storage: the values of positions active in both patterns move along, new positions get 0, and
        so for the gradient when there is one. An optimizer's vectors for ``values`` stay as they are: move
        each with ``s.copy_(sparsekern.ops.transfer(s, old, pattern))``. Masked storage: the dense weight is
        left as it is, whatever its inactive positions hold; write 0 there first if newly active positions are
        to start from 0. Layers tied with :meth:`tie_weight` follow.

        Parameters
        ----------
        pattern : Pattern
            Of this weight's shape; moved to this layer's device.
        resize : bool
            Lets the number of values change (compact storage). Optimizer states, DDP buckets and EMA copies
            hold vectors of the old length, so resize before they are made, and otherwise keep nnz.

        Raises
        ------
        TypeError, ValueError
            For another shape, or another nnz without `resize`; nothing is changed.
        """
        check_pattern(pattern, tuple(self.pattern.shape))
        old, new = self.pattern, on_device_of(pattern, self.stored_weight.device)
        if self.storage == "compact":
            if new.nnz != old.nnz and not resize:
                raise ValueError(
                    f"pattern must have {old.nnz} active positions, one for each value, got {new.nnz};"
                    " optimizer states have that length too: pass resize=True if none has been made yet"
                )
            values, grad = self.values, self.values.grad
            moved = _transfer(values.detach(), old, new)
            moved_grad = None if grad is None else _transfer(grad, old, new)
            if new.nnz == old.nnz:
                values.copy_(moved)
                if grad is not None:
                    grad.copy_(moved_grad)
            else:
                values.grad = None
                values.data = moved
                values.grad = moved_grad
        self._topology.pattern = new

    def make_compact(self, values: nn.Parameter) -> None:
        """From masked storage to compact: the layer's weight is `values` from now on.

        Parameters
        ----------
        values : nn.Parameter
            (nnz,), the active weights in the pattern's order; `sparsekern.methods.compact_` makes it.

        Raises
        ------
        TypeError, ValueError
            When the layer is compact already, for another shape, or for what is no Parameter; nothing is
            changed.
        """
        if self.storage != "masked":
            raise ValueError(f"layer must have storage='masked', got {self.storage!r}")
        if not isinstance(values, nn.Parameter):
            raise TypeError(f"values must be a torch.nn.Parameter, got {describe(values)}")
        if tuple(values.shape) != (self.pattern.nnz,):
            raise ValueError(f"values must have shape ({self.pattern.nnz},), got {tuple(values.shape)}")
        del self._parameters["weight"]
        self.storage = "compact"
        # Before the bias, where a compact layer has it from the beginning.
        bias = self._parameters.pop("bias")
        self.register_parameter("values", values)
        self.register_parameter("bias", bias)

    def tie_weight(self, other: SparseLayer) -> None:
        """Makes this layer use the other's weight Parameter and pattern; topology changes reach both.

        Raises
        ------
        TypeError, ValueError
            When the two differ in class, storage or shape; nothing is changed.
        """
        self._check_tie(other, lambda layer: (layer.storage, *layer.pattern.shape), "storage")
        self._parameters[self.weight_name] = other.stored_weight
        self._topology = other._topology

    @classmethod
    def from_dense(
        cls, module: nn.Module, mask: Tensor | Pattern, *, storage: str = "compact"
    ) -> SparseLayer:
        """A sparse layer with the weights of a dense one at the mask's positions.

        Parameters
        ----------
        module : torch.nn.Linear or torch.nn.Conv2d
            The dense module that this class stands for; it is left unchanged and shares no memory with the
            result.
        mask : bool tensor or Pattern
            True where a position is active; of the weight's shape.
        storage : str
            ``"compact"`` or ``"masked"``; inactive positions of a masked weight are 0.

        Returns
        -------
        SparseLayer
            With the module's bias, device, dtype, ``requires_grad`` and training mode.

        Raises
        ------
        TypeError, ValueError
            For another module type, padding mode, mask dtype or mask shape.
        """
        cls.check_dense(module)
        pattern = as_pattern(mask, tuple(module.weight.shape))
        layer = cls.like(module, pattern, storage=storage)
        layer.write_dense(module.weight)
        return layer._take_bias(module)

    @classmethod
    def like(
        cls, module: nn.Module, pattern: Pattern, *, storage: str, device: torch.device | None = None
    ) -> SparseLayer:
        """A layer with the module's arguments, dtype, device and flags; its weights are uninitialized.

        Parameters
        ----------
        module : torch.nn.Linear or torch.nn.Conv2d
            Of `dense_type`; it is left unchanged.
        pattern : Pattern
            Of the weight's shape.
        storage : str
            ``"compact"`` or ``"masked"``.
        device : torch.device, optional
            In place of the module's, which may be meta.

        Returns
        -------
        SparseLayer
            With a weight and a bias of its own.

        Raises
        ------
        TypeError, ValueError
            For a padding mode or dtype that is not supported, or a pattern of another shape.
        """
        return cls._like(module, device=device, pattern=pattern, storage=storage)

    @torch.no_grad()
    def write_dense(self, dense: Tensor) -> None:
        """Writes a dense tensor's active positions; masked storage gets 0 at the others.

        Parameters
        ----------
        dense : Tensor
            Of the dense weight's shape, on its device, cast to its dtype. A layer on meta is left as it is.

        Raises
        ------
        TypeError, ValueError
            For another shape, layout or device; nothing is changed.
        """
        weight = self.stored_weight
        if weight.is_meta:
            return
        if self.storage == "compact":
            weight.copy_(self.pattern.pack(dense.detach()))
        else:
            weight.copy_(torch.where(self.mask, dense.detach(), 0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLayer:
        super()._apply(fn, recurse)
        self._topology.pattern = on_device_of(self.pattern, target_device(fn, self.pattern.device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A copy: a pattern is immutable, and what a state dict holds gets written to, as by EMA loops.
        destination[prefix + "pattern"] = self.pattern.data.clone()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "pattern"
        assign = local_metadata.get("assign_to_params_buffers", False)
        if key in state_dict:
            try:
                load_pattern(self, state_dict, prefix, assign)
            except ValueError as error:
                error_msgs.append(str(error))
                return
        elif prefix + "values" in state_dict:
            # load_state_dict(strict=False) does not say so here, and this one is wrong in either case.
            error_msgs.append(f"{key} must come with the values, which could land at other positions without")
            return
        elif strict:
            missing_keys.append(key)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)

    def _repr_tail(self) -> str:
        return f"sparsity={self.pattern.sparsity:.4f}, nnz={self.pattern.nnz}, storage={self.storage}"


def _transfer(values: Tensor, old: Pattern, new: Pattern) -> Tensor:
    return values.new_empty(new.nnz) if values.is_meta else old.transfer(values, new)
