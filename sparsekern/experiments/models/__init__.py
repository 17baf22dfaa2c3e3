"""The paper's MNIST networks, dense; :func:`sparsekern.sparsify_` makes them sparse."""

from collections.abc import Callable

import torch

from sparsekern.experiments.models.lenet5 import LeNet5
from sparsekern.experiments.models.mlp import MLP

#: name -> (one line about it, constructor taking a generator)
MODELS: dict[str, tuple[str, Callable[[torch.Generator | None], torch.nn.Module]]] = {
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
}

#: model -> the dense one with about as many parameters as it has when sparse
SMALL_DENSE = {"lenet5": "small-lenet5", "mlp": "small-mlp"}

__all__ = ["MLP", "MODELS", "SMALL_DENSE", "LeNet5"]
