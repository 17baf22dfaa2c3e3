"""The kernels of 2:4 weights with their launch configs, as `catalog` has those of patterns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from sparsekern.kernels import two_four, two_four_values
from sparsekern.kernels.catalog import DTYPES, PROCESSORS, SAMPLES, Entry
from sparsekern.kernels.configs import Config, assumed_limits, sum_configs
from sparsekern.kernels.launch import Launch

__all__ = ["two_four_entries"]

STORAGE = "two-four"
# As large as a layer of a transformer; on the meta device, since nothing reads it.
ROWS, COLUMNS = 4096, 8192
MOVED = Config(samples=1, group=1, warps=two_four_values.WARPS, stages=1)


def two_four_entries(capability: int, arithmetic: str) -> Iterator[Entry]:
    """All configs of all kernels; in float16, the best guesses.

    Parameters
    ----------
    capability : int
        Compute capability: 80, 90 or 100.
    arithmetic : str
        A key of `DTYPES`.
    """
    with assumed_limits(capability, PROCESSORS), _precision_of(arithmetic):
        launches = list(_launches(DTYPES[arithmetic], arithmetic))
    for name, config, launch in launches:
        yield Entry(name, STORAGE, arithmetic, config, launch)


@contextlib.contextmanager
def _precision_of(arithmetic: str) -> Iterator[None]:
    """As PyTorch is told to compute float32 meanwhile."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _launches(dtype: torch.dtype, arithmetic: str) -> Iterator[tuple[str, Config, Launch]]:
    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    values, metadata = tensor(ROWS, COLUMNS // 2), tensor(ROWS, COLUMNS // 8, dtype=torch.uint8)
    few = slice(1 if arithmetic == "fp16" else None)
    seen = set()
    for samples in SAMPLES:
        x, grad_y = tensor(samples, COLUMNS), tensor(samples, ROWS)
        problem = two_four.problem_of("two_four_linear", x, ROWS, COLUMNS)
        for config in two_four.configs_of(problem)[few]:
            whole = replace(config, splits=1)
            if whole in seen:
                continue
            seen.add(whole)
            y, grad_x = (
                tensor(config.splits, samples, size, dtype=torch.float32 if config.splits > 1 else dtype)
                for size in (ROWS, COLUMNS)
            )
            yield "two_four_linear", config, two_four.plan_linear(x, values, metadata, None, y, config)
            launch = two_four.plan_grad_input(grad_y, values, metadata, grad_x, config)
            yield "two_four_linear_grad_input", config, launch
    blocks = ROWS * COLUMNS // two_four.SIDE
    problem = two_four.problem_of("two_four_linear_grad_values", x, blocks, 0)
    for config in sum_configs(problem)[few]:
        grad = tensor(config.splits, *values.shape, dtype=torch.float32 if config.splits > 1 else dtype)
        launch = two_four.plan_grad_values(grad_y, x, metadata, grad, config)
        yield "two_four_linear_grad_values", config, launch
    dense = tensor(ROWS, COLUMNS)
    yield "gather_two_four", MOVED, two_four_values.plan_gather(dense, metadata, values)
    yield "unpack_two_four", MOVED, two_four_values.plan_unpack(values, metadata, dense)
