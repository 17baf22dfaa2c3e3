"""What the compiler makes of a launch, for a GPU that need not be there."""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sparsekern.kernels.configs import SHARED_MEMORY
from sparsekern.kernels.launch import Launch

__all__ = ["Compiled", "compile_for"]

# Of one multiprocessor: registers, threads, and blocks (CUDA C++ Programming Guide, technical specifications;
# the same for compute capabilities 8.0, 9.0 and 10.0).
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32
# Shared memory that the system keeps of each block, bytes.
RESERVED = 1024


class _TargetDriver:
    """As much of a GPU's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # Triton keeps what it compiles by device; a number of its own for each kind of GPU keeps them apart.
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Compiled:
    """The resources of a compiled kernel, and its machine code.

    Attributes
    ----------
    capability, warps : int
    registers : int
        Of a thread.
    stack, local : int
        Bytes of a thread in local memory: not 0 where registers are spilled.
    shared : int
        Bytes of a block.
    binary : bytes
        The machine code, a cubin.
    """

    capability: int
    warps: int
    registers: int
    stack: int
    local: int
    shared: int
    binary: bytes

    @functools.cached_property
    def machine_code(self) -> str:
        """The machine code as cuobjdump prints it."""
        return _cuobjdump(self.binary, "-sass")

    def count(self, instruction: str) -> int:
        """How often an instruction, such as ``"HGMMA"``, stands in the machine code."""
        return len(re.findall(rf"\b{instruction}\b", self.machine_code))

    @property
    def blocks(self) -> int:
        """Blocks of threads that one multiprocessor holds at a time, as far as resources go."""
        # Registers are given to warps in units of 256.
        by_registers = REGISTERS // (self.warps * max(256, -(-self.registers * 32 // 256) * 256))
        shared = SHARED_MEMORY[self.capability] + RESERVED
        by_shared = shared // (self.shared + RESERVED)
        return min(BLOCKS, THREADS // (32 * self.warps), by_registers, by_shared)

    @property
    def occupancy(self) -> float:
        """Threads that one multiprocessor holds, as a fraction of the most that it can."""
        return self.blocks * self.warps * 32 / THREADS


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile a launch on its own arguments, exactly as a run on such a GPU would.

    Parameters
    ----------
    launch : Launch
        Its tensors may be anywhere; they are not read.
    capability : int
        Compute capability: 80, 90 or 100.
    """
    driver.set_active(_TargetDriver(capability))
    try:
        kernel = launch.kernel.warmup(*launch.compiled_arguments, grid=(1,), **launch.options)
    finally:
        # Where there is no GPU, there is no driver to go back to.
        with contextlib.suppress(RuntimeError):
            driver.reset_active()
    # Some versions of Triton compile in the background.
    kernel = kernel.result() if hasattr(kernel, "result") else kernel
    binary = kernel.asm["cubin"]
    resources = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", _cuobjdump(binary, "-res-usage"))
    registers, stack, local = map(int, resources.groups())
    shared = kernel.metadata.shared
    return Compiled(capability, launch.warps, registers, stack, local, shared, binary)


def _cuobjdump(binary: bytes, option: str) -> str:
    tool: Any = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary)
        command = [tool, option, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
