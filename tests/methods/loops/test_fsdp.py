"""Methods where FSDP2 spreads weights, gradients and optimizer state over processes."""

from __future__ import annotations

import pytest
import torch

WAYS = {
    "rigl": {"method": "RigL"},
    "set": {"method": "SET"},
    "rigl_sgd": {"method": "RigL", "optimizer": "sgd"},
    "rigl_masked": {"method": "RigL", "storage": "masked"},
    "rigl_inverted": {"method": "RigLInverted"},
    "rigl_accumulated": {"method": "RigL", "accumulate": 2},
    "rigl_replaces_step": {"method": "RigL", "update": "replaces_step"},
}


# Whether values are masked, and what an update does to them, is the same with and without FSDP.
LEFT_OUT = ("rigl_masked", "rigl_inverted", "rigl_replaces_step")


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(way, marks=[pytest.mark.slow] * (name in LEFT_OUT)) for name, way in WAYS.items()],
    ids=WAYS.keys(),
)
def test_two_processes_are_one(processes, arguments):
    alone = processes(1, "train", steps=20, **arguments)[0]
    results = processes(2, "train", wrapper="fsdp", steps=20, **arguments)
    assert alone["updates"] == 4
    assert alone["grown"] > 0
    for result in results:
        for name, mask in alone["patterns"].items():
            assert torch.equal(result["patterns"][name], mask), name
        for key in ("steps", "updates", "grown"):
            assert result[key] == alone[key], key
        for key in ("parameters", "state"):
            torch.testing.assert_close(result[key], alone[key], rtol=1e-8, atol=1e-10)


def test_run_resumed_from_a_distributed_checkpoint_is_the_unbroken_one(processes):
    for unbroken, resumed in processes(2, "resumed_sharded"):
        assert unbroken["updates"] == resumed["updates"] == 4
        assert unbroken["steps"] == resumed["steps"] == 20
        for part in ("patterns", "explored", "parameters", "state"):
            assert unbroken[part].keys() == resumed[part].keys()
            for name, tensor in unbroken[part].items():
                assert torch.equal(tensor, resumed[part][name]), (part, name)


@pytest.mark.parametrize("option", ["grow_gradient", "new_values"])
def test_refuses_what_sharded_weights_cannot_do(processes, option):
    for message in processes(2, "refused_sharded", option=option):
        assert message.startswith(f"{option} must be")
        assert "where FSDP2 shards weights, as that of layer '0'" in message


def test_content_is_written_into_each_part(processes):
    """Also where the length is not a multiple of the processes, and for parts that are empty."""
    for result in processes(2, "write_parts"):
        assert result == {"1": True, "2": True, "7": True, "7x3": True, "1x3": True}
