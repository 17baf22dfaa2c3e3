"""The paper's multilayer perceptron for 28x28 images."""

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.experiments.models.initialization import glorot_linear


class MLP(nn.Module):
    """``fc3(relu(fc2(relu(fc1(flatten(x))))))``.

    Parameters
    ----------
    hidden_sizes : tuple of 2 int
        Units of the two hidden layers. ``(300, 100)`` is the paper's MLP (266,200 weights, 410 biases);
        ``(8, 8)`` its Small-Dense twin (6,442 parameters).
    num_classes : int
        Outputs.
    generator : torch.Generator, optional
        Source of the initial weights (Glorot uniform; biases are zero); PyTorch's own if None.

    Notes
    -----
    Takes images (batch, 1, 28, 28) and returns logits (batch, num_classes).

    Source: Evci et al. (2022), section 4; ``rigl_tf2/networks.py`` in google-research/rigl.
    """

    def __init__(
        self,
        hidden_sizes: tuple[int, int] = (300, 100),
        num_classes: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        units1, units2 = hidden_sizes
        self.fc1 = glorot_linear(28 * 28, units1, generator)
        self.fc2 = glorot_linear(units1, units2, generator)
        self.fc3 = glorot_linear(units2, num_classes, generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(images.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
