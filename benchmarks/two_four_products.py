"""The products of a linear layer whose weight is packed 2:4, on a CPU, against dense ones of the same shape.

``python -m benchmarks.two_four_products --shape 4096x4096 --batch 1 8 64`` measures one layer and prints a
table for each product, with the batch from which on the packed weight is no faster than the best dense one.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from benchmarks import machine
from benchmarks.measure import LARGEST_ERROR, relative_error
from benchmarks.table import Table
from sparsekern import cpp
from sparsekern.timing import interleave

SHAPES = ("4096x4096", "1024x1024", "768x3072", "3072x768")
BATCHES = (1, 2, 4, 8, 16, 64, 256, 1024)
PACKED = "2:4"
# Bitmap tiles of the same mask: no dense contender.
TILES = "tiles"
PRODUCTS = ("forward", "grad_input", "grad_values", "int8")


def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, metadata and mask of the two largest magnitudes in each group of four columns."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // 4, 4)
    kept = groups.abs().topk(2, -1).indices.sort(-1).values
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True).view(rows, columns)
    nibbles = torch.zeros(rows, (columns + 7) // 8 * 2, dtype=torch.uint8)
    nibbles[:, : columns // 4] = kept[..., 0] | kept[..., 1] << 2
    metadata = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return weight[mask].view(rows, columns // 2), metadata, mask


class Layer:
    """A weight in all the forms that are multiplied. Rows are outputs."""

    def __init__(self, rows: int, columns: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values, self.metadata, self.mask = pack(torch.randn((rows, columns), generator=generator))
        self.dense = torch.zeros(rows, columns).masked_scatter_(self.mask, self.values)
        self.pattern = sk.Pattern.from_mask(self.mask)
        self.tiles = self.pattern.pack(self.dense)
        self.scale = self.dense.abs().amax(1) / 127
        self.small = (self.values / self.scale[:, None]).round().to(torch.int8)
        self.quantized = self._dynamic_linear()

    def _dynamic_linear(self) -> torch.nn.Module:
        """What PyTorch itself has for int8 weights and activations that are quantized on the way."""
        linear = torch.nn.Linear(*reversed(self.dense.shape), bias=False)
        linear.weight.data.copy_(self.dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize = torch.ao.quantization.quantize_dynamic
            return quantize(torch.nn.Sequential(linear), {torch.nn.Linear})[0]


@dataclass(frozen=True)
class Comparison:
    """The contenders of a product for one batch, and its right result."""

    contenders: dict[str, Callable[[], Tensor]]
    right: Tensor
    largest_error: float = LARGEST_ERROR


def forward(layer: Layer, x: Tensor, grad_y: Tensor) -> Comparison:
    onednn = torch.ops.mkldnn._linear_pointwise
    contenders = {
        "dense": lambda: F.linear(x, layer.dense),
        "oneDNN": lambda: onednn(x, layer.dense, None, "none", [], ""),
        TILES: lambda: sk.ops.linear(x, layer.tiles, layer.pattern),
        PACKED: lambda: cpp.two_four_linear(x, layer.values, None, layer.metadata),
    }
    return Comparison(contenders, x.double() @ layer.dense.double().t())


def grad_input(layer: Layer, x: Tensor, grad_y: Tensor) -> Comparison:
    onednn = torch.ops.mkldnn._linear_pointwise
    contenders = {
        "dense": lambda: grad_y @ layer.dense,
        "oneDNN": lambda: onednn(grad_y, layer.dense.t(), None, "none", [], ""),
        TILES: lambda: sk.ops.linear_grad_input(grad_y, layer.tiles, layer.pattern),
        PACKED: lambda: cpp.two_four_linear_grad_input(grad_y, layer.values, layer.metadata),
    }
    return Comparison(contenders, grad_y.double() @ layer.dense.double())


def grad_values(layer: Layer, x: Tensor, grad_y: Tensor) -> Comparison:
    """Every contender allocates its result, as a backward pass does."""
    onednn = torch.ops.mkldnn._linear_pointwise
    contenders = {
        "dense": lambda: grad_y.t() @ x,
        "oneDNN": lambda: onednn(grad_y.t(), x.t(), None, "none", [], ""),
        TILES: lambda: sk.ops.linear_grad_values(grad_y, x, layer.pattern),
        PACKED: lambda: cpp.two_four_linear_grad_values(grad_y, x, layer.metadata),
    }
    return Comparison(contenders, grad_y.double().t() @ x.double())


def int8(layer: Layer, x: Tensor, grad_y: Tensor) -> Comparison:
    contenders = {
        "dense": lambda: layer.quantized(x),
        "2:4 float32": lambda: cpp.two_four_linear(x, layer.values, None, layer.metadata),
        PACKED: lambda: cpp.two_four_linear_int8(
            x, layer.small, None, layer.metadata, layer.scale, x_scale=None
        ),
    }
    return Comparison(contenders, x.double() @ layer.dense.double().t(), largest_error=0.05)


def as_dense(layer: Layer, name: str, product: str, result: Tensor) -> Tensor:
    """A gradient of the values as a matrix with 0 elsewhere; any other result as it is."""
    if product != "grad_values":
        return result
    if name == TILES:
        return layer.pattern.unpack(result)
    if name == PACKED:
        return torch.zeros(layer.mask.shape).masked_scatter_(layer.mask, result)
    return result * layer.mask


@torch.no_grad()
def compare(layer: Layer, product: str, batch: int, seconds: float) -> dict[str, float]:
    """Median seconds of the contenders by name; one that is wrong raises."""
    rows, columns = layer.dense.shape
    generator = torch.Generator().manual_seed(1)
    x, grad_y = (torch.randn((batch, size), generator=generator) for size in (columns, rows))
    builders = {"forward": forward, "grad_input": grad_input, "grad_values": grad_values, "int8": int8}
    comparison = builders[product](layer, x, grad_y)
    right = comparison.right * layer.mask if product == "grad_values" else comparison.right
    for name, contender in comparison.contenders.items():
        error = relative_error(as_dense(layer, name, product, contender()), right)
        if error > comparison.largest_error:
            raise AssertionError(f"{product}, batch {batch}, {name}: error {error:.2g}")
    return {
        name: timing.median for name, timing in interleave(comparison.contenders, seconds=seconds).items()
    }


def break_even(ratios: dict[int, float]) -> str:
    """The batch from which on the packed weight is no faster; `ratios` are speed-ups by batch."""
    slower = [batch for batch in sorted(ratios) if ratios[batch] <= 1]
    last_faster = max((batch for batch, ratio in ratios.items() if ratio > 1), default=0)
    beyond = [batch for batch in slower if batch > last_faster]
    return str(beyond[0]) if beyond else "none"


def table_of(layer: Layer, product: str, batches: Sequence[int], seconds: float) -> Table:
    rows, columns = layer.dense.shape
    table, ratios = None, {}
    for batch in batches:
        times = compare(layer, product, batch, seconds)
        best = min(times[name] for name in ("dense", "oneDNN") if name in times)
        ratios[batch] = best / times[PACKED]
        if table is None:
            table = Table(f"{product}, {rows}x{columns}, ms", ["batch", *times, "speed-up"])
        table.add(str(batch), *(f"{time * 1e3:.3f}" for time in times.values()), f"{ratios[batch]:.2f}")
    table.note(f"Speed-up over the best dense contender; no faster from batch: {break_even(ratios)}.")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_four_products", description=__doc__)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="rows x columns (default: all)")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="samples (default: all)")
    parser.add_argument("--product", nargs="+", default=PRODUCTS, choices=PRODUCTS)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each contender (default: 0.3)")
    options = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads, load {machine.load()}, commit {machine.commit()}")
    for shape in options.shape:
        layer = Layer(*map(int, shape.split("x")))
        for product in options.product:
            print(table_of(layer, product, options.batch, options.seconds).text())


if __name__ == "__main__":
    main()
