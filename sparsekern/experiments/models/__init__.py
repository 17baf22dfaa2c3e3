"""The paper's networks, dense; :func:`sparsekern.sparsify_` makes them sparse."""

from collections.abc import Callable
from typing import Any

import torch

from sparsekern.experiments.models.gpt import GPT, GPT_SIZES, GPTConfig
from sparsekern.experiments.models.lenet5 import LeNet5
from sparsekern.experiments.models.mlp import MLP
from sparsekern.experiments.models.resnet50 import ResNet50
from sparsekern.experiments.models.vgg16 import VGG16

#: name -> (one line about it, constructor taking a generator; an image model's takes num_classes, too)
MODELS: dict[str, tuple[str, Callable[..., torch.nn.Module]]] = {
    "lenet5": ("LeNet-5: 44,190 weights and 236 biases", lambda g: LeNet5(generator=g)),
    "mlp": ("MLP 784-300-100-10: 266,200 weights and 410 biases", lambda g: MLP(generator=g)),
    "small-lenet5": (
        "Small-Dense twin of LeNet-5 at 95 %: 2,399 parameters",
        lambda g: LeNet5((3, 3, 27, 20), generator=g),
    ),
    "small-mlp": (
        "Small-Dense twin of the MLP at 98 %: 784-8-8-10, 6,442 parameters",
        lambda g: MLP((8, 8), generator=g),
    ),
    "vgg16": (
        "VGG-16 without batch normalization and hidden linear layers: 15,222,464 weights",
        lambda g, num_classes=1000: VGG16(num_classes, generator=g),
    ),
    "resnet50": (
        "ResNet-50 v1.5: 25,557,032 parameters",
        lambda g, num_classes=1000: ResNet50(num_classes, generator=g),
    ),
}

#: Models of color images of any size and number of classes; the others are for 28x28 pixels and ten classes.
IMAGE_MODELS = ("vgg16", "resnet50")

#: model -> the dense one with about as many parameters as it has when sparse
SMALL_DENSE = {"lenet5": "small-lenet5", "mlp": "small-mlp"}

#: model -> what its sparse initializations have in place of their defaults, as its dense one has it: the
#: options of per_neuron_, and for per_layer_ those that it knows
SPARSE_INIT: dict[str, dict[str, Any]] = {
    "vgg16": {"gain": 2.0, "mode": "fan_in", "distribution": "normal"},
    "resnet50": {"gain": 1.0, "mode": "fan_in", "distribution": "normal"},
}

__all__ = [
    "GPT",
    "GPT_SIZES",
    "IMAGE_MODELS",
    "MLP",
    "MODELS",
    "SMALL_DENSE",
    "SPARSE_INIT",
    "VGG16",
    "GPTConfig",
    "LeNet5",
    "ResNet50",
]
