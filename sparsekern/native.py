"""The compiled extension: loading it, its threads, and which instruction set its CPU kernels use.

``native._C`` is the extension module. It takes tensors as ``data_ptr()`` with element counts, so it is built
without torch and one build serves every torch version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Before the extension: both then run on the OpenMP library that torch ships, with one pool of threads.
import torch

try:
    from sparsekern import _C
except ImportError as error:
    raise ImportError(
        "sparsekern's compiled extension sparsekern._C cannot be imported; build it with "
        f"`pip install -e .` in the root of the source tree ({error})"
    ) from error

__all__ = ["get_isa", "isa", "isa_levels", "set_isa", "threads"]


def threads() -> int:
    """Number of OpenMP threads that native calls use: ``torch.get_num_threads()``."""
    return torch.get_num_threads()


def isa_levels() -> list[str]:
    """Instruction sets that this build has kernels for and this CPU runs, slowest first.

    A subset of ``["portable", "avx2", "avx512"]``; the last one is the default.
    """
    return list(_C.isa_levels())


def get_isa() -> str:
    """Instruction set of the kernels in use, one of `isa_levels`."""
    return _C.get_isa()


def set_isa(level: str) -> None:
    """Use the kernels of instruction set `level` from now on, in the whole process.

    Parameters
    ----------
    level : str
        One of `isa_levels`.

    Raises
    ------
    ValueError
        When this build or this CPU lacks `level`.
    """
    _set_isa(level, "level")


def _set_isa(level: str, name: str) -> None:
    available = isa_levels()
    if level not in available:
        raise ValueError(f"{name} must be one of {', '.join(available)} on this machine, got {level!r}")
    _C.set_isa(level)


@contextmanager
def isa(level: str) -> Iterator[None]:
    """Use the kernels of instruction set `level` inside a ``with`` block.

    The setting belongs to the process, not to the thread. See `set_isa` for the parameter and its errors.
    """
    previous = get_isa()
    set_isa(level)
    try:
        yield
    finally:
        _C.set_isa(previous)


if "SPARSEKERN_ISA" in os.environ:
    _set_isa(os.environ["SPARSEKERN_ISA"], "the environment variable SPARSEKERN_ISA")
