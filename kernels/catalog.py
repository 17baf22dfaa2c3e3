"""Every kernel with every launch config that can be chosen: what is compiled to show how it compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsekern.kernels import linear, linear_grad_input, linear_grad_values, values
from sparsekern.kernels.configs import Config, Problem, product_configs, sum_configs
from sparsekern.kernels.launch import Launch

__all__ = ["Entry", "entries"]

# Multiprocessors of an H100, H200 or B200 card (132 to 148); it decides about splits alone.
PROCESSORS = 132
SAMPLES = (16, 32, 64, 8192)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


@dataclass(frozen=True)
class Entry:
    """One kernel in one way that it can be launched.

    Attributes
    ----------
    name : str
        The op's.
    storage : str
        "compact", "full" (block sparsity) or "masked".
    arithmetic : str
        "bf16", "fp16", "tf32" or "ieee" (float32).
    config : Config
    launch : Launch
    """

    name: str
    storage: str
    arithmetic: str
    config: Config
    launch: Launch

    def __str__(self) -> str:
        config = self.config
        how = f"{config.samples}x{config.group}-{config.warps}w{config.stages}s"
        return f"{self.name}-{self.storage}-{self.arithmetic}-{how}"


def entries(
    capability: int, tiles: Any, blocks: Any, arithmetics: tuple[str, ...] = tuple(DTYPES)
) -> Iterator[Entry]:
    """All configs of all kernels on a GPU; in float16, and on full tiles and dense weights, the best guesses.

    Parameters
    ----------
    capability : int
        Compute capability: 80, 90 or 100.
    tiles, blocks : TileIndex
        Of a pattern with every tile and of a block pattern, of sizes that are multiples of 64.
    arithmetics : tuple of str
        Keys of `DTYPES`.
    """
    for arithmetic in arithmetics:
        for storage, index in (("compact", tiles), ("full", blocks), ("masked", tiles)):
            case = _Case(storage, arithmetic, index, capability)
            yield from _linear(case)
            yield from _linear_grad_input(case)
            yield from _linear_grad_values(case)
            if storage == "compact":
                yield from _values(case)


@dataclass(frozen=True)
class _Case:
    """What the entries of all kernels have in common: tensors that are there, and never filled."""

    storage: str
    arithmetic: str
    index: Any
    capability: int

    @property
    def weight(self) -> torch.Tensor:
        layout = self.index.layout
        return self.tensor(*((layout.rows, layout.cols) if self.storage == "masked" else (layout.nnz,)))

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPES[self.arithmetic])

    def result(self, config: Config, *shape: int) -> torch.Tensor:
        return torch.empty(config.splits, *shape) if config.splits > 1 else self.tensor(*shape)

    def problem(self, op: str, samples: int, outputs: int, steps: int) -> Problem:
        problem = Problem.of(op, self.tensor(0), samples, outputs, steps, self.index)
        return replace(problem, precision=self.precision, capability=self.capability, processors=PROCESSORS)

    @property
    def precision(self) -> str:
        return self.arithmetic if self.arithmetic in ("tf32", "ieee") else "half"

    def entry(self, name: str, config: Config, launch: Launch) -> Entry:
        launch = replace(launch, constants=launch.constants._replace(PRECISION=self.precision))
        return Entry(name, self.storage, self.arithmetic, config, launch)

    def products(
        self, name: str, outputs: int, steps: int, plan: Callable[[int, Config], Launch]
    ) -> Iterator[Entry]:
        """An entry for each config that some number of samples may get, whatever the splits."""
        found = {}
        for samples in SAMPLES:
            # As many tiles as a large layer has; the layer of the entry itself is small.
            for config in self.few(product_configs(self.problem(name, samples, outputs * 64, steps * 64))):
                found.setdefault(replace(config, splits=1), self.entry(name, config, plan(samples, config)))
        yield from found.values()

    def few(self, configs: tuple[Config, ...]) -> tuple[Config, ...]:
        """All configs, or the first where the case differs from another in what is loaded alone."""
        return configs if self.storage == "compact" and self.arithmetic != "fp16" else configs[:1]


def _linear(case: _Case) -> Iterator[Entry]:
    layout, weight = case.index.layout, case.weight

    def plan(samples: int, config: Config) -> Launch:
        y = case.result(config, samples, layout.rows)
        return linear.plan(case.tensor(samples, layout.cols), weight, None, case.index, y, config)

    yield from case.products("linear", layout.tile_rows, layout.tile_cols, plan)


def _linear_grad_input(case: _Case) -> Iterator[Entry]:
    layout, weight = case.index.layout, case.weight

    def plan(samples: int, config: Config) -> Launch:
        grad_x = case.result(config, samples, layout.cols)
        grad_y = case.tensor(samples, layout.rows)
        return linear_grad_input.plan(grad_y, weight, case.index, grad_x, config)

    yield from case.products("linear_grad_input", layout.tile_cols, layout.tile_rows, plan)


def _linear_grad_values(case: _Case) -> Iterator[Entry]:
    layout, weight = case.index.layout, case.weight
    grad_y, x = case.tensor(SAMPLES[-1], layout.rows), case.tensor(SAMPLES[-1], layout.cols)
    masked = case.storage == "masked"
    for config in case.few(sum_configs(case.problem("linear_grad_values", len(x), layout.tiles * 64, 0))):
        grad = case.result(config, *weight.shape)
        launch = linear_grad_values.plan(grad_y, x, case.index, grad, masked, config)
        yield case.entry("linear_grad_values", config, launch)


def _values(case: _Case) -> Iterator[Entry]:
    dense = case.tensor(*case.index.layout.shape)
    unpack = values.plan_unpack(case.weight, case.index, dense)
    yield case.entry("unpack", values.WHOLE_TILE, unpack)
    yield case.entry("pack", values.WHOLE_TILE, values.plan_pack(dense, case.index, case.weight))
