"""``python -m benchmarks.roofline``: the least time that ops can take on an H200. Computed, not measured.

The time for the bytes that have to move at the memory's bandwidth, or for the operations at the rate of the
units that do them, whichever is longer. No kernel is faster, and no figure here says how fast one is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from benchmarks.gpu import bars
from benchmarks.networks import NETWORKS, Layer
from benchmarks.table import Table
from sparsekern.formats.layout import default_tile_size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPARSITIES = (0.50, 0.80, 0.90, 0.95, 0.98)
# Blocks are stored as tiles of 64 too.
BLOCK = 128


@dataclass(frozen=True)
class Limits:
    """What a GPU reaches at most: bytes a second, and operations a second by dtype."""

    name: str
    bandwidth: float
    flops: dict[str, float]


# Bandwidth is NVIDIA's data sheet's. Of its 989 TFLOP/s in bfloat16, large products of cuBLAS
# reach about 790 within the card's power. Float32 on the ordinary units has 57 to 67 TFLOP/s.
H200 = Limits("H200", 4.8e12, {"float32": 60e12, "bfloat16": 790e12, "float16": 790e12})


@dataclass(frozen=True)
class Work:
    """What one op has to do.

    Attributes
    ----------
    bytes : int
        Read and written at least once, caches notwithstanding.
    useful : int
        Operations on active weights; a multiply-add is two.
    executed : int
        Operations that matrix units carry out: whole tiles, wherever one has an active position.
    """

    bytes: int
    useful: int = 0
    executed: int = 0

    def seconds(self, limits: Limits, dtype: str) -> float:
        return max(self.bytes / limits.bandwidth, self.executed / limits.flops[dtype])

    def is_bound_by_memory(self, limits: Limits, dtype: str) -> bool:
        return self.bytes / limits.bandwidth >= self.executed / limits.flops[dtype]


@dataclass(frozen=True)
class Sizes:
    """A weight on a pattern, as far as bytes and operations go."""

    rows: int
    columns: int
    tile_size: int
    tiles: int
    nnz: int

    @classmethod
    def of(cls, shape: Sequence[int], sparsity: float, block: int | None = None) -> Sizes:
        """Of a random pattern. Unstructured, every tile is taken to have an active position; with `block`, of
        `block` rows and columns, those of active blocks alone, none of which is taken to be cut off.
        """
        rows, columns = shape[0], prod(shape[1:])
        if block is not None:
            active = round((1 - sparsity) * -(-rows // block) * -(-columns // block))
            tile = min(64, block)
            return cls(rows, columns, tile, active * (block // tile) ** 2, active * block**2)
        tile = default_tile_size(rows, columns)
        tiles = -(-rows // tile) * -(-columns // tile)
        return cls(rows, columns, tile, tiles, max(1, round((1 - sparsity) * rows * columns)))

    @property
    def pattern_bytes(self) -> int:
        """Without the header: bits and an int16 for each row of a tile; an int64 and two int32 for each tile;
        an int32 for each row and each column of tiles.
        """
        tile = self.tile_size**2 // 8 + 2 * self.tile_size + 16
        return self.tiles * tile + 4 * (-(-self.rows // self.tile_size) + -(-self.columns // self.tile_size))


def product_work(layer: Layer, sizes: Sizes, dtype: str) -> Work:
    """Of the forward product or either gradient: they read and write the same tensors, in other roles."""
    samples = prod(layer.input_shape) + prod(layer.output_shape)
    moved = (samples + sizes.nnz) * BYTES[dtype] + sizes.pattern_bytes
    multiplied = 2 * layer.samples
    return Work(moved, multiplied * sizes.nnz, multiplied * sizes.tiles * sizes.tile_size**2)


def dense_work(layer: Layer, dtype: str) -> Work:
    """Of the same product with a dense weight."""
    weights = prod(layer.weight_shape)
    samples = prod(layer.input_shape) + prod(layer.output_shape)
    operations = 2 * layer.samples * weights
    return Work((samples + weights) * BYTES[dtype], operations, operations)


def unpack_work(sizes: Sizes, dtype: str) -> Work:
    """Of writing the dense weight from values; `pack`, the other way round, reads it whole at worst."""
    return Work((sizes.rows * sizes.columns + sizes.nnz) * BYTES[dtype] + sizes.pattern_bytes)


def transfer_work(sizes: Sizes, dtype: str) -> Work:
    """Of moving one vector between two patterns."""
    return Work(2 * sizes.nnz * BYTES[dtype] + 2 * sizes.pattern_bytes)


def update_work(sizes: Sizes, dtype: str) -> Work:
    """Of one update from dense scores: they and the values are read, a pattern is read and one written."""
    return Work((sizes.rows * sizes.columns + sizes.nnz) * BYTES[dtype] + 2 * sizes.pattern_bytes)


def grow_work(layer: Layer, sizes: Sizes, count: int, dtype: str) -> Work:
    """Of the `count` largest gradients outside the pattern: all are computed, twice, since none is kept."""
    read = (prod(layer.input_shape) + prod(layer.output_shape)) * BYTES[dtype]
    operations = 4 * layer.samples * sizes.rows * sizes.columns
    return Work(2 * (read + sizes.pattern_bytes) + 12 * count, operations, operations)


def product_table(network: str, dtype: str, limits: Limits = H200) -> Table:
    """The forward product (its gradients have the same bound) of a network's layers, at each sparsity."""
    header = ["layer", "pattern", "useful GF", "done GF", "MB", "us", "bound by", "dense us", "ratio", "bar"]
    title = f"{network}, {dtype}, one product on an {limits.name}: computed, not measured"
    table = Table(title, header, left=2)
    for layer in NETWORKS[network]:
        dense = dense_work(layer, dtype).seconds(limits, dtype)
        for block, sparsity in _patterns(layer):
            work = product_work(layer, Sizes.of(layer.weight_shape, sparsity, block), dtype)
            least = work.seconds(limits, dtype)
            bound = "memory" if work.is_bound_by_memory(limits, dtype) else "compute"
            pattern = f"{sparsity:.0%}" + (f" block {block}" if block else "")
            wanted = bars.product_bars(layer, dtype, sparsity, block)
            numbers = [f"{work.useful / 1e9:.1f}", f"{work.executed / 1e9:.1f}", f"{work.bytes / 1e6:.2f}"]
            times = [f"{least * 1e6:.2f}", bound, f"{dense * 1e6:.2f}", f"{dense / least:.2f}"]
            table.add(layer.name, pattern, *numbers, *times, _bar_text(wanted))
    table.note(
        "us, dense us: least time, sparse and dense; ratio: dense / sparse, if both reached their bounds."
    )
    table.note("done: whole tiles are multiplied; bar: speed-up to reach, or the share of the roofline (%).")
    return table


