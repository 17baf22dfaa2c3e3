"""Loss and accuracy over a whole set of examples."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats) and the fraction of examples classified correctly."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 1000
) -> Evaluation:
    """Mean cross-entropy and accuracy of ``model`` on all of ``images``, in evaluation mode, without
    gradients.

    Sums are kept in float64, so the result hardly depends on ``batch_size``.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(x)
        loss += F.cross_entropy(logits, y, reduction="sum").double()
        correct += (logits.argmax(1) == y).sum()
    model.train(was_training)
    return Evaluation(loss.item() / len(labels), correct.item() / len(labels))
