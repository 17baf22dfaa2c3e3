"""Loss and accuracy over a whole set of examples."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from sparsekern.experiments.data import Examples
from sparsekern.experiments.loss import cross_entropy


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats) and the fraction of examples, or of tokens, classified correctly."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 1000
) -> Evaluation:
    """:func:`evaluate_batches` of ``images`` in batches of one size."""
    return evaluate_batches(model, zip(images.split(batch_size), labels.split(batch_size), strict=True))


@torch.no_grad()
def evaluate_batches(model: nn.Module, batches: Iterable[Examples]) -> Evaluation:
    """Mean cross-entropy and accuracy of ``model`` on all of ``batches``, in evaluation mode, without
    gradients.

    Sums are kept in float64, so the result hardly depends on the size of the batches.
    """
    was_training = model.training
    model.eval()
    # Tensors from the first batch on, on its device.
    loss, correct, examples = 0.0, 0, 0
    for x, y in batches:
        logits = model(x)
        loss += cross_entropy(logits, y, reduction="sum").double()
        correct += (logits.argmax(-1) == y).sum()
        examples += y.numel()
    model.train(was_training)
    return Evaluation(float(loss) / examples, int(correct) / examples)
