"""Checks of the arguments that several measurements take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_integer, describe
from sparsekern.methods.arguments import unwrapped

__all__ = [
    "check_callable",
    "check_examples",
    "check_inputs",
    "check_logits",
    "check_network",
    "check_several",
    "check_square",
    "check_vector",
]


def check_network(model: Any, name: str = "model") -> nn.Module:
    """Return `model`, or what is inside of its wrappers, when it is a module whose parameters have contents.

    DDP's own forward pass talks to the other processes, which may not be measuring anything.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {describe(model)}")
    model = unwrapped(model)
    for own, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"{name} must have parameters with contents, got {own!r}, which has none (lazy, or on the "
                "meta device)"
            )
    return model


def check_callable(function: Any, name: str, does: str) -> Callable[..., Any]:
    """Return `function` when it can be called; `does` says how, for the error message."""
    if not callable(function):
        raise TypeError(f"{name} must be a function {does}, got {describe(function)}")
    return function


def check_inputs(inputs: Any, model: nn.Module, name: str = "inputs") -> Tensor:
    """Return `inputs` when it is a tensor of at least one example on the model's device."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{name} must be a tensor, got {describe(inputs)}")
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(
            f"{name} must have at least one example along its first dimension, got {describe(inputs)}"
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and inputs.device != parameter.device:
        raise ValueError(f"{name} must be on the model's device {parameter.device}, got {inputs.device}")
    return inputs


def check_examples(inputs: Any, targets: Any, model: nn.Module) -> None:
    """Raise unless both are tensors of the same number of examples on the model's device."""
    check_inputs(inputs, model)
    check_inputs(targets, model, "targets")
    if len(inputs) != len(targets):
        raise ValueError(f"targets must be for the {len(inputs)} examples of inputs, got {len(targets)}")


def check_logits(outputs: Any) -> Tensor:
    """Return a model's outputs when they are a floating-point tensor with a dimension of examples."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() == 0:
        raise TypeError(f"model must return a floating-point tensor of logits, got {describe(outputs)}")
    return outputs


def check_several(values: Any, name: str, least: int, what: str) -> list[Any]:
    """Return `values` as a list when it is a sequence, array or tensor of at least so many."""
    if not isinstance(values, (Sequence, np.ndarray, Tensor)) or isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of {what}, got {describe(values)}")
    if getattr(values, "ndim", 1) == 0 or len(values) < least:
        raise ValueError(f"{name} must be at least {least} {what}, got {describe(values)}")
    return list(values)


def check_vector(vector: Any, name: str, size: int) -> Tensor:
    """Return `vector` when it is a floating-point tensor of `size` finite numbers."""
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(vector)}")
    if tuple(vector.shape) != (check_integer(size, "size"),):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(vector.shape)}")
    if not bool(vector.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return vector


def check_square(matrix: Any, name: str) -> Tensor:
    """Return `matrix` as float64 on the CPU when it is square, finite, symmetric and not negative."""
    if not isinstance(matrix, Tensor) or matrix.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {describe(matrix)}")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"{name} must be a square matrix of at least two rows, got {tuple(matrix.shape)}")
    values = matrix.detach().to("cpu", torch.float64)
    if not bool(values.isfinite().all()) or bool((values < 0).any()):
        raise ValueError(f"{name} must be finite and not negative, got {values.min()} to {values.max()}")
    if not torch.allclose(values, values.T) or bool(values.diagonal().any()):
        raise ValueError(f"{name} must be symmetric with zeros on the diagonal, and is not")
    return values
