"""What layers with a 2:4 weight share: the weight, dense or packed, its mask, and how both are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import check_bool, check_choice, check_generator
from sparsekern.formats.two_four import TwoFour
from sparsekern.init import dense_
from sparsekern.nn.checks import check_dtype
from sparsekern.nn.module import SparseModule, target_device
from sparsekern.nn.two_four_checks import check_options, misfit
from sparsekern.nn.two_four_forward import TwoFourForward, as_matrix
from sparsekern.nn.two_four_mask import HeldMask, first_metadata, random_metadata
from sparsekern.nn.two_four_saved import load_mask
from sparsekern.ops.two_four_values import pack_at


class TwoFourLayer(TwoFourForward, SparseModule):
    """Base of `TwoFourLinear` and `TwoFourConv2d`.

    The weight is one Parameter: for ``method="sr_ste"`` and ``"ste"`` the dense ``weight``, which forward
    passes pack; for ``method="fixed"`` the packed ``values`` (N, K / 2), N and K being rows and columns of
    the weight as a matrix. What a mask needs besides is no buffer: it has no gradient and no dtype to change,
    and averages of buffers, as EMA copies and DDP make them, would be nonsense. It follows the layer to
    another device, and travels in the state dict: under ``metadata``, see `sparsekern.TwoFour`, and ``age``,
    the changes of the weight since the mask was chosen. With ``refresh_every=1`` the mask is a function of
    the weight, and the state dict is that of the dense layer.

    In training mode, forward passes count the changes of the weight and keep the mask for `refresh_every` of
    them; several passes between two steps, as in accumulation and checkpointing, are one. In evaluation mode
    the mask is that of the weight as it is, so averages and edited weights need no care. Writing through
    ``weight.data`` is seen by neither: PyTorch does not count it.
    """

    # What the constructor calls rows and groups of columns.
    size_names: ClassVar[tuple[str, str]]
    form_attribute: ClassVar[str] = "method"
    own_attributes: ClassVar[frozenset[str]] = frozenset(
        {
            "values",
            "method",
            "transposable",
            "_refresh_every",
            "decay",
            "dense_below",
            "init",
            "groups",
            "_shape",
            "_held",
        }
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        *,
        method: str,
        transposable: bool,
        refresh_every: int,
        decay: float,
        dense_below: int,
        init: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        generator: torch.Generator | None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        check_bool(bias, "bias")
        options = check_options(method, transposable, refresh_every, decay, dense_below)
        if (why := self.misfit(shape, transposable)) is not None:
            raise ValueError(why)
        if init is not None:
            check_choice(init, ("dense",), "init")
        dtype = check_dtype(dtype)
        check_generator(generator)
        self._held = HeldMask()
        for name, value in options.items():
            setattr(self, name, value)
        self.init = init
        self.groups = groups
        self._shape = shape
        rows, columns = self.matrix_shape
        stored = (rows, columns // 2) if method == "fixed" else shape
        self._make_parameters(stored, rows if bias else None, device, dtype)
        if self._holds_mask:
            # Of an age that the first forward pass chooses another, where it is not fixed.
            self._held.load(first_metadata(rows, columns), None, refresh_every)
            self._held.move(self.stored_weight.device)
        if init is not None:
            self.draw_mask(generator)
            self.reset_parameters(generator)

    @classmethod
    def misfit(cls, shape: tuple[int, ...], transposable: bool) -> str | None:
        """Why a weight of that shape cannot be 2:4, None where it can."""
        rows, columns = zip(cls.size_names, shape[:2], strict=True)
        return misfit(dict([columns, rows] if transposable else [columns]))

    @property
    def weight_name(self) -> str:
        """Name of the weight's Parameter: ``"values"`` for a fixed mask, else ``"weight"``."""
        return "values" if self.method == "fixed" else "weight"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def refresh_every(self) -> int:
        """Changes of the weight from one choice of the mask to the next; may be set at any time."""
        return self._refresh_every

    @refresh_every.setter
    def refresh_every(self, every: int) -> None:
        self._refresh_every = check_options(self.method, refresh_every=every)["refresh_every"]
        if every == 1 and self.method != "fixed":
            self._held.load(None, None, 0)  # nobody counts from now on

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows N and columns K of the weight as a matrix."""
        rows, *others = self._shape
        return rows, torch.Size(others).numel()

    @property
    def _holds_mask(self) -> bool:
        """Whether the mask is more than a function of the weight."""
        return self.method == "fixed" or self.refresh_every > 1

    @property
    def packed(self) -> TwoFour:
        """The weight as a matrix (N, K), packed as a forward pass in the layer's mode would have it.

        A convolution's columns are in (kernel height, kernel width, input channel) order. For
        ``method="fixed"`` its values are the Parameter, for the others a copy without a gradient.
        """
        if self.method == "fixed":
            return TwoFour(self.values, self._held.metadata)
        if self._is_held and not self._held.is_due(self.weight, self.refresh_every):
            return self._held.pack(self._matrix())
        return self._pack()

    @property
    def mask(self) -> Tensor:
        """The mask that goes with `packed`: a new bool tensor of the dense weight's shape."""
        return self._as_weight(self.packed.to_mask())

    def to_dense(self) -> Tensor:
        """The dense weight, 0 where the mask is; differentiable with respect to the stored weight."""
        if self.method == "fixed":
            return self._as_weight(ops.unpack_two_four(self.packed))
        return torch.where(self.mask, self.weight, 0)

    def draw_mask(self, generator: torch.Generator | None = None) -> None:
        """Draws a fixed mask at random; the others follow from the weight."""
        if self.method == "fixed":
            self._held.load(random_metadata(*self.matrix_shape, self.transposable, generator), None, 0)
            self._held.move(self.values.device)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight again, see `sparsekern.init.dense_`; the bias becomes 0, a fixed mask stays."""
        dense_(self, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def tie_weight(self, other: TwoFourLayer) -> None:
        """Makes this layer use the other's weight Parameter and mask.

        Raises
        ------
        TypeError, ValueError
            When the two differ in class, in what a mask depends on, or in shape; nothing is changed.
        """
        self._check_tie(
            other,
            lambda layer: (layer.method, layer.transposable, layer.refresh_every, *layer._shape),
            "method, transposable, refresh_every",
        )
        self._parameters[self.weight_name] = other.stored_weight
        self._held = other._held

    @classmethod
    def from_dense(cls, module: nn.Module, **options: Any) -> TwoFourLayer:
        """A 2:4 layer with the weights of a dense one; those of least magnitude in every four are masked.

        Parameters
        ----------
        module : torch.nn.Linear or torch.nn.Conv2d
            The dense module that this class stands for; it is left unchanged and shares no memory with the
            result.
        method, transposable, refresh_every, decay, dense_below :
            As in the constructor.

        Returns
        -------
        TwoFourLayer
            With the module's bias, device, dtype, ``requires_grad`` and training mode.

        Raises
        ------
        TypeError, ValueError
            For another module type, padding mode, size or option, and for NaN or an infinity in a weight
            whose mask is fixed.
        """
        cls.check_dense(module)
        layer = cls.like(module, **options)
        layer.pack_dense(module.weight)
        return layer._take_bias(module)

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> TwoFourLayer:
        """As `from_dense`, with uninitialized weights; on `device` where one is given."""
        return cls._like(module, **options)

    @torch.no_grad()
    def write_dense(self, dense: Tensor) -> None:
        """Writes a dense weight, of which a fixed mask takes its positions. A layer on meta is left as it is.

        Parameters
        ----------
        dense : Tensor
            Of the dense weight's shape, on its device, cast to its dtype.
        """
        if self.stored_weight.is_meta:
            return
        if self.method == "fixed":
            self.values.copy_(pack_at(as_matrix(dense), self._held.metadata).values)
        else:
            self.weight.copy_(dense.detach())

    @torch.no_grad()
    def pack_dense(self, dense: Tensor) -> None:
        """As `write_dense`, but a fixed mask becomes that of the dense weight first.

        Raises
        ------
        ValueError
            For NaN or an infinity, where the mask is fixed.
        """
        if self.method == "fixed" and not self.values.is_meta:
            packed = ops.pack_two_four(as_matrix(dense), transposable=self.transposable, transpose=False)
            self._held.load(packed.metadata, None, 0)
        self.write_dense(dense)

    @property
    def mask_bytes(self) -> int:
        return 0 if self._held.metadata is None else self._held.metadata.nbytes

    def fix_mask_(self, packed: TwoFour | None = None) -> TwoFourLayer:
        """Turns a layer with a dense weight into one of ``method="fixed"``, in place; see `fix_masks_`.

        Parameters
        ----------
        packed : TwoFour, optional
            The weight; by default the layer's `packed`.

        Returns
        -------
        TwoFourLayer
            The layer, with a new Parameter ``values``; it is no longer tied to others.
        """
        if self.method == "fixed":
            return self
        packed, trained = self.packed if packed is None else packed, self.weight.requires_grad
        del self._parameters["weight"]
        for name, value in check_options("fixed", self.transposable, dense_below=self.dense_below).items():
            setattr(self, name, value)
        self.values = nn.Parameter(packed.values, requires_grad=trained)
        self._held = HeldMask(packed.metadata)
        return self

    def _matrix(self) -> Tensor:
        return as_matrix(self.weight)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """A matrix as `weight_shape` has it, contiguous."""
        rows, channels, *kernel = self._shape
        if matrix.shape[1] == channels:
            return matrix.view(self._shape)
        height, width = kernel
        return matrix.view(rows, height, width, channels).permute(0, 3, 1, 2).contiguous()

    def _pack(self) -> TwoFour:
        return ops.pack_two_four(self._matrix(), transposable=self.transposable)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and hasattr(value, "full_tensor"):
            self._held.watch_sharded(value)

    def train(self, mode: bool = True) -> TwoFourLayer:
        # Whoever writes through ``weight.data`` mostly does so between the two.
        self._held.forget_packed()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TwoFourLayer:
        age = self._held.age_of(self.stored_weight)
        super()._apply(fn, recurse)
        self._held.follow(self.stored_weight, age)
        if self._held.metadata is not None:
            self._held.move(target_device(fn, self._held.metadata.device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._holds_mask:
            return
        metadata, age = self._held.metadata, self._held.age_of(self.stored_weight)
        if metadata is None:
            metadata, age = first_metadata(*self.matrix_shape), self.refresh_every
        # A copy: what a state dict holds gets written to, as by EMA loops.
        destination[prefix + "metadata"] = metadata.clone()
        if self.method != "fixed":
            destination[prefix + "age"] = torch.tensor(age)

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
        try:
            assign = local_metadata.get("assign_to_params_buffers", False)
            missing = load_mask(self, state_dict, prefix, assign)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if strict:
            missing_keys += missing
        for key in (prefix + "metadata", prefix + "age"):
            if key in unexpected_keys:
                unexpected_keys.remove(key)

    def _repr_tail(self) -> str:
        parts = [f"method={self.method}"]
        if self.transposable:
            parts.append("transposable=True")
        if self.method != "fixed" and self.refresh_every > 1:
            parts.append(f"refresh_every={self.refresh_every}")
        if self.decay:
            parts.append(f"decay={self.decay:g}")
        if self.dense_below:
            parts.append(f"dense_below={self.dense_below}")
        return ", ".join(parts)
