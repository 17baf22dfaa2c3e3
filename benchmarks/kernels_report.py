"""``python -m benchmarks.kernels_report``: what every kernel takes of a GPU, as compilers say, without one.

Each launch config that can be chosen is compiled for each kind of GPU. All of them take a quarter of an hour
on two cores; what was compiled before comes from Triton's cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.compiled import (
    ARITHMETICS,
    CAPABILITIES,
    CudaKernel,
    Resources,
    compiled,
    cuda_kernels,
    listed,
)
from benchmarks.table import Table

HEADER = ("kernel", "storage", "type", "config", "regs", "spilled", "shared", "blocks", "occupancy", "unit")
NOTES = (
    "config: samples x tiles side by side, warps, stages, columns of a step; n: weight first, p: prefetch.",
    "spilled and shared: bytes; blocks: that a multiprocessor holds; unit: the instruction that multiplies.",
)
# A mangled or templated name leaves the table readable in 120 columns.
LONGEST_NAME = 72


def config_text(config: object) -> str:
    flags = f"{'n' if config.narrow else ''}{'p' if config.prefetch else ''}"
    return (
        f"{config.samples}x{config.group} {config.warps}w {config.stages}s d{config.depth} {flags}".rstrip()
    )


def triton_table(capability: int, rows: Iterable[Resources]) -> Table:
    """The rows of one kind of GPU; why a row has no numbers stands below."""
    table = Table(f"Triton kernels for sm_{capability}, as compiled", HEADER, left=4)
    for row in rows:
        entry = row.entry
        names = [entry.name, entry.storage, entry.arithmetic, config_text(entry.config)]
        numbers = [row.registers, row.spilled, row.shared, row.blocks, f"{row.occupancy:.0%}"]
        table.add(*names, *(["-"] * 5 if row.error else map(str, numbers)), row.instruction)
        if row.error:
            table.note(f"{entry} does not compile: {row.error}")
    for note in NOTES:
        table.note(note)
    return table


def cuda_table(kernels: Iterable[CudaKernel]) -> Table:
    """The CUDA C++ kernels, one row for each that takes the same on several kinds of GPU."""
    table = Table("CUDA C++ kernels of the extension", ("kernel", "GPU", "regs", "spilled", "shared"), left=2)
    groups: dict[tuple[str, int, int, int], list[int]] = {}
    for k in kernels:
        groups.setdefault((k.name, k.registers, k.spilled, k.shared), []).append(k.capability)
    for (name, *numbers), found in sorted(groups.items()):
        table.add(name[:LONGEST_NAME], ", ".join(f"sm_{c}" for c in found), *map(str, numbers))
    return table


def totals(rows: Sequence[Resources], kernels: Sequence[CudaKernel]) -> str:
    """One line: how much compiled, and how much of it spills."""
    failed = sum(bool(row.error) for row in rows)
    spilling = sum(row.spilled > 0 for row in rows)
    spilling_cuda = sum(kernel.spilled > 0 for kernel in kernels)
    return (
        f"{len(rows) - failed} Triton launches compiled, {spilling} spilling, {failed} failed; "
        f"{len(kernels)} CUDA C++ kernels, {spilling_cuda} spilling"
    )


def _reported(rows: Iterable[Resources], count: int) -> Iterator[Resources]:
    """`rows`, each told of on standard error as it comes."""
    terminal = sys.stderr.isatty()
    for number, row in enumerate(rows, 1):
        text = f"{number}/{count} {row.entry}"
        if terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif number % 10 == 0 or number == count:
            print(text, file=sys.stderr, flush=True)
        yield row
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 0, or 1 when a kernel spills or does not compile."""
    options = build_parser().parse_args(arguments)
    capabilities = options.capability or CAPABILITIES
    wanted = listed(capabilities, options.arithmetic)
    rows = list(_reported(compiled(wanted, options.workers), len(wanted)))
    for capability in capabilities:
        print(triton_table(capability, (row for row in rows if row.entry.capability == capability)).text())
    kernels = [kernel for kernel in cuda_kernels() if kernel.capability in capabilities]
    if kernels:
        print(cuda_table(kernels).text())
    else:
        print("The extension is built without CUDA: it has no CUDA C++ kernels to tell of.\n")
    print(totals(rows, kernels))
    return int(any(row.error or row.spilled for row in rows) or any(kernel.spilled for kernel in kernels))


def _arithmetics(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in ARITHMETICS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(ARITHMETICS)}, got {unknown[0]!r}")
    return names


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels_report",
        description="Registers, shared memory and occupancy of every kernel, without a GPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--capability", type=int, choices=CAPABILITIES, action="append", help="only this; may be repeated"
    )
    parser.add_argument(
        "--arithmetic", type=_arithmetics, default=ARITHMETICS, metavar="A,A", help="of bf16,fp16,tf32,ieee"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
