"""ResNet-50 v1.5 as the paper's code has it: a bottleneck's stride is in its 3x3 convolution."""

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.experiments.models.initialization import fan_in_conv2d

_EXPANSION = 4
# Channels inside the blocks of a stage, number of blocks, stride of the first.
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """``relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x))``; ``bn3`` starts at zero, so a
    block starts as its shortcut.

    The shortcut is ``x`` itself, or a 1x1 convolution and a batch normalization (``downsample``) where the
    shape changes.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.conv1 = fan_in_conv2d(in_channels, channels, 1, gain=1, generator=generator)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = fan_in_conv2d(channels, channels, 3, stride, gain=1, generator=generator)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = fan_in_conv2d(channels, out_channels, 1, gain=1, generator=generator)
        self.bn3 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                fan_in_conv2d(in_channels, out_channels, 1, stride, gain=1, generator=generator),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """A 7x7 convolution, 3x3 max pooling, 16 blocks in four stages, the mean over all positions, a linear
    layer.

    25,557,032 parameters with 1,000 classes.

    Parameters
    ----------
    num_classes : int
        Outputs.
    generator : torch.Generator, optional
        Source of the initial weights (variance ``1 / fan_in``, normal, cut at two deviations; deviation 0.01
        in the linear layer); PyTorch's own if None. Biases are zero, scales one, and zero at the end of a
        block.

    Notes
    -----
    Takes images (batch, 3, height, width) of any size and returns logits (batch, num_classes). Names are
    those of torchvision. Pooling pads both sides, where the paper's code pads one.

    Source: He et al. (2016), Table 1; ``imagenet_resnet/resnet_model.py`` in google-research/rigl.
    """

    def __init__(self, num_classes: int = 1000, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.conv1 = fan_in_conv2d(3, 64, 7, 2, gain=1, generator=generator)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = 64
        for number, (channels, blocks, stride) in enumerate(_STAGES, 1):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(in_channels, channels, 1 if block else stride, generator))
                in_channels = channels * _EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.fc = nn.utils.skip_init(nn.Linear, in_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for number in range(1, len(_STAGES) + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))