def _patterns(layer: Layer) -> Iterator[tuple[int | None, float]]:
    yield from ((None, sparsity) for sparsity in SPARSITIES)
    if layer.network == "transformer":
        yield from ((BLOCK, sparsity) for sparsity in SPARSITIES)


def _bar_text(found: Sequence[bars.Bar]) -> str:
    texts = [f"{b.wanted:.2f}" if b.measure == "speed-up" else f"{b.wanted:.0%}" for b in found]
    return ", ".join(texts) or "-"


def weight_table(limits: Limits = H200) -> Table:
    """Ops that move weights and compute nothing, on a square float32 layer of 67 M weights, and growing."""
    dtype, layer = "float32", next(layer for layer in NETWORKS["transformer"] if layer.samples == 4096)
    title = f"8192x8192 weight, {dtype}, on an {limits.name}: computed, not measured; MB and microseconds"
    table = Table(title, ["op", "sparsity", "MB", "us", "bar us"], left=1)
    for sparsity in SPARSITIES:
        sizes = Sizes.of((8192, 8192), sparsity)
        count = round(0.3 * sizes.nnz)
        works = {
            "pack, unpack": unpack_work(sizes, dtype),
            "transfer": transfer_work(sizes, dtype),
            "update_topology": update_work(sizes, dtype),
            "grow_candidates, 4096 samples": grow_work(layer, sizes, count, dtype),
        }
        for op, work in works.items():
            bar = f"{bars.TOPOLOGY.wanted:.0f}" if op == "update_topology" and sparsity == 0.90 else "-"
            least = work.seconds(limits, dtype) * 1e6
            table.add(op, f"{sparsity:.0%}", f"{work.bytes / 1e6:.1f}", f"{least:.1f}", bar)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this; may be repeated")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append", help="only this")
    options = parser.parse_args(arguments)
    print(
        f"Computed, not measured, from an H200's limits: {H200.bandwidth / 1e12} TB/s; TFLOP/s: "
        f"{H200.flops['bfloat16'] / 1e12:.0f} in bfloat16, {H200.flops['float32'] / 1e12:.0f} in float32.\n"
    )
    for network in options.network or NETWORKS:
        for dtype in options.dtype or ("bfloat16", "float32"):
            print(product_table(network, dtype).text())
    print(weight_table().text())


if __name__ == "__main__":
    main()
