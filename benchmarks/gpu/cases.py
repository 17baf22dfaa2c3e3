"""What is measured on a GPU, the most important first: a run ends when its time is up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.networks import LENET5, RESNET50, TRANSFORMER, VGG16, ConvLayer, Layer, LinearLayer

HALF, SINGLE = "bfloat16", "float32"
BLOCKS = (128, 64)
SPARSITIES = (0.90, 0.80, 0.95, 0.50, 0.98)
# Ops on a layer's weight, and those on the products that it is in.
WEIGHT_OPS = ("pack", "unpack", "transfer", "transfer_all", "update_topology")
PRODUCTS = {
    "linear": ("linear", "linear_grad_input", "linear_grad_values"),
    "conv2d": ("conv2d", "conv2d_grad_input", "conv2d_grad_values"),
}
# Ops on 2:4 weights: packing them both ways, their product, and the product with its gradients.
TWO_FOUR_OPS = ("pack_two_four", "two_four_linear", "two_four_training")
GROW = {"linear": "grow_candidates", "conv2d": "grow_candidates_conv2d"}


@dataclass(frozen=True)
class Case:
    """An op on a layer whose weight is random at a sparsity, in blocks or not, or 2:4."""

    op: str
    layer: Layer
    sparsity: float
    dtype: str
    block: int | None = None

    @property
    def pattern(self) -> str:
        if self.op in TWO_FOUR_OPS:
            return "2:4"
        return "random" if self.block is None else f"block {self.block}"

    def __str__(self) -> str:
        return f"{self.op} {self.layer.name}, {self.sparsity:.0%} {self.pattern}, {self.dtype}"


def products(layer: Layer, sparsity: float, dtype: str = HALF, block: int | None = None) -> list[Case]:
    """The product of a layer and its two gradients."""
    return [Case(op, layer, sparsity, dtype, block) for op in PRODUCTS[layer.kind]]


def two_four(layer: Layer, dtype: str = HALF) -> list[Case]:
    """All that is done with a 2:4 weight."""
    return [Case(op, layer, 0.50, dtype) for op in TWO_FOUR_OPS]


MAIN = LinearLayer("transformer", 4096, 4096, 4096)
LARGE = LinearLayer("transformer", 4096, 8192, 8192)
FEW = LinearLayer("transformer", 16, 8192, 8192)
MIDDLE = RESNET50[5]


def _answering_to_bars() -> Iterator[Case]:
    yield from products(MAIN, 0.90)
    yield from products(MAIN, 0.90, block=128)
    yield Case("linear", FEW, 0.90, HALF)
    yield Case("update_topology", LARGE, 0.90, SINGLE)
    yield Case("grow_candidates", LARGE, 0.90, HALF)
    yield from two_four(MAIN)
    yield from products(MIDDLE, 0.90)
    yield from products(MAIN, 0.90, SINGLE)
    for op in WEIGHT_OPS:
        yield Case(op, LARGE, 0.90, HALF)
    yield from products(MAIN, 0.80)
    yield from products(MAIN, 0.20, block=128)
    yield from products(MAIN, 0.90, block=64)
    for tokens in (1, 64):
        yield Case("linear", LinearLayer("transformer", tokens, 8192, 8192), 0.90, HALF)
    yield Case("two_four_linear", FEW, 0.50, HALF)
    yield from two_four(LARGE)
    for sparsity in (0.80, 0.95):
        yield from products(MAIN, sparsity, SINGLE)


def _one_sparsity() -> Iterator[Case]:
    """Every layer once."""
    for layer in RESNET50:
        yield from products(layer, 0.90)
    yield Case("grow_candidates_conv2d", MIDDLE, 0.90, HALF)
    for layer in TRANSFORMER:
        yield from products(layer, 0.90)
    for layer in TRANSFORMER:
        yield from two_four(layer)
    for layer in VGG16:
        yield from products(layer, 0.90)
    for layer in LENET5:
        yield from products(layer, 0.95, SINGLE)


def _everything() -> Iterator[Case]:
    for sparsity in SPARSITIES:
        for block in BLOCKS:
            yield from products(MAIN, sparsity, block=block)
    for layers in (TRANSFORMER, RESNET50, VGG16, LENET5):
        for sparsity in SPARSITIES:
            for layer in layers:
                yield from products(layer, sparsity)
    for sparsity in SPARSITIES:
        for op in WEIGHT_OPS:
            yield Case(op, LARGE, sparsity, SINGLE)
    for sparsity in SPARSITIES:
        for layer in (*TRANSFORMER, *RESNET50):
            yield from products(layer, sparsity, SINGLE)


def cases() -> list[Case]:
    """Each case once, in order of importance."""
    return list(dict.fromkeys([*_answering_to_bars(), *_one_sparsity(), *_everything()]))


def quick_cases() -> list[Case]:
    """Each op on tiny layers, in both dtypes and on blocks: does everything run?"""
    linear, few = LinearLayer("quick", 70, 128, 192), LinearLayer("quick", 3, 64, 40)
    conv = ConvLayer("quick", 2, 8, 9, 12, 3, stride=2, padding=1)
    found = [case for dtype in (HALF, SINGLE) for case in products(linear, 0.90, dtype)]
    found += [*products(linear, 0.50, block=64), *products(few, 0.80), *products(conv, 0.80, SINGLE)]
    found += [Case(op, linear, 0.80, SINGLE) for op in (*WEIGHT_OPS, GROW["linear"])]
    found += two_four(LinearLayer("quick", 72, 128, 192))
    return [*found, Case(GROW["conv2d"], conv, 0.80, SINGLE)]
