"""What the compilers make of every kernel, for GPUs that need not be there."""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

import sparsekern as sk
from sparsekern import native

CAPABILITIES = (80, 90, 100)
ARITHMETICS = ("bf16", "fp16", "tf32", "ieee")
# Matrix instructions of Hopper, Blackwell and Ampere; then the ordinary units' multiply-adds.
INSTRUCTIONS = ("HGMMA", "UTCHMMA", "HMMA", "FFMA2", "FFMA")
COUNTED = (*INSTRUCTIONS, "POPC", "LDGSTS", "STL", "LDL")


@dataclass(frozen=True)
class Wanted:
    """An entry of the catalog, which names it alone; see `sparsekern.kernels.catalog.Entry`."""

    capability: int
    arithmetic: str
    index: int
    name: str
    storage: str
    config: Any

    def __str__(self) -> str:
        c = self.config
        shape = f"{c.samples}x{c.group}-{c.warps}w{c.stages}s-d{c.depth}"
        return f"sm_{self.capability}-{self.name}-{self.storage}-{self.arithmetic}-{shape}"


@dataclass(frozen=True)
class Resources:
    """What one entry takes, or why it could not be compiled.

    Attributes
    ----------
    entry : Wanted
    registers, spilled, shared, blocks : int
        See `sparsekern.kernels.inspection.Compiled`; spilled are stack and local bytes together.
    occupancy : float
    counts : dict of str to int
        How often each of `COUNTED` stands in the machine code.
    error : str
        Empty where it compiled.
    """

    entry: Wanted
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    blocks: int = 0
    occupancy: float = 0.0
    counts: dict[str, int] | None = None
    error: str = ""

    @property
    def instruction(self) -> str:
        """What multiplies; "-" where nothing is multiplied."""
        return next((name for name in INSTRUCTIONS if (self.counts or {}).get(name)), "-")


@functools.cache
def _entries(capability: int, arithmetic: str) -> list[Any]:
    from sparsekern.formats.known import index_of
    from sparsekern.kernels import catalog, catalog_conv2d, catalog_two_four

    generator = torch.Generator().manual_seed(0)
    tiles = sk.Pattern.random((256, 512), 0.9, tile_size=64, generator=generator)
    blocks = sk.Pattern.random((512, 512), 0.5, block_size=128, generator=generator)
    taps = sk.Pattern.random((256, 256, 3, 3), 0.9, tile_size=64, generator=generator)
    indices = index_of(tiles.data), index_of(blocks.data)
    return [
        *catalog.entries(capability, *indices, arithmetics=(arithmetic,)),
        *catalog_conv2d.conv2d_entries(capability, index_of(taps.data), arithmetic),
        *catalog_two_four.two_four_entries(capability, arithmetic),
    ]


def listed(
    capabilities: Sequence[int] = CAPABILITIES, arithmetics: Sequence[str] = ARITHMETICS
) -> list[Wanted]:
    """All entries of the catalog; nothing is compiled."""
    return [
        Wanted(capability, arithmetic, index, entry.name, entry.storage, entry.config)
        for capability in capabilities
        for arithmetic in arithmetics
        for index, entry in enumerate(_entries(capability, arithmetic))
    ]


def compiled(wanted: Sequence[Wanted], workers: int = 2) -> Iterator[Resources]:
    """Compile entries in processes of their own, in order; one that fails says why and stops no other."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_compile, wanted)


def _compile(wanted: Wanted) -> Resources:
    from sparsekern.kernels.inspection import compile_for

    launch = _entries(wanted.capability, wanted.arithmetic)[wanted.index].launch
    try:
        kernel = compile_for(launch, wanted.capability)
        counts = {name: kernel.count(name) for name in COUNTED}
    except Exception as error:
        # Compilers raise what they like, and a table with one hole is worth more than none.
        return Resources(wanted, error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}")
    spilled = kernel.stack + kernel.local
    return Resources(
        wanted, kernel.registers, spilled, kernel.shared, kernel.blocks, kernel.occupancy, counts
    )


@dataclass(frozen=True)
class CudaKernel:
    """A CUDA C++ kernel of the extension: its name, and bytes as in `Resources`."""

    capability: int
    name: str
    registers: int
    spilled: int
    shared: int


def cuda_kernels() -> list[CudaKernel]:
    """The kernels that are compiled into the extension; none where it is built without CUDA.

    Raises
    ------
    OSError
        When cuobjdump, which comes with Triton, is not there.
    """
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    command = [tool, "-res-usage", native._C.__file__]
    found = subprocess.run(command, capture_output=True, text=True)
    # Without a CUDA section there is nothing to read, which the tool takes for an error.
    return parse_resources(_demangled(found.stdout)) if found.returncode == 0 else []


def parse_resources(text: str) -> list[CudaKernel]:
    """The kernels in what ``cuobjdump -res-usage`` prints."""
    kernels, capability = [], 0
    for line in text.splitlines():
        if arch := re.match(r"arch = sm_(\d+)", line):
            capability = int(arch[1])
        elif function := re.match(r"\s*Function (.+):$", line):
            name = function[1]
        elif usage := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, usage.groups())
            kernels.append(CudaKernel(capability, short_name(name), registers, stack + local, shared))
    return kernels


def short_name(signature: str) -> str:
    """A kernel's own name and template arguments, without namespaces, return type and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|\b(sparsekern|cuda)::|^void ", "", signature)
    return re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name)


def _demangled(text: str) -> str:
    try:
        return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return text
