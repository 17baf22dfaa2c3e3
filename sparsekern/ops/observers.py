"""Who looks on while the gradient of a sparse weight is computed.

A backward pass computes the gradient at a weight's active positions only. Whoever wants to know it at the
others needs the two factors it is made of, at the moment when they are there: an observer is called with
them. This happens where an op runs, so it makes no difference whether autograd, a compiled graph or a
recomputed block called it, nor in which dtype autocast lets it run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sparsekern.formats.pattern import Pattern
from sparsekern.geometry import Sizes

__all__ = ["Observer", "WeightGradient", "observe", "stop_observing", "tell"]


class WeightGradient(NamedTuple):
    """One contribution to the gradient of a weight: ``(grad_y.T @ x)[active]``, or that of a convolution.

    Its tensors may have graphs of their own, and are autograd's: who keeps one keeps a copy, or sees to it
    that nobody writes to it.

    Attributes
    ----------
    grad_y, x : Tensor
        As in `linear_grad_values` or `conv2d_grad_values`.
    at_active : Tensor
        What the op returned: ``(nnz,)``, or of the weight's shape with 0 at inactive positions.
    geometry : sequence of int or None
        See `sparsekern.geometry`; None for a linear layer.
    """

    grad_y: Tensor
    x: Tensor
    at_active: Tensor
    geometry: Sizes | None


Observer = Callable[[WeightGradient], None]

# By the address of the pattern's data: a compiled graph hands over another tensor object on the same memory.
# Who observes a pattern keeps it alive, so that no other one comes to lie there; an observer that is gone is
# forgotten.
_observers: dict[int, weakref.ref[Observer]] = {}


def observe(pattern: Pattern, observer: Observer) -> None:
    """From now on, call `observer` with every contribution to the gradient of the weight on `pattern`.

    Parameters
    ----------
    pattern : Pattern
    observer : callable
        Held weakly: an object of its own, and no method of one. It takes the place of an earlier one.
    """
    address = pattern.data.data_ptr()

    def forget(gone: weakref.ref[Observer]) -> None:
        if _observers.get(address) is gone:
            del _observers[address]

    _observers[address] = weakref.ref(observer, forget)


def stop_observing(pattern: Pattern) -> None:
    """Undo `observe`; nothing happens where nobody observes."""
    _observers.pop(pattern.data.data_ptr(), None)


def tell(
    pattern: Tensor, grad_y: Tensor, x: Tensor, at_active: Tensor, geometry: Sizes | None = None
) -> None:
    """Call the observer of a pattern, if there is one."""
    if not _observers or (found := _observers.get(pattern.data_ptr())) is None:
        return
    observer = found()
    if observer is not None:
        observer(WeightGradient(grad_y, x, at_active, geometry))
