"""What sparse layers of every kind share: one stored weight in the place of a dense one, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sparsekern.formats.checks import describe

# A vector or matrix of values, or the dense weight.
WEIGHT_NAMES = ("values", "weight")


class SparseModule(nn.Module):
    """A layer in the place of an ``nn.Linear`` or ``nn.Conv2d`` whose weight has zeros.

    Base of `SparseLayer` and `TwoFourLayer`. The weight is one Parameter, ``values`` or ``weight``; the bias
    is a dense one, or None.
    """

    dense_type: ClassVar[type[nn.Module]]
    # The attribute that decides which Parameter the weight is, for error messages.
    form_attribute: ClassVar[str]
    # What instances hold beside the attributes of `dense_type`, Parameters included.
    own_attributes: ClassVar[frozenset[str]]

    @property
    def weight_name(self) -> str:
        """Name of the weight's Parameter: ``"values"`` or ``"weight"``."""
        raise NotImplementedError

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        raise NotImplementedError

    @property
    def mask(self) -> Tensor:
        """A new bool tensor of the dense weight's shape: True where it is not zeroed."""
        raise NotImplementedError

    @property
    def mask_bytes(self) -> int:
        """Bytes that are stored of the mask."""
        raise NotImplementedError

    @property
    def stored_weight(self) -> nn.Parameter:
        """The weight's Parameter, whatever its name."""
        return self._parameters[self.weight_name]

    def __getattr__(self, name: str) -> Any:
        if name in WEIGHT_NAMES:
            self._refuse_unstored(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in WEIGHT_NAMES:
            self._refuse_unstored(name)
        super().__setattr__(name, value)

    def _refuse_unstored(self, name: str) -> None:
        """Raises for the name of a weight stored otherwise: code for dense layers uses ``weight``."""
        form = self.form_attribute
        if form in self.__dict__ and name != self.weight_name:
            raise AttributeError(
                f"a {type(self).__name__} with {form}={getattr(self, form)!r} has no {name!r}: its weight is"
                f" the Parameter {self.weight_name!r}, and to_dense() gives it dense"
            )

    def _make_parameters(
        self,
        stored_shape: tuple[int, ...],
        rows: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        """Registers the weight, and a bias of so many rows unless that is None; both uninitialized."""
        weight = nn.Parameter(torch.empty(stored_shape, device=device, dtype=dtype))
        self.register_parameter(self.weight_name, weight)
        bias = None if rows is None else nn.Parameter(torch.empty(rows, device=device, dtype=dtype))
        self.register_parameter("bias", bias)

    def to_dense(self) -> Tensor:
        """The dense weight, 0 where the mask is False; differentiable with respect to the stored weight."""
        raise NotImplementedError

    def write_dense(self, dense: Tensor) -> None:
        """Writes a dense weight's elements into the stored one."""
        raise NotImplementedError

    @classmethod
    def dense_arguments(cls, module: nn.Module) -> dict[str, Any]:
        """The constructor arguments of a module, as keywords that both classes take.

        Parameters
        ----------
        module : torch.nn.Module
            Of `dense_type` or of this class.

        Returns
        -------
        dict of str to Any
            Without `device`, `dtype` and what makes the layer sparse.
        """
        raise NotImplementedError

    @classmethod
    def check_dense(cls, module: Any) -> None:
        """Raise unless `module` is of `dense_type` and has its weights."""
        wanted = f"torch.nn.{cls.dense_type.__name__}"
        if isinstance(module, SparseModule):
            raise TypeError(f"module must be a {wanted}, got a layer that is already sparse")
        if not isinstance(module, cls.dense_type):
            raise TypeError(f"module must be a {wanted}, got {describe(module)}")
        if torch.nn.parameter.is_lazy(module.weight):
            raise ValueError("module must have initialized weights, got a lazy module that has not run yet")

    @classmethod
    def _like(cls, module: nn.Module, *, device: torch.device | None = None, **options: Any) -> SparseModule:
        """A layer with the module's arguments, dtype, device and flags, and uninitialized weights."""
        weight = module.weight
        device = weight.device if device is None else device
        layer = cls(**cls.dense_arguments(module), **options, init=None, device=device, dtype=weight.dtype)
        layer.stored_weight.requires_grad_(weight.requires_grad)
        return layer.train(module.training)

    def _take_bias(self, module: nn.Module) -> SparseModule:
        """Copies the bias of a dense module."""
        if module.bias is not None:
            self.bias.data.copy_(module.bias.data)
            self.bias.requires_grad_(module.bias.requires_grad)
        return self

    def to_dense_module(self) -> nn.Module:
        """The `torch.nn` module that computes the same, with a new weight and a copied bias."""
        weight = self.stored_weight
        module = skip_init(
            self.dense_type, **self.dense_arguments(self), device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            module.weight.requires_grad_(weight.requires_grad)
            if self.bias is not None:
                module.bias.copy_(self.bias)
                module.bias.requires_grad_(self.bias.requires_grad)
            if not weight.is_meta:
                module.weight.copy_(self.to_dense())
        return module.train(self.training)

    def tie_weight(self, other: SparseModule) -> None:
        """Makes this layer use the other's weight Parameter, and the mask that belongs to it."""
        raise NotImplementedError

    def _check_tie(self, other: Any, forms: Callable[[Any], tuple[Any, ...]], what: str) -> None:
        """Raise unless `other` is a layer of this class whose weight is stored as this one's is."""
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}")
        mine, theirs = (forms(self), forms(other))
        if mine != theirs:
            raise ValueError(f"other must have {what} and weight shape {mine}, got {theirs}")


def target_device(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where `nn.Module._apply`'s function sends things that are on a device.

    What has a dtype of its own, as masks do, is moved by hand: an empty tensor tells where to.
    """
    return fn(torch.empty(0, dtype=torch.int32, device=device)).device
