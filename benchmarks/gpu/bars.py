"""What sparsekern is meant to reach on one H200, by op and problem."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.networks import Layer

# Up to this many samples, reading the weight decides; above, arithmetic.
FEW_SAMPLES = 64
# Rates of blocks are those of large products, where launching and ragged ends cost nothing.
MANY_SAMPLES = 512
# Speed-up over dense float32 by sparsity.
FLOAT32 = {0.80: 1.2, 0.90: 2.4, 0.95: 5.0}
# Networks whose layers are large enough for a bar.
LARGE = ("transformer", "ResNet-50")


@dataclass(frozen=True)
class Bar:
    """A figure to reach.

    Attributes
    ----------
    name : str
        What it is about, the same for all records that answer to it.
    measure : str
        "speed-up" over dense PyTorch; "roofline", the least time for the bytes over the time taken;
        "microseconds" or "passes", of which fewer are better; "memory", dense bytes over sparse ones.
    wanted : float
    """

    name: str
    measure: str
    wanted: float

    def met(self, reached: float) -> bool:
        if self.measure in ("microseconds", "passes"):
            return reached <= self.wanted
        return reached >= self.wanted

    def record(self, reached: float) -> dict[str, str | float | bool]:
        """As the results file has it."""
        about = {"bar": self.name, "measure": self.measure, "wanted": round(self.wanted, 4)}
        return {**about, "reached": float(f"{reached:.4g}"), "met": self.met(reached)}


BLOCKS = "block sparsity, bf16: 90 % of cuBLAS per useful FLOP"
BLOCKS_BREAK_EVEN = "block sparsity, bf16: break-even at 20 %"
UNSTRUCTURED = "unstructured, bf16, 80-90 %: 0.9x dense"
UNSTRUCTURED_FLOAT32 = "unstructured, fp32: 1.2 / 2.4 / 5x dense"
FEW = "few samples, bf16, 90 %: 70 % of the bytes' roofline"
FEW_EXAMPLE = "16 samples, bf16, 90 %, 8192x8192: 4x cuBLAS"
CONV = "sparse conv2d, ResNet-50, bf16: 0.8x cuDNN"
TOPOLOGY = Bar("drop + grow, 67 M weights: 150 us", "microseconds", 150.0)
GROW = Bar("growth without the dense gradient: two passes of it", "passes", 2.0)
TWO_FOUR_PACK = Bar("2:4 choice + packing both ways, 4096x4096, bf16: 25 us", "microseconds", 25.0)
TWO_FOUR_LINEAR = Bar("2:4 linear, bf16: 1.6x dense", "speed-up", 1.6)
TWO_FOUR_TRAINING = Bar("2:4 linear forward + backward, bf16: 1.33x dense", "speed-up", 1.33)
MEMORY = Bar("weights, gradients and AdamW at 90 %: 9x less", "memory", 9.0)
TOPOLOGY_WEIGHTS = 8192 * 8192


def product_bars(layer: Layer, dtype: str, sparsity: float, block: int | None) -> list[Bar]:
    """The bars of a product (`linear`, `conv2d` or a gradient of them) on a layer; none for most.

    Parameters
    ----------
    layer : Layer
    dtype : str
        "float32", "bfloat16" or "float16".
    sparsity : float
        Fraction of zeros.
    block : int or None
        Size of the blocks, None for unstructured.
    """
    sparsity = round(sparsity, 4)
    if layer.network not in LARGE:
        return []
    if layer.kind == "conv2d":
        half = dtype == "bfloat16" and layer.network == "ResNet-50" and sparsity in (0.80, 0.90)
        return [Bar(CONV, "speed-up", 0.8)] if half else []
    if dtype == "float32":
        fast = block is None and layer.samples >= MANY_SAMPLES and sparsity in FLOAT32
        return [Bar(UNSTRUCTURED_FLOAT32, "speed-up", FLOAT32[sparsity])] if fast else []
    if dtype != "bfloat16":
        return []
    if block is not None:
        return _block_bars(layer, sparsity)
    if layer.samples <= FEW_SAMPLES:
        return _few_bars(layer, sparsity)
    if layer.samples >= MANY_SAMPLES and sparsity in (0.80, 0.90):
        return [Bar(UNSTRUCTURED, "speed-up", 0.9)]
    return []


def two_four_bars(op: str, layer: Layer, dtype: str) -> list[Bar]:
    """The bars of an op on a 2:4 weight: those of products are for large layers and many samples."""
    if dtype != "bfloat16" or layer.network not in LARGE:
        return []
    if op == "pack_two_four":
        return [TWO_FOUR_PACK] if layer.weight_shape == (4096, 4096) else []
    if layer.samples < MANY_SAMPLES:
        return []
    return [TWO_FOUR_LINEAR if op == "two_four_linear" else TWO_FOUR_TRAINING]


def _block_bars(layer: Layer, sparsity: float) -> list[Bar]:
    if layer.samples < MANY_SAMPLES:
        return []
    if sparsity == 0.20:
        return [Bar(BLOCKS_BREAK_EVEN, "speed-up", 1.0)]
    return [Bar(BLOCKS, "speed-up", 0.9 / (1 - sparsity))]


def _few_bars(layer: Layer, sparsity: float) -> list[Bar]:
    if sparsity != 0.90:
        return []
    found = [Bar(FEW, "roofline", 0.7)]
    if layer.samples == 16 and layer.weight_shape == (8192, 8192):
        found.append(Bar(FEW_EXAMPLE, "speed-up", 4.0))
    return found
