"""The environment as a bug report needs it: versions, CPU, GPU, and what sparsekern's kernels were built for.

Everything is looked up when asked for, and what is missing is part of the answer, so the report also works
where the compiled extension or PyTorch does not load.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable

from sparsekern._version import __version__

__all__ = ["collect_env", "report"]

#: Every environment variable that sparsekern reads; the last two count when it is built.
VARIABLES = ("SPARSEKERN_ISA", "SPARSEKERN_CUDA", "SPARSEKERN_CUDA_ARCHS")


def collect_env() -> dict[str, str]:
    """What sparsekern runs on, as labels and values in the order they should be read.

    Returns
    -------
    dict of str to str
        A value that cannot be found says why: ``"not installed"``, or the error met.
    """
    lookups: dict[str, Callable[[], str]] = {
        "sparsekern": lambda: __version__,
        "Python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
        "operating system": platform.platform,
        "CPU": _cpu,
        "CPU kernels": _cpu_kernels,
        "PyTorch": _torch,
        "Triton": lambda: _version_of("triton"),
        "NumPy": lambda: _version_of("numpy"),
        "CUDA kernels": _cuda_kernels,
        "GPU": _gpu,
        **{name: lambda name=name: os.environ.get(name, "not set") for name in VARIABLES},
    }
    return {label: _answer(lookup) for label, lookup in lookups.items()}


def report() -> str:
    """The result of `collect_env` as aligned text, one line a label."""
    found = collect_env()
    width = max(map(len, found))
    return "\n".join(f"{label:<{width}}  {value}" for label, value in found.items())


def _answer(lookup: Callable[[], str]) -> str:
    # Whatever is broken here is what the report is for.
    try:
        return lookup()
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"not available: {first_line or type(error).__name__}"


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            model = next(names, model)
    except FileNotFoundError:
        pass  # not Linux; the platform's own name has to do
    return f"{model}, {os.cpu_count()} logical cores"


def _cpu_kernels() -> str:
    native = importlib.import_module("sparsekern.native")
    return f"built; {native.get_isa()} in use, of {', '.join(native.isa_levels())}"


def _torch() -> str:
    if _version_of("torch") == "not installed":
        return "not installed"
    torch = importlib.import_module("torch")
    threads = torch.get_num_threads()
    return f"{torch.__version__}, {threads} thread{'s' * (threads > 1)}"


def _cuda_kernels() -> str:
    extension = importlib.import_module("sparsekern.native")._C
    archs = getattr(extension, "cuda_archs", lambda: "")()
    # Text ("80;90") or a sequence of such parts.
    parts = archs.split(";") if isinstance(archs, str) else [str(arch) for arch in archs]
    return ", ".join(f"sm_{part}" for part in parts if part) or "not built"


def _gpu() -> str:
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        return "none usable: this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return f"none found (PyTorch is built for CUDA {torch.version.cuda})"
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    names = [
        f"{device.name} (sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB)"
        for device in devices
    ]
    return f"{', '.join(names)}, CUDA {torch.version.cuda}, driver {_driver()}"


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return file.readline().partition("Module")[2].split()[0]
    except (FileNotFoundError, IndexError):
        return "unknown"
