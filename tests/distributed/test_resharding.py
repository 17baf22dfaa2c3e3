"""Runs that go on from a checkpoint: with as many processes to the bit, with others from that very state."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.runs import assert_close, assert_equal

WAYS = {"alone": (1, "ddp"), "ddp": (2, "ddp"), "fsdp": (2, "fsdp")}


@pytest.fixture(scope="module")
def saved(processes, tmp_path_factory):
    """The checkpoint of a run, by the way it was trained, and the state that it was taken of."""
    made = {}

    def save(way, **arguments):
        key = (way, *arguments.items())
        if key not in made:
            size, wrapper = WAYS[way]
            path = str(tmp_path_factory.mktemp(way) / "checkpoint")
            results = processes(size, "saved_and_resumed", path=path, wrapper=wrapper, **arguments)
            made[key] = path, results
        return made[key]

    return save


def assert_resumed_exactly(results):
    for result in results:
        assert result["extra"]["step"] == 10
        assert torch.equal(result["extra"]["table"], torch.arange(4.0))
        assert_equal(result["loaded"], result["at_save"], "loaded")
        assert_equal(result["resumed"], result["unbroken"], "resumed")
        assert result["unbroken"]["updates"] > result["at_save"]["updates"] > 0


def assert_resumed_by_others(results, saved):
    for result in results:
        assert_equal(result["loaded"], saved["at_save"], "loaded")
        assert_close(result["resumed"], saved["unbroken"])


@pytest.mark.parametrize("way", WAYS)
def test_as_many_processes_go_on_to_the_bit(saved, way):
    """Also where each process draws its own numbers, and has running statistics of its own."""
    _, results = saved(way, noisy=True)
    assert_resumed_exactly(results)
    if len(results) > 1:
        one, other = (result["unbroken"]["local"] for result in results)
        assert not any(torch.equal(one[key], other[key]) for key in ("drawn", "own", "2.running_mean"))


@pytest.mark.parametrize(
    ("way", "size", "wrapper"),
    [("fsdp", 3, "fsdp"), ("fsdp", 1, "ddp"), ("alone", 2, "fsdp"), ("alone", 2, "ddp"), ("ddp", 3, "fsdp")],
    ids=["sharded_2_to_3", "sharded_2_to_1", "1_to_sharded_2", "1_to_2", "ddp_2_to_sharded_3"],
)
def test_another_number_of_processes_goes_on_from_the_same_state(processes, saved, way, size, wrapper):
    path, results = saved(way)
    assert_resumed_exactly(results)
    assert_resumed_by_others(processes(size, "resumed", path=path, wrapper=wrapper), results[0])


def test_processes_with_models_of_their_own(processes, tmp_path):
    assert processes(2, "each_alone", path=str(tmp_path / "checkpoint")) == [1, 2]


KINDS = {
    "set": {"method": "SET"},
    "snfs": {"method": "SNFS"},
    "sgd": {"optimizer": "sgd"},
    "masked": {"storage": "masked"},
    "pruning": {"method": "GradualPruning", "storage": "masked"},
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("way", WAYS)
def test_methods_and_optimizers(processes, saved, way, arguments):
    path, results = saved(way, **arguments)
    assert_resumed_exactly(results)
    for size, wrapper in ((1, "ddp"), (2, "ddp"), (3, "fsdp"), (4, "fsdp")):
        found = processes(size, "resumed", path=path, wrapper=wrapper, **arguments)
        assert_resumed_by_others(found, results[0])
