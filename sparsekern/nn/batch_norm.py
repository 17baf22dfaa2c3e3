"""Running statistics of normalizations: estimated anew after weights were changed by hand, or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sparsekern.formats.checks import describe, is_number

__all__ = ["keeping_running_statistics", "recalibrate_batch_norm_"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate_batch_norm_(
    model: nn.Module,
    batches: Iterable[Any],
    momentum: float | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> int:
    r"""Estimates the running means and variances of all batch normalizations anew, in place.

    .. math:: \mu \leftarrow \frac{1}{n} \sum_{i=1}^n \mu_i, \qquad
              \sigma^2 \leftarrow \frac{1}{n} \sum_{i=1}^n \sigma_i^2

    over n batches (or calls, for a module that is used several times), each counting the same;
    :math:`\sigma_i^2` is unbiased, as PyTorch's is. For networks that were pruned, rewound, averaged or
    interpolated, whose activations are not those that the old statistics were of.

    Only batch normalizations are in training mode meanwhile: all else, dropout for one, is in evaluation
    mode, so that the statistics are those of the network that is evaluated. `torch.optim.swa_utils.update_bn`
    puts the whole model in training mode, sets one mode everywhere afterwards, and leaves the statistics
    reset where there was no batch or the model failed; here all is as before then.

    Parameters
    ----------
    model : torch.nn.Module
        Its batch normalizations that track no statistics are left alone.
    batches : iterable
        Of tensors; of tuples or lists, whose first item is the input; or of mappings, which are the model's
        keyword arguments. Tensors are moved to the device of the model's first parameter.
    momentum : float, optional
        In (0, 1]: a moving average, which starts with the statistics of the first batch and to which each
        later batch contributes this share. By default the average above.
    forward : callable (model, batch) -> Any, optional
        Runs the model on a batch, where that is none of the above.

    Returns
    -------
    int
        The number of batch normalizations. When there is none, 0, and no batch is read.

    Raises
    ------
    TypeError, ValueError
        For arguments that are none of the above, and where there is no batch. Nothing has been changed then,
        nor where the model fails.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {describe(batches)}")
    if momentum is not None and not (is_number(momentum) and 0 < momentum <= 1):
        raise ValueError(f"momentum must be a number in (0, 1] or None, got {describe(momentum)}")
    if forward is not None and not callable(forward):
        raise TypeError(f"forward must be a function of model and batch, got {describe(forward)}")
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return 0
    with _recalibrating(model, norms):
        seen = 0
        for batch in batches:
            for norm in norms:
                # The first batch replaces what the statistics were reset to, which counts for nothing.
                norm.momentum = momentum if momentum is None or seen else 1.0
            (forward or _run)(model, batch)
            seen += 1
        if not seen:
            raise ValueError("batches must have at least one batch, got none")
    return len(norms)


def _run(model: nn.Module, batch: Any) -> None:
    device = next((parameter.device for parameter in model.parameters()), None)

    def moved(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{name: moved(value) for name, value in batch.items()})
        return
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            f"batches must be tensors, tuples that begin with one, or mappings of the model's arguments, got "
            f"{describe(batch)}; forward= runs the model on others"
        )
    model(moved(first))


@contextmanager
def keeping_running_statistics(model: nn.Module) -> Iterator[None]:
    """The running statistics of all normalizations are afterwards what they were, whatever runs inside."""
    before = [(norm, _statistics(norm)) for norm in model.modules() if isinstance(norm, _NormBase)]
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def _recalibrating(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch normalizations alone train inside; modes, and after an error statistics, are as before."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [(norm, _statistics(norm)) for norm in norms]
    try:
        for module in modes:
            module.training = False
        for norm in norms:
            norm.training = True
            norm.reset_running_stats()
        yield
    except BaseException:
        _restore(before)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, value in zip(norms, momenta):
            norm.momentum = value


def _statistics(norm: _NormBase) -> dict[str, Tensor]:
    return {name: value.clone() for name in BUFFERS if (value := getattr(norm, name)) is not None}


@torch.no_grad()
def _restore(statistics: Iterable[tuple[_NormBase, dict[str, Tensor]]]) -> None:
    for norm, buffers in statistics:
        for name, value in buffers.items():
            getattr(norm, name).copy_(value)
