"""How a signal spreads through a network: the standard deviation of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsekern.analysis.arguments import check_inputs, check_logits, check_network
from sparsekern.analysis.networks import in_mode
from sparsekern.formats.checks import check_bool

__all__ = ["output_std"]


def output_std(model: nn.Module, inputs: Tensor, *, training: bool = False) -> float:
    r"""Standard deviation of a network's outputs before the softmax.

    .. math:: \sigma = \sqrt{\frac{1}{NC} \sum_{n,c} (z_{nc} - \bar z)^2},
              \qquad \bar z = \frac{1}{NC} \sum_{n,c} z_{nc}

    over all N examples and C outputs together. The paper's Figure 1c feeds standard normal noise,
    ``torch.randn(examples, 1, 28, 28)``, to a network at its initialization: where sigma falls to 0 as
    sparsity grows, so does the gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Whose result is a tensor of logits; with dense or sparse layers. It is left unchanged: each module has
        its mode back afterwards, and buffers such as running means are not updated.
    inputs : Tensor
        ``(N, ...)``, on the model's device.
    training : bool
        Run in training mode (batch normalization then normalizes by this very batch, which is what matters
        at initialization) instead of evaluation mode.

    Returns
    -------
    float
        In the units of the logits; computed in float64.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.

    References
    ----------
    Evci, Ioannou, Keskin, Dauphin, *Gradient flow in sparse neural networks and how lottery tickets win*
    (2022), Figure 1c.
    """
    model = check_network(model)
    check_inputs(inputs, model)
    check_bool(training, "training")
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.is_cuda})
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices), in_mode(model, training):
        outputs = check_logits(functional_call(model, buffers, (inputs,)))
    return float(outputs.double().std(correction=0))
