"""Which code runs an op: the first backend that does not refuse its inputs.

Each backend says for itself, in words, what it cannot do. ``backend=None`` takes the first without an
objection; a named backend runs or raises, and never hands over to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsekern import cpp, cuda, reference

__all__ = ["AUTOMATIC", "BACKENDS", "Backend", "BackendError", "select"]

# What an op's schema carries for ``backend=None``.
AUTOMATIC = ""


class BackendError(RuntimeError):
    """No backend, or not the named one, can run an op on these inputs."""


@dataclass(frozen=True)
class Backend:
    """A set of kernels and its objections.

    Attributes
    ----------
    name : str
        What `backend=` names it by.
    refusals : callable
        ``refusals(op, tensor) -> list of str``: why it cannot run `op` on inputs like `tensor`, if so.
    kernels : mapping
        Op name to function.
    """

    name: str
    refusals: Callable[[str, Tensor], list[str]]
    kernels: Mapping[str, Callable[..., Any]]


_BIT_COPIES = ("pack", "unpack", "transfer")


def _cpp_refusals(op: str, tensor: Tensor) -> list[str]:
    reasons = []
    if tensor.device.type != "cpu":
        reasons.append(f"its kernels run on the CPU, and the inputs are on {tensor.device}")
    if tensor.dtype not in cpp.DTYPES and op not in _BIT_COPIES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in cpp.DTYPES)
        reasons.append(
            f"it computes in {names}, and the inputs are {str(tensor.dtype).removeprefix('torch.')}"
        )
    return reasons


def _cuda_refusals(op: str, tensor: Tensor) -> list[str]:
    reasons = []
    if tensor.device.type != "cuda":
        reasons.append(f"its kernels run on CUDA devices, and the inputs are on {tensor.device}")
    if op not in cuda.KERNELS:
        reasons.append(f"it has no kernel for {op}")
    if not cuda.is_built():
        reasons.append("this build has no CUDA kernels: install with nvcc on PATH and SPARSEKERN_CUDA=1")
    return reasons


def _reference_refusals(op: str, tensor: Tensor) -> list[str]:
    return []


BACKENDS: dict[str, Backend] = {
    "cpp": Backend("cpp", _cpp_refusals, cpp.KERNELS),
    "cuda": Backend("cuda", _cuda_refusals, cuda.KERNELS),
    "reference": Backend("reference", _reference_refusals, reference.KERNELS),
}


def select(op: str, tensor: Tensor, name: str = AUTOMATIC) -> Callable[..., Any]:
    """The kernel that runs `op` on inputs of the dtype and device of `tensor`.

    Parameters
    ----------
    op : str
        Name of the op, such as ``"linear"``.
    tensor : Tensor
        One input of the op; the others are of its dtype and on its device.
    name : str
        A backend's name, or `AUTOMATIC`.

    Raises
    ------
    ValueError
        For a name that no backend has.
    BackendError
        When the named backend refuses, or all do; every reason is in the message.
    """
    if name != AUTOMATIC:
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        reasons = BACKENDS[name].refusals(op, tensor)
        if reasons:
            raise BackendError(_refused(op, tensor, {name: reasons}))
        return BACKENDS[name].kernels[op]
    objections = {}
    for backend in BACKENDS.values():
        if backend.name == "reference":
            reasons = ["it runs only when asked for, with backend='reference'"]
        else:
            reasons = backend.refusals(op, tensor)
        if not reasons:
            return backend.kernels[op]
        objections[backend.name] = reasons
    raise BackendError(_refused(op, tensor, objections))


def _refused(op: str, tensor: Tensor, objections: Mapping[str, list[str]]) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    lines = [f"sparsekern.{op}: no backend can run it on {dtype} tensors on {tensor.device}"]
    lines += [f"  {name}: {reason}" for name, reasons in objections.items() for reason in reasons]
    return "\n".join(lines)
