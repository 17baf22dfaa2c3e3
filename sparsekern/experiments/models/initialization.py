"""Layers with Keras' default initial values, which the paper's code starts from."""

import torch
from torch import nn


def glorot_linear(in_features: int, out_features: int, generator: torch.Generator | None) -> nn.Linear:
    """``nn.Linear`` with :func:`glorot_` values."""
    return glorot_(nn.utils.skip_init(nn.Linear, in_features, out_features), generator)


def glorot_conv2d(
    in_channels: int, out_channels: int, kernel_size: int, generator: torch.Generator | None
) -> nn.Conv2d:
    """``nn.Conv2d`` (stride 1, no padding) with :func:`glorot_` values."""
    return glorot_(nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, kernel_size), generator)


def glorot_(layer: nn.Linear | nn.Conv2d, generator: torch.Generator | None) -> nn.Linear | nn.Conv2d:
    """``weight ~ U(-a, a)`` with ``a = sqrt(6 / (fan_in + fan_out))``, ``bias = 0``, in place.

    Fans of a convolution count the kernel's positions, as in Keras. Source: Glorot and Bengio (2010), eq. 16.
    """
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
