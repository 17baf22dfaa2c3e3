"""The settings of a process that change what other tests compute, or how."""

import os
import signal
import sys
from pathlib import Path

NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Other variables are set by libraries on their first import or use, for themselves.
VARIABLES = ("SPARSEKERN_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRITON_INTERPRET")


def process_state() -> dict[str, object]:
    """All that one file of tests could leave to the next, by name; of torch only if it was imported."""
    state = {"working directory": Path.cwd()}
    state |= {f"handler of {number.name}": signal.getsignal(number) for number in NUMBERS}
    state |= {f"${name}": value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    extension = sys.modules.get("sparsekern._C")
    if extension is not None:
        state["instruction set"] = extension.get_isa()
    if "torch" in sys.modules:
        state |= _torch_state()
    return state


def _torch_state() -> dict[str, object]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flushed denormals": (torch.tensor([1e-39]) * 0.5 == 0).item(),
        "float32 products": torch.get_float32_matmul_precision(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "process group": torch.distributed.is_initialized(),
    }


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """A line for each setting that is another than before; what nothing had loaded before is left out."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before and not name.startswith("$"):
            continue
        ours, theirs = before.get(name, "not set"), after.get(name, "not set")
        if ours != theirs:
            lines.append(f"{name}: was {ours}, is {theirs}")
    return lines
