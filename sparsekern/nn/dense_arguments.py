"""The arguments that sparse layers take over from `torch.nn.Linear` and `torch.nn.Conv2d`."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from sparsekern.formats.checks import check_choice, check_integer
from sparsekern.nn.checks import check_pair


class LinearArguments:
    """Of a `SparseModule` in the place of an ``nn.Linear``."""

    dense_type: ClassVar[type[nn.Module]] = nn.Linear

    @classmethod
    def dense_arguments(cls, module: nn.Module) -> dict[str, Any]:
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._repr_tail()}"
        )


class Conv2dArguments:
    """Of a `SparseModule` in the place of an ``nn.Conv2d``."""

    dense_type: ClassVar[type[nn.Module]] = nn.Conv2d

    @classmethod
    def dense_arguments(cls, module: nn.Module) -> dict[str, Any]:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        arguments = {name: getattr(module, name) for name in (*names, "padding_mode")}
        return {**arguments, "bias": module.bias is not None}

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        parts += [
            f"{name}={getattr(self, name)}"
            for name, value in defaults.items()
            if getattr(self, name) != value
        ]
        return ", ".join([*parts, f"bias={self.bias is not None}", self._repr_tail()])


def check_geometry(
    in_channels: Any,
    out_channels: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
) -> dict[str, Any]:
    """The arguments of a convolution, checked, ints made pairs."""
    geometry: dict[str, Any] = {
        "in_channels": check_integer(in_channels, "in_channels"),
        "out_channels": check_integer(out_channels, "out_channels"),
        "kernel_size": check_pair(kernel_size, "kernel_size", 1),
        "stride": check_pair(stride, "stride", 1),
        "dilation": check_pair(dilation, "dilation", 1),
        "groups": check_integer(groups, "groups"),
        # The one mode that is supported.
        "padding_mode": check_choice(padding_mode, ("zeros",), "padding_mode"),
    }
    for name in ("in_channels", "out_channels"):
        if geometry[name] % geometry["groups"]:
            raise ValueError(f"groups must be a divisor of {name} = {geometry[name]}, got {groups}")
    geometry["padding"] = _check_padding(padding, geometry["stride"])
    return geometry


def _check_padding(padding: Any, stride: tuple[int, int]) -> tuple[int, int] | str:
    if not isinstance(padding, str):
        return check_pair(padding, "padding", 0)
    if padding not in ("same", "valid"):
        raise ValueError(
            f"padding must be an integer, a pair of integers, 'same' or 'valid', got {padding!r}"
        )
    if padding == "same" and stride != (1, 1):
        raise ValueError(f"padding must be numbers where stride is {stride}, got 'same'")
    return padding
