"""Weight initialization of sparse layers: dense ("original"), scaled per layer, scaled per neuron.

Each function writes the weight of a `SparseLinear` or `SparseConv2d` in place and returns the layer. Values
are drawn at nnz size, in the pattern's order, for both storages: the same generator gives the same weights
whether the layer is compact or masked. In masked storage the inactive positions become 0. Biases are left
alone. The neurons of a 2:4 layer all have half their inputs: it takes the dense initialization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sparsekern.formats.checks import check_choice, check_generator, check_positive, describe
from sparsekern.formats.pattern import Pattern

Layer = TypeVar("Layer", bound=torch.nn.Module)
Distribution = Literal["uniform", "normal"]
Mode = Literal["fan_avg", "fan_in", "fan_out"]


def dense_(
    layer: Layer,
    *,
    scheme: Literal["glorot", "kaiming"] = "glorot",
    gain: float = 1.0,
    distribution: Distribution = "uniform",
    generator: torch.Generator | None = None,
) -> Layer:
    r"""The dense ("original") initialization with the mask applied: zeros do not change the scale.

    .. math:: \mathrm{Var}[w] = \frac{2\,\mathrm{gain}}{n_{in} + n_{out}} \text{ (glorot)}, \qquad
              \mathrm{Var}[w] = \frac{\mathrm{gain}}{3\,n_{in}} \text{ (kaiming)}

    Parameters
    ----------
    layer : SparseLinear, SparseConv2d, TwoFourLinear or TwoFourConv2d
        Any dtype and storage; a 2:4 layer with a dense weight gets all of it drawn. The fans are those of the
        dense layer: kernel area times the input (output) channels that one output (input) channel is
        connected to, so groups divide both.
    scheme : str
        ``"glorot"``, which is what the paper's code calls original, or ``"kaiming"``, the default of
        ``torch.nn.Linear`` and ``torch.nn.Conv2d`` (``a = sqrt(5)``: uniform within ``1/sqrt(n_in)``).
    gain : float
        Multiplies the variance.
    distribution : str
        ``"uniform"`` (within ``sqrt(3 Var)``) or ``"normal"``.
    generator : torch.Generator, optional
        Drawn from on its own device.

    Raises
    ------
    TypeError, ValueError
        For a layer that is not sparse and for an unknown option; nothing is changed.

    References
    ----------
    Glorot & Bengio (2010). Evci et al., *Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win*
    (2022), "Original" in its tables.
    """
    shape = getattr(layer, "weight_shape", None)
    if shape is None:
        raise TypeError(f"layer must be a sparse layer, such as SparseLinear, got {type(layer).__name__}")
    gain = _check_options(gain, distribution, generator)
    fan_in, fan_out = _dense_fans(shape, _groups_of(layer))
    if check_choice(scheme, ("glorot", "kaiming"), "scheme") == "glorot":
        variance = 2 * gain / (fan_in + fan_out)
    else:
        variance = gain / (3 * fan_in)
    return _fill(layer, variance, distribution, generator)


def per_layer_(
    layer: Layer,
    *,
    gain: float = 1.0,
    distribution: Distribution = "uniform",
    generator: torch.Generator | None = None,
) -> Layer:
    r"""Glorot scaled by the layer's overall density: right for the average neuron only.

    .. math:: \mathrm{Var}[w] = \frac{2\,\mathrm{gain}}{n_{in} + n_{out}} \cdot \frac{1}{\mathrm{density}}

    Parameters and errors are those of :func:`dense_`; the fraction on the right is one over the layer's
    density.

    References
    ----------
    Liu et al., *Rethinking the Value of Network Pruning* (2019). Evci et al. (2022),
    "Liu et al." in its tables.
    """
    pattern = _pattern_of(layer)
    gain = _check_options(gain, distribution, generator)
    fan_in, fan_out = _dense_fans(pattern.shape, _groups_of(layer))
    density = pattern.nnz / pattern.numel
    # An empty pattern has no value to scale.
    variance = 2 * gain / (fan_in + fan_out) / density if density else 0.0
    return _fill(layer, variance, distribution, generator)


def per_neuron_(
    layer: Layer,
    *,
    gain: float = 1.0,
    mode: Mode = "fan_avg",
    distribution: Distribution = "uniform",
    generator: torch.Generator | None = None,
) -> Layer:
    r"""Scales every weight by the connections that its own two neurons really have.

    .. math:: \mathrm{Var}[w_{ij}] = \frac{\mathrm{gain}}{\max(1, n_{ij})}

    with :math:`n_{ij}` the active inputs of output neuron i (``fan_in``), the active outputs of input neuron
    j (``fan_out``) or the mean of the two (``fan_avg``), counted on the mask. A neuron of a convolution is a
    channel: counts are summed over the kernel positions, and within the group for grouped convolutions.

    Parameters
    ----------
    layer : SparseLinear or SparseConv2d
        Any dtype and storage.
    gain : float
        Multiplies the variance: 1 for linear units, 2 for ReLU.
    mode : str
        ``"fan_avg"`` (the paper's code default), ``"fan_in"`` or ``"fan_out"``.
    distribution : str
        ``"uniform"`` (within ``sqrt(3 Var)``) or ``"normal"``.
    generator : torch.Generator, optional
        Drawn from on its own device.

    Raises
    ------
    TypeError, ValueError
        For a layer that is not sparse and for an unknown option; nothing is changed.

    References
    ----------
    Evci et al., *Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win*
    (2022), Equations 1 and 2.
    """
    pattern = _pattern_of(layer)
    gain = _check_options(gain, distribution, generator)
    variance = per_neuron_variance(pattern, gain=gain, mode=mode, groups=_groups_of(layer))
    return _fill(layer, variance, distribution, generator)


def per_neuron_variance(
    pattern: Pattern, *, gain: float = 1.0, mode: Mode = "fan_avg", groups: int = 1
) -> Tensor:
    """``gain / max(1, fan)`` of every value, float32 (nnz,) in the pattern's order; see `per_neuron_`.

    Memory is a few nnz-sized vectors: a layer too large to be held dense can still be initialized.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a sparsekern.Pattern, got {describe(pattern)}")
    check_choice(mode, ("fan_avg", "fan_in", "fan_out"), "mode")
    gain = check_positive(gain, "gain")
    if mode == "fan_in":
        fan = pattern.fan_in().to(torch.float32)[pattern.value_rows()]
    elif mode == "fan_out":
        fan = pattern.fan_out(groups).to(torch.float32)[_input_channels(pattern, groups)]
    else:
        fan = pattern.fan_in().to(torch.float32)[pattern.value_rows()]
        fan += pattern.fan_out(groups).to(torch.float32)[_input_channels(pattern, groups)]
        fan /= 2
    return fan.clamp_(min=1).reciprocal_().mul_(gain)


def _input_channels(pattern: Pattern, groups: int) -> Tensor:
    """The input channel, counted over all groups, that every value reads: int64 (nnz,)."""
    channels_per_group = pattern.shape[1]
    # Columns are in (kh, kw, cin) order, so the channel runs fastest.
    channel = pattern.value_cols().remainder_(channels_per_group)
    if groups == 1:
        return channel
    rows_per_group = pattern.shape[0] // groups
    return channel.add_(pattern.value_rows() // rows_per_group * channels_per_group)


def _dense_fans(shape: Sequence[int], groups: int) -> tuple[int, int]:
    area = math.prod(shape[2:])
    return shape[1] * area, shape[0] // groups * area


def _fill(
    layer: Layer, variance: float | Tensor, distribution: Distribution, generator: torch.Generator | None
) -> Layer:
    """Draws the layer's values with the given variance, one for all or one each, and writes them."""
    weight = layer.stored_weight
    pattern = getattr(layer, "pattern", None)
    if weight.is_meta:
        return layer
    # Half-precision draws have coarse steps near the ends of the range, so the draw is float32 at least.
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    device = generator.device if generator is not None else weight.device
    drawn = torch.empty(weight.shape if pattern is None else pattern.nnz, dtype=dtype, device=device)
    if distribution == "uniform":
        # A uniform variable on [-a, a] has variance a^2 / 3.
        drawn.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
    else:
        drawn.normal_(generator=generator)
    drawn = drawn.to(weight.device)
    # The square root belongs here and nowhere else: the formulas above give a variance, and handing it to a
    # sampler as its standard deviation, as two public ports do, shrinks a layer of fan 100 tenfold.
    if isinstance(variance, Tensor):
        drawn.mul_(variance.to(dtype).sqrt_())
    else:
        drawn.mul_(math.sqrt(variance))
    with torch.no_grad():
        drawn = drawn.to(weight.dtype)
        weight.copy_(drawn if drawn.shape == weight.shape else pattern.unpack(drawn))
    return layer


def _pattern_of(layer: Any) -> Pattern:
    pattern = getattr(layer, "pattern", None)
    if not isinstance(pattern, Pattern):
        raise TypeError(f"layer must be a SparseLinear or SparseConv2d, got {type(layer).__name__}")
    return pattern


def _groups_of(layer: torch.nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _check_options(gain: Any, distribution: Any, generator: Any) -> float:
    check_choice(distribution, ("uniform", "normal"), "distribution")
    check_generator(generator)
    return check_positive(gain, "gain")


INITIALIZERS = {"dense": dense_, "per_layer": per_layer_, "per_neuron": per_neuron_}
