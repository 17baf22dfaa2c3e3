"""`TwoFourConversion`: from dense layers to 2:4 ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sparsekern.formats.checks import check_choice
from sparsekern.init import dense_
from sparsekern.nn.conversion import Conversion
from sparsekern.nn.survey import Found
from sparsekern.nn.two_four_checks import check_options
from sparsekern.nn.two_four_conv import TwoFourConv2d
from sparsekern.nn.two_four_layer import TwoFourLayer
from sparsekern.nn.two_four_linear import TwoFourLinear


class TwoFourConversion(Conversion):
    """To `TwoFourLinear` and `TwoFourConv2d`."""

    types = {nn.Linear: TwoFourLinear, nn.Conv2d: TwoFourConv2d}  # noqa: RUF012
    inits = ("dense",)

    def __init__(self, init: str, generator: torch.Generator | None, **options: Any) -> None:
        self.init = check_choice(init, ("keep", *self.inits), "init")
        self._generator = generator
        self._given = options
        self._checked = check_options(**options)

    def unsuited(self, module: nn.Module) -> str | None:
        shape = tuple(module.weight.shape)
        return self.types[type(module)].misfit(shape, self._checked["transposable"])

    def choices(self, groups: list[list[Found]]) -> Iterator[None]:
        yield from [None] * len(groups)

    def make(self, module: nn.Module, choice: None) -> TwoFourLayer:
        return self.types[type(module)].like(module, device=self.device_for(module), **self._given)

    def fill(self, layer: TwoFourLayer, module: nn.Module, choice: None) -> None:
        if self.init == "keep":
            layer.pack_dense(module.weight)
        else:
            layer.draw_mask(self._generator)
            dense_(layer, generator=self._generator)

    def figures(self, layer: TwoFourLayer, choice: None) -> dict[str, Any]:
        rows, columns = layer.matrix_shape
        weight = layer.stored_weight
        return {
            "shape": layer.weight_shape,
            "sparsity_asked": 0.5,
            "sparsity": 0.5,
            "nnz": rows * columns // 2,
            "numel": rows * columns,
            "fan_in_min": columns // 2,
            "fan_in_mean": columns / 2,
            "value_bytes": weight.numel() * weight.element_size(),
            "pattern_bytes": layer.mask_bytes,
            "dense_bytes": rows * columns * weight.element_size(),
        }
