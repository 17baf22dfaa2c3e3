"""One update of a layer's topology: drop the smallest weights, grow the largest gradients, move the values.

``python -m benchmarks.topology --size 8192`` measures one square layer of that size and prints the table; the
section ``topology`` of ``python -m benchmarks`` takes those in `SIZES`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparsekern as sk
from benchmarks.settings import Settings
from sparsekern.timing import interleave

SIZES = (1024, 4096, 8192)
QUICK_SIZES = (96,)
SPARSITY = 0.9
DROP_FRACTION = 0.3
# A pass over the scores: PyTorch's own takes memory for its result, as dense ways to update masks do many
# times; the copy writes to memory that is there.
PASS, COPY = "pass", "copy"
SPARSEKERN = "sparsekern"
# Dense PyTorch breaks ties as it likes; random float32 numbers have a few at the threshold.
MOST_TIES = 16


class Update:
    """A layer, its gradient, and the ways to exchange `count` of its positions.

    Others than sparsekern keep a dense weight and a mask, which is what they start from and end with.
    """

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pattern = sk.Pattern.random((size, size), SPARSITY, generator=generator)
        self.values = torch.randn(self.pattern.nnz, generator=generator)
        self.gradient = torch.randn((size, size), generator=generator)
        self.count = round(DROP_FRACTION * self.pattern.nnz)
        self.mask = self.pattern.to_mask()
        self.weight = self.pattern.unpack(self.values)

    def sparsekern(self) -> Tensor:
        """The new mask; what is timed stops at the pattern and the values that moved to it."""
        return self.sparsekern_step()[0].to_mask()

    def sparsekern_step(self) -> tuple[sk.Pattern, Tensor]:
        (new,) = sk.ops.update_topology([self.values], [self.pattern], [self.gradient], [self.count])
        return new, sk.ops.transfer(self.values, self.pattern, new)

    def topk(self) -> Tensor:
        """As PyTorch ports of RigL do it: two `torch.topk` of the positions that go and come."""
        size = self.weight.abs().masked_fill(~self.mask, torch.inf).view(-1)
        mask = self.mask.clone()
        mask.view(-1)[torch.topk(size, self.count, largest=False, sorted=False).indices] = False
        scores = self.gradient.abs().masked_fill(mask, -1).view(-1)
        mask.view(-1)[torch.topk(scores, self.count, sorted=False).indices] = True
        self.weight * mask
        return mask

    def full_topk(self) -> Tensor:
        """As google-research/rigl does it: all positions ranked, once to drop and once to grow."""
        kept = self.pattern.nnz - self.count
        ranked = torch.topk((self.weight * self.mask).abs().view(-1), self.pattern.numel).indices
        ranks = torch.zeros(self.pattern.numel, dtype=torch.bool)
        ranks[ranked[:kept]] = True
        mask = ranks.view_as(self.mask)
        lifted = torch.where(mask, self.gradient.abs().min() - 1, self.gradient.abs())
        grown = torch.topk(lifted.view(-1), self.pattern.numel).indices[: self.count]
        new = torch.zeros_like(ranks)
        new[grown] = True
        mask = mask | new.view_as(mask)
        self.weight * mask
        return mask

    def argpartition(self) -> Tensor:
        """NumPy's selection, on one thread."""
        mask = self.mask.numpy().copy()
        size = np.where(mask, np.abs(self.weight.numpy()), np.inf).ravel()
        mask.ravel()[np.argpartition(size, self.count)[: self.count]] = False
        scores = np.where(mask, -1, np.abs(self.gradient.numpy())).ravel()
        mask.ravel()[np.argpartition(scores, -self.count)[-self.count :]] = True
        self.weight.numpy() * mask
        return torch.from_numpy(mask)


def compare(size: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Times of the ways that are right, by name; `PASS` and `COPY` read and write the scores once."""
    update = Update(size)
    checked: dict[str, Callable[[], Tensor]] = {
        SPARSEKERN: update.sparsekern,
        "topk": update.topk,
        "full topk": update.full_topk,
        "argpartition": update.argpartition,
    }
    (right,) = sk.ops.update_topology(
        [update.values], [update.pattern], [update.gradient], [update.count], backend="reference"
    )
    expected, found = right.to_mask(), {}
    timed: dict[str, Callable[[], Any]] = {}
    for name, way in checked.items():
        differ = int((way() != expected).sum())
        if differ > (0 if name == SPARSEKERN else MOST_TIES):
            found[name] = {"wrong": differ / expected.numel()}
        else:
            found[name], timed[name] = {}, way
    if SPARSEKERN in timed:
        timed[SPARSEKERN] = update.sparsekern_step
    copied = torch.empty_like(update.gradient)
    timed[COPY] = lambda: copied.copy_(update.gradient)
    timed[PASS] = update.gradient.abs
    for name, timing in interleave(timed, seconds=seconds).items():
        found[name] = timing.record()
    return found


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each size."""
    for size in QUICK_SIZES if settings.quick else SIZES:
        settings.progress(f"topology, {size}x{size}")
        yield {"case": f"{size}x{size}", "times": compare(size, settings.seconds)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.topology", description=__doc__)
    parser.add_argument(
        "--size", type=int, default=8192, help="rows and columns (default: 8192, 67 M weights)"
    )
    options = parser.parse_args(arguments)
    for name, time in compare(options.size, 0.5).items():
        print(f"{name:<14}{time.get('median_ms', float('nan')):>12.3f} ms")


if __name__ == "__main__":
    main()
