"""VGG-16 as the paper's code has it: all convolutions, no batch normalization, no biases."""

import torch
from torch import nn

from sparsekern.experiments.models.initialization import fan_in_conv2d

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """13 convolutions of 3x3 with ReLU in five stages, 2x2 max pooling between the stages, the mean over all
    positions, and a convolution of 1x1 as the classifier.

    15,222,464 weights with 1,000 classes, and nothing else to train.

    Parameters
    ----------
    num_classes : int
        Outputs.
    generator : torch.Generator, optional
        Source of the initial weights (He et al., cut at two deviations); PyTorch's own if None.

    Notes
    -----
    Takes images (batch, 3, height, width) of at least 16 pixels a side and returns logits (batch,
    num_classes). Names are those of torchvision, but for ``classifier``.

    Source: Simonyan and Zisserman (2015), configuration D; ``imagenet_resnet/vgg.py`` in
    google-research/rigl.
    """

    def __init__(self, num_classes: int = 1000, generator: torch.Generator | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers.append(fan_in_conv2d(channels, width, 3, gain=2, generator=generator))
                layers.append(nn.ReLU(inplace=True))
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = fan_in_conv2d(channels, num_classes, 1, gain=2, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images).mean((2, 3), keepdim=True)
        return self.classifier(x).flatten(1)
