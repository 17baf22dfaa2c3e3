"""2:4 layers where several processes train one model."""

from __future__ import annotations

import pytest
import torch

WAYS = {
    "SR-STE": {"decay": 0.01},
    "STE, held": {"method": "ste", "refresh_every": 3, "transposable": True},
    "fixed": {"method": "fixed"},
}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_two_processes_are_one(processes, options, wrapper):
    if wrapper == "ddp" and options.get("method") == "fixed":
        pytest.skip("processes that start from other weights fix other masks")
    (alone,) = processes(1, "two_four", wrapper=wrapper, options=options)
    results = processes(2, "two_four", wrapper=wrapper, options=options)
    for result in results:
        assert torch.equal(result["masks"], alone["masks"])
        torch.testing.assert_close(result["parameters"], alone["parameters"], rtol=1e-8, atol=1e-10)
    masks = alone["masks"]
    changed = [not torch.equal(*pair) for pair in zip(masks, masks[1:], strict=False)]
    every = options.get("refresh_every", 1)
    assert not any(changed[step] for step in range(len(changed)) if (step + 1) % every)
    assert any(changed) == (options.get("method") != "fixed")
