"""2:4 sparse weights: what it costs to choose, pack and unpack them.

``python -m benchmarks.two_four`` measures all of `SECTIONS` and prints their tables;
``python -m benchmarks.two_four packing --size 4096`` one of them, at one size. Contenders take turns, and
what is printed are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from benchmarks import machine
from benchmarks.report import milliseconds, ratio
from benchmarks.table import Table
from sparsekern import cpp
from sparsekern.cpp.two_four_packing import to_cutlass
from sparsekern.timing import interleave

SIZES = (1024, 4096, 8192)
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 1.0
CLONE = "clone"
Record = dict[str, Any]


class Packing:
    """A square weight and the ways to pack it; each writes to memory of its own, as the clone does."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.values, self.metadata = self.rows()
        self.pruned = self.unpack()

    def clone(self) -> Tensor:
        return self.weight.clone()

    def rows(self) -> list[Tensor]:
        """The two largest of each group: values and metadata."""
        return cpp.pack_two_four([self.weight], transposable=False, transpose=False)

    def tiles(self) -> list[Tensor]:
        """The best of 90 masks for each tile: values and metadata of the weight and of its transpose."""
        return cpp.pack_two_four([self.weight], transposable=True, transpose=True)

    def gather(self) -> Tensor:
        return cpp.gather_two_four(self.weight, self.metadata)

    def unpack(self) -> Tensor:
        return cpp.unpack_two_four(self.values, self.metadata)

    def topk(self) -> Tensor:
        """The mask alone, with PyTorch's own selection."""
        groups = self.weight.abs().view(*self.weight.shape[:1], -1, 4)
        mask = torch.zeros(groups.shape, dtype=torch.bool)
        return mask.scatter_(-1, groups.topk(2, sorted=False).indices, True).view(self.weight.shape)

    def torch_cutlass(self) -> tuple[Tensor, Tensor]:
        """PyTorch's packing of a weight that is 2:4 sparse already, for CUTLASS's kernels."""
        return sparse_semi_structured_from_dense_cutlass(self.pruned)

    def to_cutlass(self) -> tuple[Tensor, Tensor]:
        return to_cutlass(self.values, self.metadata)

    def ways(self) -> dict[str, Callable[[], Any]]:
        found = {
            CLONE: self.clone,
            "rows": self.rows,
            "tiles": self.tiles,
            "gather": self.gather,
            "unpack": self.unpack,
            "topk mask": self.topk,
        }
        # Two-byte elements only: of float32, CUTLASS's kernels take one of two.
        if self.weight.element_size() == 2:
            found |= {"to cutlass": self.to_cutlass, "torch cutlass": self.torch_cutlass}
        return found

    def wrong(self) -> list[str]:
        """Names of the ways whose results are not what they should be."""
        kept = torch.where(self.topk(), self.weight, 0).double().abs().view(-1, 4).sum(-1)
        by_tiles = cpp.unpack_two_four(*self.tiles()[:2])
        results = {
            # Among equal weights PyTorch keeps any.
            "rows": torch.equal(self.pruned.double().abs().view(-1, 4).sum(-1), kept),
            "tiles": torch.equal(cpp.unpack_two_four(*self.tiles()[2:]), by_tiles.t()),
            "gather": torch.equal(self.gather(), self.values),
            "unpack": torch.equal(torch.where(self.pruned != 0, self.weight, 0), self.pruned),
        }
        if "to cutlass" in self.ways():
            results["to cutlass"] = all(map(torch.equal, self.to_cutlass(), self.torch_cutlass()))
        return [name for name, right in results.items() if not right]


def packing(sizes: Sequence[int], seconds: float) -> Iterator[Record]:
    """One record for each size and dtype, with the times of all ways that are right."""
    for size in sizes:
        for dtype in DTYPES:
            case = Packing(size, dtype)
            wrong = case.wrong()
            ways = {name: way for name, way in case.ways().items() if name not in wrong}
            times = {name: timing.record() for name, timing in interleave(ways, seconds=seconds).items()}
            times |= {name: {"wrong": True} for name in wrong}
            name = str(dtype).partition(".")[2]
            yield {"case": f"{size}x{size} {name}", "times": times, "load": machine.load()}


def packing_table(records: Sequence[Record]) -> Table:
    """Milliseconds, and in brackets how many clones of the weight that is."""
    names = list(dict.fromkeys(name for record in records for name in record["times"]))
    table = Table("Packing 2:4 weights: milliseconds (times a clone)", ["weight", *names, "load"])
    for record in records:
        times = record["times"]
        cells = [_with_ratio(times.get(name), times[CLONE]) for name in names]
        table.add(record["case"], *cells, f"{record['load']:.1f}")
    table.note("tiles: transposable masks, and both packings. clone takes fresh memory, as all others do.")
    return table


def _with_ratio(time: Record | None, clone: Record) -> str:
    text = milliseconds(time)
    if time is None or "median_ms" not in time or time is clone:
        return text
    return f"{text} ({ratio(time['median_ms'] / clone['median_ms'])})"


#: By name, what yields records and what makes a table of them.
SECTIONS: dict[str, tuple[Callable[..., Iterator[Record]], Callable[..., Table]]] = {
    "packing": (packing, packing_table),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of the sections asked for; 1 when a result of sparsekern's is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_four", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument(
        "--size", type=int, nargs="+", default=SIZES, help="rows and columns, multiples of 128"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each contender (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {min(unknown)!r}; there are {', '.join(SECTIONS)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    wrong = False
    for name in options.sections or SECTIONS:
        measure, make_table = SECTIONS[name]
        records = list(measure(options.size, options.seconds))
        print(make_table(records).text())
        wrong |= any("wrong" in time for record in records for time in record["times"].values())
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
