"""Scores of a network's weights before training: random, by magnitude, SNIP, GraSP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsekern.formats.checks import check_generator, describe
from sparsekern.methods.at_init.weights import left_unchanged, masked, weights_to_score

__all__ = [
    "check_loss",
    "draw",
    "grasp",
    "grasp_scores",
    "magnitude_scores",
    "magnitudes",
    "random_scores",
    "snip",
    "snip_scores",
]

Loss = Callable[[], Any]


def random_scores(
    model: nn.Module, *, exclude: Iterable[str] = (), generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Independent uniform numbers in [0, 1): the baseline.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged.
    exclude : names or glob patterns
        Layers to leave out, as in `sparsify_`.
    generator : torch.Generator, optional
        What is drawn from, in module order; torch's global one by default.

    Returns
    -------
    dict of str to Tensor
        By layer name, float64, of the weight's shape and on its device. Layers are those that `sparsify_`
        would convert; a weight that several share is there once, under the first one's name.

    Raises
    ------
    TypeError, ValueError
        For a model that `sparsify_` refuses, names that match nothing, or another argument that is none.
    """
    check_generator(generator)
    return draw(weights_to_score(model, exclude), generator)


def draw(weights: Mapping[str, nn.Parameter], generator: torch.Generator | None) -> dict[str, Tensor]:
    """The scores of `random_scores`."""
    device = "cpu" if generator is None else generator.device
    return {
        name: torch.rand(w.shape, dtype=torch.float64, generator=generator, device=device).to(w.device)
        for name, w in weights.items()
    }


def magnitude_scores(model: nn.Module, *, exclude: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|w|``.

    Parameters, errors and result are those of `random_scores`, but that scores have the weight's dtype.
    """
    return magnitudes(weights_to_score(model, exclude))


def magnitudes(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The scores of `magnitude_scores`."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def snip_scores(model: nn.Module, loss: Loss, *, exclude: Iterable[str] = ()) -> dict[str, Tensor]:
    r"""Connection sensitivity: how much the loss depends on a weight's being there.

    .. math:: s_j = \left| \frac{\partial L(c \odot w)}{\partial c_j} \right|_{c = 1}
                  = \left| w_j \, \frac{\partial L}{\partial w_j} \right|

    The paper divides by the sum over all weights, which leaves their order as it is.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged: also its buffers, ``grad``, flags and torch's generators. It runs in the mode that it
        is in, as in the paper's code in training mode.
    loss : callable () -> Tensor
        Returns the loss, a scalar that requires a gradient; the sum of those of several batches if more are
        to count.
    exclude : names or glob patterns
        Layers to leave out, as in `sparsify_`.

    Returns
    -------
    dict of str to Tensor
        By layer name as in `random_scores`, float64, 0 where the loss does not depend on the weight. Frozen
        weights are scored like others.

    Raises
    ------
    TypeError, ValueError
        For a model that `sparsify_` refuses, names that match nothing, a loss that is no function, returns no
        scalar that requires a gradient, or does not depend on the model's weights.

    References
    ----------
    Lee, Ajanthan, Torr, *SNIP: Single-shot network pruning based on connection sensitivity* (2019),
    Section 4.1.
    """
    check_loss(loss)
    return snip(model, weights_to_score(model, exclude), loss, {})


def snip(
    model: nn.Module, weights: Mapping[str, nn.Parameter], loss: Loss, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The scores of `snip_scores` in the network whose weights are 0 outside of `masks`."""
    with left_unchanged(model, weights.values()), masked(weights, masks):
        gradients = _gradients(loss, weights)
        return {
            name: (weight.detach().double() * gradients[name].double()).abs()
            for name, weight in weights.items()
        }


def grasp_scores(model: nn.Module, loss: Loss, *, exclude: Iterable[str] = ()) -> dict[str, Tensor]:
    r"""Gradient signal preservation: how much of the gradient's norm would be lost without the weight.

    .. math:: s = w \odot H g, \qquad g = \nabla L(w), \quad H = \nabla^2 L(w)

    A small step along the gradient changes the loss at the rate :math:`\Delta L(w) = g^\top g`, the gradient
    flow. Moving the weights by :math:`\delta` changes that rate by

    .. math:: S(\delta) = \Delta L(w + \delta) - \Delta L(w)
                        = 2 \, \delta^\top H g + O(\lVert \delta \rVert^2)

    and removing weight j alone is :math:`\delta = -w_j e_j`, which changes it by
    :math:`-2 \, w_j (H g)_j`. Where this is positive, the flow grows without the weight; where it is
    negative, it shrinks. The paper writes :math:`S(-w) = -w \odot H g`, without the 2, and removes the
    weights for which it is largest, so those are kept for which :math:`w \odot H g` is. That is the score
    here: it has a sign, and as for all methods the largest stay.

    H g is the gradient of :math:`g^\top \mathrm{stopgrad}(g)`; no Hessian is made. As in the authors' code,
    g and H are with respect to the weights that are scored, not biases or other parameters. Their
    temperature (outputs divided by 200 before the softmax), without which weights may stay whose gradients
    are far larger than the dense network's, and their ten examples of each class are for `loss` to have.

    Parameters, result and errors are those of `snip_scores`; all that the loss uses must be differentiable
    twice.

    References
    ----------
    Wang, Zhang, Grosse, *Picking winning tickets before training by preserving gradient flow* (2020),
    Equations 7 and 8 and Algorithm 1; ``pruner/GraSP.py`` in alecwangcq/GraSP.
    """
    check_loss(loss)
    return grasp(model, weights_to_score(model, exclude), loss)


def grasp(model: nn.Module, weights: Mapping[str, nn.Parameter], loss: Loss) -> dict[str, Tensor]:
    """The scores of `grasp_scores`."""
    # Only the plain formula of attention has second derivatives.
    with left_unchanged(model, weights.values()), sdpa_kernel(SDPBackend.MATH):
        gradients = _gradients(loss, weights, twice=True)
        flow = sum((gradient * gradient.detach()).sum() for gradient in gradients.values())
        if not flow.requires_grad:  # the loss is linear in the weights, and H is 0
            return {
                name: torch.zeros_like(weight.detach(), dtype=torch.float64)
                for name, weight in weights.items()
            }
        products = torch.autograd.grad(
            flow, list(weights.values()), allow_unused=True, materialize_grads=True
        )
        return {
            name: weight.detach().double() * product.double()
            for (name, weight), product in zip(weights.items(), products)
        }


def check_loss(loss: Any) -> None:
    """Raise TypeError for what is no function."""
    if not callable(loss):
        raise TypeError(
            f"loss must be a function without arguments that returns the loss, got {describe(loss)}"
        )


def _gradients(loss: Loss, weights: Mapping[str, nn.Parameter], twice: bool = False) -> dict[str, Tensor]:
    value = loss()
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise TypeError(f"loss must return a scalar that requires a gradient, got {describe(value)}")
    found = torch.autograd.grad(value, list(weights.values()), create_graph=twice, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(
            f"loss must depend on the weights of the model's layers ({', '.join(list(weights)[:5])}"
            f"{', ...' if len(weights) > 5 else ''}), got one that depends on none"
        )
    return {
        name: torch.zeros_like(weight.detach()) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found)
    }
