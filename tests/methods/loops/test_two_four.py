"""2:4 layers where several processes train one model."""

from __future__ import annotations

import itertools

import pytest
import torch

WAYS = {
    "SR-STE": {"decay": 0.01},
    "STE, held": {"method": "ste", "refresh_every": 3, "transposable": True},
    "fixed": {"method": "fixed"},
}


# Under DDP, processes start from weights of their own here, and would fix masks of their own.
CASES = [(way, wrapper) for way in WAYS for wrapper in ("ddp", "fsdp") if (way, wrapper) != ("fixed", "ddp")]


@pytest.mark.parametrize(("way", "wrapper"), CASES)
def test_two_processes_are_one(processes, way, wrapper):
    options = WAYS[way]
    (alone,) = processes(1, "two_four", wrapper=wrapper, options=options)
    results = processes(2, "two_four", wrapper=wrapper, options=options)
    for result in results:
        assert torch.equal(result["masks"], alone["masks"])
        torch.testing.assert_close(result["parameters"], alone["parameters"], rtol=1e-8, atol=1e-10)
    masks = alone["masks"]
    changed = [not torch.equal(*pair) for pair in itertools.pairwise(masks)]
    every = options.get("refresh_every", 1)
    assert not any(changed[step] for step in range(len(changed)) if (step + 1) % every)
    assert any(changed) == (options.get("method") != "fixed")
