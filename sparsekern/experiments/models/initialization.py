"""Layers with the initial values that the paper's code starts from."""

import math

import torch
from torch import nn

# Standard deviation of a standard normal that is cut at -2 and 2.
_TRUNCATED = 0.87962566103423978


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


def fan_in_conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    gain: float,
    generator: torch.Generator | None,
) -> nn.Conv2d:
    """``nn.Conv2d`` without bias, whose padding keeps the size at stride 1, with values of variance
    ``gain / fan_in``: a normal distribution cut at two deviations.

    A gain of 2 is the initialization of He et al. (2015), eq. 10, for ReLU; both are TensorFlow 1's
    ``variance_scaling_initializer(scale=gain)``.
    """
    layer = nn.utils.skip_init(
        nn.Conv2d,
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    deviation = math.sqrt(gain / (in_channels * kernel_size**2)) / _TRUNCATED
    nn.init.trunc_normal_(layer.weight, 0, deviation, -2 * deviation, 2 * deviation, generator)
    return layer
