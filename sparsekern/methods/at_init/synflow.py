"""Synaptic flow: scores that need no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsekern.formats.checks import check_strided, describe
from sparsekern.methods.at_init.weights import left_unchanged, weights_to_score

__all__ = ["check_example", "synflow", "synflow_scores"]


def synflow_scores(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], *, exclude: Iterable[str] = ()
) -> dict[str, Tensor]:
    r"""Synaptic flow of a weight: what the paths through it carry from an input of ones to the outputs.

    .. math:: s = \frac{\partial R}{\partial |w|} \odot |w|, \qquad
              R = \sum f(\mathbf{1}; |\theta|)

    R is the sum of the outputs of the network with the magnitudes of all parameters, biases and those of
    normalizations included, for an input of ones. Modules are in evaluation mode, so batch normalization uses
    its buffers, which are taken as they are. Where activations are homogeneous (ReLU) and nothing is added,
    the scores of each layer sum to R.

    Everything is computed in float64, since R is the product of all layers' gains: it leaves the range of
    float32 after some tens of layers. The parameters themselves are not touched.

    These are the scores of a first round. They were made to be computed again after each of many small steps
    of pruning, as ``at_init_masks(model, "synflow", ...)`` does: only then no layer is pruned away.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged. Its forward must run in float64, as sparse layers do on CPUs, and return a tensor.
    example : Tensor or tuple of Tensor
        What the model takes, floating-point; only shapes and devices are used, and one sample is enough.
    exclude : names or glob patterns
        Layers to leave out, as in `sparsify_`.

    Returns
    -------
    dict of str to Tensor
        By layer name as in `random_scores`, float64, 0 where outputs do not depend on the weight.

    Raises
    ------
    TypeError, ValueError
        For a model that `sparsify_` refuses or whose result is no tensor that depends on its weights, names
        that match nothing, and examples that are no floating-point tensors.

    References
    ----------
    Tanaka, Kunin, Yamins, Ganguli, *Pruning neural networks without any data by iteratively conserving
    synaptic flow* (2020), Algorithm 1; ``Pruners/pruners.py`` in ganguli-lab/Synaptic-Flow.
    """
    return synflow(model, weights_to_score(model, exclude), check_example(example), {})


def synflow(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    inputs: tuple[Tensor, ...],
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The scores of `synflow_scores` in the network whose weights are 0 outside of `masks`."""
    with left_unchanged(model):
        model.eval()
        leaves = {p: _magnitude(p, masks.get(name)).requires_grad_() for name, p in weights.items()}
        tensors = {
            name: leaves[p] if p in leaves else _magnitude(p) for name, p in model.named_parameters()
        } | {name: _widened(buffer) for name, buffer in model.named_buffers()}
        ones = tuple(torch.ones_like(x, dtype=torch.float64, requires_grad=False) for x in inputs)
        output = functional_call(model, tensors, ones)
        if not isinstance(output, Tensor) or not output.requires_grad:
            raise TypeError(f"model must return a tensor that depends on its weights, got {describe(output)}")
        flows = torch.autograd.grad(
            output.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return {name: (leaf.detach() * flow).abs() for name, leaf, flow in zip(weights, leaves.values(), flows)}


def check_example(example: Any) -> tuple[Tensor, ...]:
    """Return `example` as a tuple when it is a floating-point tensor with contents, or a tuple of such."""
    inputs = example if isinstance(example, tuple) else (example,)
    for tensor in inputs or (inputs,):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(
                f"example must be a floating-point tensor or a tuple of them, got {describe(tensor)}"
            )
        check_strided(tensor, "example")
    return inputs


def _magnitude(parameter: Tensor, mask: Tensor | None = None) -> Tensor:
    magnitude = _widened(parameter.detach())
    magnitude = magnitude.abs() if magnitude.is_floating_point() else magnitude
    return magnitude if mask is None else torch.where(mask, magnitude, 0)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
