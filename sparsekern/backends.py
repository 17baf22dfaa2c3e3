"""Which code runs an op: the first backend that does not refuse its inputs.

Each backend says for itself, in words, what it cannot do. ``backend=None`` takes the first without an
objection; a named backend runs or raises, and never hands over to another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from sparsekern import cpp, cuda, reference, semi_structured, triton

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
        ``refusals(op, dtype, device) -> list of str``: why it cannot run `op` on such inputs, if so.
    kernels : module
        Has a function for each op that it can run, under the op's name.
    """

    name: str
    refusals: Callable[[str, torch.dtype, torch.device], list[str]]
    kernels: ModuleType

    def kernel(self, op: str) -> Callable[..., Any]:
        """The function that runs `op`."""
        return getattr(self.kernels, op)


# They copy or compare bits, and know the floating-point types that they take themselves.
_BIT_OPS = (
    "gather_two_four",
    "pack",
    "pack_two_four",
    "transfer",
    "transfer_all",
    "unpack",
    "unpack_two_four",
    "update_topology",
)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpp_refusals(op: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    reasons = []
    if device.type != "cpu":
        reasons.append(f"its kernels run on the CPU, and the inputs are on {device}")
    if dtype not in cpp.DTYPES and op not in _BIT_OPS:
        names = ", ".join(map(_name, cpp.DTYPES))
        reasons.append(f"it computes in {names}, and the inputs are {_name(dtype)}")
    return reasons


def _cuda_refusals(op: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    reasons = []
    if device.type != "cuda":
        reasons.append(f"its kernels run on CUDA devices, and the inputs are on {device}")
    if not hasattr(cuda, op):
        reasons.append(f"it has no kernel for {op}")
    if op == "pack_two_four" and dtype not in cuda.TWO_FOUR_TYPES:
        names = ", ".join(map(_name, cuda.TWO_FOUR_TYPES))
        reasons.append(f"it packs {names}, and the inputs are {_name(dtype)}")
    if not cuda.is_built():
        reasons.append("this build has no CUDA kernels: install with nvcc on PATH and SPARSEKERN_CUDA=1")
    return reasons


def _torch_refusals(op: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    reasons = []
    if not hasattr(semi_structured, op):
        reasons.append(f"it has no kernel for {op}")
    if dtype not in semi_structured.DTYPES:
        names = ", ".join(map(_name, semi_structured.DTYPES))
        reasons.append(f"it computes in {names}, and the inputs are {_name(dtype)}")
    # A layout without an objection is enough.
    objections = [semi_structured.device_refusals(layout, device) for layout in semi_structured.LAYOUTS]
    if all(objections):
        reasons += dict.fromkeys(reason for found in objections for reason in found)
    return reasons


def _triton_refusals(op: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    reasons = []
    if not hasattr(triton, op):
        reasons.append(f"it has no kernel for {op}")
    if dtype not in triton.DTYPES and op not in triton.BIT_COPIES:
        names = ", ".join(map(_name, triton.DTYPES))
        reasons.append(f"it computes in {names}, and the inputs are {_name(dtype)}")
    if reason := triton.unusable():
        reasons.append(reason)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < triton.LEAST_CAPABILITY:
            needed, found = (".".join(map(str, version)) for version in (triton.LEAST_CAPABILITY, capability))
            reasons.append(
                f"it needs a GPU of compute capability {needed} or newer, and {device} has {found}"
            )
    elif device.type != "cpu" or not triton.is_interpreted():
        reasons.append(f"its kernels run on CUDA devices, and the inputs are on {device}")
    return reasons


def _reference_refusals(op: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    return []


BACKENDS: dict[str, Backend] = {
    "cpp": Backend("cpp", _cpp_refusals, cpp),
    "cuda": Backend("cuda", _cuda_refusals, cuda),
    "triton": Backend("triton", _triton_refusals, triton),
    "torch": Backend("torch", _torch_refusals, semi_structured),
    "reference": Backend("reference", _reference_refusals, reference),
}


@functools.cache
def select(op: str, dtype: torch.dtype, device: torch.device, name: str = AUTOMATIC) -> Callable[..., Any]:
    """The kernel that runs `op` on inputs of one dtype on one device. Its answers are kept, refusals are not.

    Parameters
    ----------
    op : str
        Name of the op, such as ``"linear"``.
    dtype, device :
        Of the op's tensors.
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
        reasons = BACKENDS[name].refusals(op, dtype, device)
        if reasons:
            raise BackendError(_refused(op, dtype, device, {name: reasons}))
        return BACKENDS[name].kernel(op)
    objections = {}
    for backend in BACKENDS.values():
        if backend.name == "reference":
            reasons = ["it runs only when asked for, with backend='reference'"]
        else:
            reasons = backend.refusals(op, dtype, device)
        if not reasons:
            return backend.kernel(op)
        objections[backend.name] = reasons
    raise BackendError(_refused(op, dtype, device, objections))


def _refused(op: str, dtype: torch.dtype, device: torch.device, objections: Mapping[str, list[str]]) -> str:
    lines = [f"sparsekern.{op}: no backend can run it on {_name(dtype)} tensors on {device}"]
    lines += [f"  {name}: {reason}" for name, reasons in objections.items() for reason in reasons]
    return "\n".join(lines)
