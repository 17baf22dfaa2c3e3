"""The loss of images, which have a label each, and of text, which has one at each of its positions."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Cross-entropy in nats, the mean over all labels.

    Parameters
    ----------
    logits : Tensor
        (..., classes).
    labels : Tensor
        (...) int64.
    **options : Any
        Of :func:`torch.nn.functional.cross_entropy`, as ``label_smoothing`` and ``reduction``.
    """
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **options)
