"""Layers of known networks: the shapes that are measured on a GPU and that rooflines are computed for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearLayer:
    """``(tokens, inputs) -> (tokens, outputs)``."""

    network: str
    tokens: int
    inputs: int
    outputs: int
    kind = "linear"

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.inputs}->{self.outputs}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.tokens, self.inputs)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.tokens, self.outputs)

    @property
    def samples(self) -> int:
        """Times that each weight is multiplied."""
        return self.tokens


@dataclass(frozen=True)
class ConvLayer:
    """``(batch, channels, size, size)`` to as many `outputs`, on square images."""

    network: str
    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    kind = "conv2d"

    @property
    def name(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{self.batch}x{self.channels}x{self.size}x{self.size}->{self.outputs} k{self.kernel}{stride}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.channels, self.kernel, self.kernel)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.size, self.size)

    @property
    def output_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.outputs, self.output_size, self.output_size)

    @property
    def samples(self) -> int:
        """Times that each weight is multiplied: pixels of the result, its borders counted as the others."""
        return self.batch * self.output_size**2


Layer = LinearLayer | ConvLayer

LENET5 = (
    ConvLayer("LeNet-5", 128, 1, 28, 6, 5),
    ConvLayer("LeNet-5", 128, 6, 12, 16, 5),
    LinearLayer("LeNet-5", 128, 256, 120),
    LinearLayer("LeNet-5", 128, 120, 84),
    LinearLayer("LeNet-5", 128, 84, 10),
)
# One convolution of each size; the others of a stage repeat the last of it.
VGG16 = tuple(
    ConvLayer("VGG-16", 64, channels, size, outputs, 3, padding=1)
    for channels, size, outputs in (
        (3, 224, 64),
        (64, 224, 64),
        (64, 112, 128),
        (128, 112, 128),
        (128, 56, 256),
        (256, 56, 256),
        (256, 28, 512),
        (512, 28, 512),
        (512, 14, 512),
    )
)
# The first layer, one bottleneck of each stage, and a strided layer of each kind.
RESNET50 = (
    ConvLayer("ResNet-50", 64, 3, 224, 64, 7, stride=2, padding=3),
    ConvLayer("ResNet-50", 64, 64, 56, 64, 3, padding=1),
    ConvLayer("ResNet-50", 64, 256, 56, 64, 1),
    ConvLayer("ResNet-50", 64, 128, 28, 128, 3, padding=1),
    ConvLayer("ResNet-50", 64, 512, 28, 128, 1),
    ConvLayer("ResNet-50", 64, 256, 14, 256, 3, padding=1),
    ConvLayer("ResNet-50", 64, 1024, 14, 256, 1),
    ConvLayer("ResNet-50", 64, 256, 28, 256, 3, stride=2, padding=1),
    ConvLayer("ResNet-50", 64, 512, 28, 1024, 1, stride=2),
    ConvLayer("ResNet-50", 64, 512, 7, 512, 3, padding=1),
    ConvLayer("ResNet-50", 64, 512, 7, 2048, 1),
    LinearLayer("ResNet-50", 64, 2048, 1000),
)
TRANSFORMER = (
    *(LinearLayer("transformer", tokens, 8192, 8192) for tokens in (1, 16, 64, 4096)),
    *(LinearLayer("transformer", tokens, 4096, 4096) for tokens in (1, 16, 64, 512, 4096, 16384)),
    LinearLayer("transformer", 4096, 4096, 16384),
    LinearLayer("transformer", 4096, 16384, 4096),
    *(LinearLayer("transformer", tokens, 2048, 8192) for tokens in (16, 16384)),
)
NETWORKS: dict[str, tuple[Layer, ...]] = {
    "transformer": TRANSFORMER,
    "ResNet-50": RESNET50,
    "VGG-16": VGG16,
    "LeNet-5": LENET5,
}
