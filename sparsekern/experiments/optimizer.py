"""The optimizer of a recipe: weights decay, biases and scales do not."""

import torch
from torch import nn

from sparsekern.experiments.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, with ``weight_decay`` on weights only.

    PyTorch's SGD adds ``weight_decay * w`` to the gradient, Keras' ``l2(c)`` adds ``2 c w``: ``weight_decay``
    is twice the number in the paper's code.
    """
    weights, others = split_parameters(model)
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of linear and convolutional layers, dense or sparse, and all other parameters."""
    weights, others = [], []
    for name, parameter in model.named_parameters():
        # A sparse layer's weight is a vector of its values; a normalization's scale is a vector called
        # weight.
        leaf = name.rpartition(".")[2]
        is_weight = leaf == "values" or (leaf == "weight" and parameter.ndim > 1)
        (weights if is_weight else others).append(parameter)
    return weights, others
