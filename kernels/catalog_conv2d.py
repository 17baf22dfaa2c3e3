"""The convolution kernels with their launch configs, as `catalog` has those of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels import conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.kernels.catalog import DTYPES, PROCESSORS, Entry
from sparsekern.kernels.configs import Config, assumed_limits
from sparsekern.kernels.launch import Launch
from sparsekern.kernels.pixels import Window

__all__ = ["conv2d_entries"]

IMAGES, SIDE = 64, 28
# Stride, padding and dilation, each vertical and horizontal; groups.
GEOMETRY = (1, 1, 1, 1, 1, 1, 1)
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def conv2d_entries(capability: int, index: Any, arithmetic: str) -> Iterator[Entry]:
    """All configs of a 3 x 3 layer in either memory format; in float16, the best guesses.

    Parameters
    ----------
    capability : int
        Compute capability: 80, 90 or 100.
    index : TileIndex
        Of the pattern of a weight ``(outputs, inputs, 3, 3)``, both multiples of 64.
    arithmetic : str
        A key of `DTYPES`.
    """
    with assumed_limits(capability, PROCESSORS):
        for layout, memory_format in FORMATS.items():
            for name, config, launch in _launches(index, DTYPES[arithmetic], memory_format, arithmetic):
                if arithmetic == "tf32":
                    launch = replace(launch, constants=launch.constants._replace(PRECISION="tf32"))
                yield Entry(f"{name}_{layout}", "compact", arithmetic, config, launch)


def _launches(
    index: Any, dtype: torch.dtype, memory_format: torch.memory_format, arithmetic: str
) -> Iterator[tuple[str, Config, Launch]]:
    outputs, channels, *_ = shape = index.layout.shape
    # On the meta device: nothing reads them, and they would be large.
    x, y = (
        torch.empty(IMAGES, count, SIDE, SIDE, dtype=dtype, device="meta").to(memory_format=memory_format)
        for count in (channels, outputs)
    )
    values = torch.empty(index.layout.nnz, dtype=dtype)
    window = Window.of_output(x, shape, GEOMETRY)

    def few(configs: tuple[Config, ...]) -> tuple[Config, ...]:
        return configs[:1] if arithmetic == "fp16" else configs

    def parts(result: Tensor, config: Config) -> Tensor:
        return result if config.splits == 1 else result.new_empty((1, *result.shape), dtype=torch.float32)

    for config in few(conv2d.conv2d_configs(x, index, window, GEOMETRY)[0]):
        yield "conv2d", config, conv2d.plan(x, values, None, index, GEOMETRY, parts(y, config), config)
    for config in few(conv2d_grad_input.grad_input_configs(y, x, index, GEOMETRY)[0]):
        launch = conv2d_grad_input.plan(y, values, index, GEOMETRY, parts(x, config), config)
        yield "conv2d_grad_input", config, launch
    for config in few(conv2d_grad_values.grad_values_configs(x, index, window, GEOMETRY)[0]):
        launch = conv2d_grad_values.plan(y, x, index, GEOMETRY, parts(values, config), config)
        yield "conv2d_grad_values", config, launch
