"""ResNet-20 for CIFAR, with shortcuts that have no parameters (option A of the paper)."""

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.experiments.models.initialization import fan_in_conv2d, glorot_linear

# Channels and stride of a stage's first block.
_STAGES = ((16, 1), (32, 2), (64, 2))
_BLOCKS = 3


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``.

    The shortcut is ``x`` itself; where the shape changes, every ``stride``-th pixel of it, with channels of
    zeros after its own.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = fan_in_conv2d(in_channels, channels, 3, stride, gain=2, generator=generator)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = fan_in_conv2d(channels, channels, 3, gain=2, generator=generator)
        self.bn2 = nn.BatchNorm2d(channels)
        self.new_channels = channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        if self.stride != 1 or self.new_channels:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet20(nn.Module):
    """A 3x3 convolution, nine blocks in three stages, the mean over all positions, a linear layer.

    269,722 parameters, 268,336 of them weights, with 10 classes.

    Parameters
    ----------
    num_classes : int
        Outputs.
    width_multiplier : float
        Stages have ``round(width_multiplier * c)`` channels, at least one, with c 16, 32 and 64.
    generator : torch.Generator, optional
        Source of the initial weights (He et al., cut at two deviations; Glorot uniform in the linear layer);
        PyTorch's own if None. Biases are zero, scales one.

    Raises
    ------
    ValueError
        If ``width_multiplier`` is not above 0.

    Notes
    -----
    Takes images (batch, 3, height, width) of any size, 32 x 32 in CIFAR, and returns logits (batch,
    num_classes).

    Source: He et al. (2016), *Deep Residual Learning for Image Recognition*, Section 4.2, n = 3.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width_multiplier: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not width_multiplier > 0:
            raise ValueError(f"width_multiplier must be a number above 0, got {width_multiplier}")
        widths = [max(1, round(width_multiplier * channels)) for channels, _ in _STAGES]
        self.conv1 = fan_in_conv2d(3, widths[0], 3, gain=2, generator=generator)
        self.bn1 = nn.BatchNorm2d(widths[0])
        in_channels = widths[0]
        for number, (channels, (_, stride)) in enumerate(zip(widths, _STAGES), 1):
            stage = []
            for block in range(_BLOCKS):
                stage.append(BasicBlock(in_channels, channels, 1 if block else stride, generator))
                in_channels = channels
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.fc = glorot_linear(in_channels, num_classes, generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for number in range(1, len(_STAGES) + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))
