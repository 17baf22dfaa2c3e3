"""What methods are given: checks of it, and the model inside of its wrappers."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsekern.formats.checks import describe

__all__ = ["check_arguments", "check_model", "check_optimizer", "unwrapped", "unwrapped_optimizer"]

# Around an optimizer whose ``step`` they call: module and name.
OPTIMIZER_WRAPPERS = (
    ("accelerate.optimizer", "AcceleratedOptimizer"),
    ("lightning.pytorch.core.optimizer", "LightningOptimizer"),
    ("pytorch_lightning.core.optimizer", "LightningOptimizer"),
)


def check_model(model: Any) -> None:
    """Raise TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")


def check_optimizer(optimizer: Any, optional: bool = False) -> None:
    """Raise TypeError for what is no optimizer; None is one of the values where it is optional."""
    if isinstance(optimizer, torch.optim.Optimizer) or (optional and optimizer is None):
        return
    none = " or None" if optional else ""
    raise TypeError(f"optimizer must be a torch.optim.Optimizer{none}, got {describe(optimizer)}")


def check_arguments(model: Any, optimizer: Any, on_update: Any) -> None:
    """Raise TypeError for what is no model, optimizer or callback."""
    check_model(model)
    check_optimizer(optimizer)
    if on_update is not None and not callable(on_update):
        raise TypeError(f"on_update must be a function of the update's statistics, got {describe(on_update)}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP, an average or a compiled one: layers have the same names with and without."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The optimizer inside of those of accelerate and Lightning, which have no hooks of their own."""
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in OPTIMIZER_WRAPPERS)
    wrappers = tuple(wrapper for wrapper in loaded if wrapper is not None)
    while isinstance(optimizer, wrappers):
        optimizer = optimizer.optimizer
    return optimizer
