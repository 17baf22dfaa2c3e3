"""LeNet-5 as the paper's code has it: ReLU, max pooling, no padding, no batch normalization."""

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.experiments.models.initialization import glorot_conv2d, glorot_linear


class LeNet5(nn.Module):
    """``fc3(relu(fc2(relu(fc1(flatten(P(relu(conv2(P(relu(conv1(x))))))))))))`` with ``P`` a 2x2 max pooling.

    Parameters
    ----------
    hidden_sizes : tuple of 4 int
        Channels of the two 5x5 convolutions and units of the two hidden linear layers. ``(6, 16, 120, 84)``
        is LeNet-5 (44,190 weights, 236 biases); ``(3, 3, 27, 20)`` its Small-Dense twin (2,399 parameters).
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
        hidden_sizes: tuple[int, int, int, int] = (6, 16, 120, 84),
        num_classes: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels1, channels2, units1, units2 = hidden_sizes
        self.conv1 = glorot_conv2d(1, channels1, 5, generator)
        self.conv2 = glorot_conv2d(channels1, channels2, 5, generator)
        self.fc1 = glorot_linear(channels2 * 4 * 4, units1, generator)
        self.fc2 = glorot_linear(units1, units2, generator)
        self.fc3 = glorot_linear(units2, num_classes, generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Pooling first gives ReLU a quarter of the work; max and ReLU commute, and so do their gradients.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
