"""Methods under DDP: several processes are one, and what could tell them apart ends the run."""

from __future__ import annotations

import pytest
import torch

METHODS = ("RigL", "SET", "RigLInverted")


def assert_equal(one, other):
    """All the same, bit for bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def assert_same_run(one, other):
    """The same patterns and counts, exactly; the numbers as far as the order of sums lets them be."""
    for key in ("patterns", "explored"):
        assert_equal(one[key], other[key])
    for key in ("steps", "updates", "grown"):
        assert one[key] == other[key], key
    for key in ("parameters", "state"):
        torch.testing.assert_close(one[key], other[key], rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def alone(processes):
    """The run of one process on whole batches, by its arguments."""
    runs = {}

    def run(**arguments):
        key = tuple(arguments.items())
        if key not in runs:
            runs[key] = processes(1, "train", **arguments)[0]
            assert runs[key]["updates"] == 6
            assert runs[key]["grown"] > 0
        return runs[key]

    return run


@pytest.mark.parametrize("size", [2, 4], ids=["2_processes", "4_processes"])
@pytest.mark.parametrize("method", METHODS)
def test_processes_are_equal_to_each_other_and_to_one_alone(processes, alone, method, size):
    results = processes(size, "train", method=method)
    for other in results[1:]:
        assert_equal(results[0], other)
    assert_same_run(results[0], alone(method=method))


WAYS = {
    "sgd": {"optimizer": "sgd"},
    "attached_to_wrapper": {"attach": "wrapper"},
    "masked": {"storage": "masked"},
    "snfs": {"method": "SNFS"},
    "update_replaces_step": {"update": "replaces_step"},
    "new_values": {"new_values": "per_neuron"},
    "no_regrowth": {"regrow_dropped": False},
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS.keys())
def test_ways_to_train(processes, alone, arguments):
    one, other = processes(2, "train", **arguments)
    assert_equal(one, other)
    expected = {key: value for key, value in arguments.items() if key != "attach"}
    assert_same_run(one, alone(**expected))


@pytest.mark.parametrize("no_sync", [True, False], ids=["no_sync", "reduced_each_time"])
@pytest.mark.parametrize("method", ["RigL", "RigLInverted"])
def test_accumulated_gradients(processes, alone, method, no_sync):
    """Two passes over half a batch each are one over all of it."""
    one, other = processes(2, "train", method=method, accumulate=2, no_sync=no_sync)
    assert_equal(one, other)
    assert_same_run(one, alone(method=method))


@pytest.mark.parametrize("method", ["RigL", "SNFS"])
def test_gradients_are_summed_before_their_magnitude_is_taken(processes, method):
    assert processes(2, "opposite", method=method) == [[1, 3], [1, 3]]


def test_resumed_run_is_the_unbroken_one(processes, alone, tmp_path):
    """Also where the run goes on with more processes than it was saved from."""
    path = str(tmp_path / "checkpoint.pt")
    unbroken = processes(2, "train", save_after=(15, path))[0]
    for resumed in processes(2, "train", checkpoint=path, seed=7):
        assert_equal(resumed, unbroken)
    joined = processes(4, "train", checkpoint=path, seed=7)
    for other in joined[1:]:
        assert_equal(joined[0], other)
    assert_same_run(joined[0], alone())


@pytest.mark.parametrize("size", [2, 4], ids=["2_processes", "4_processes"])
def test_different_patterns_end_the_run_in_every_process(processes, size):
    ranks = ", ".join(map(str, range(1, size)))
    for message in processes(size, "refused", differing="patterns"):
        assert f"the pattern of layer '0' differs between processes (rank {ranks} from rank 0)" in message


def test_different_counts_of_steps_end_the_run_in_every_process(processes):
    for message in processes(2, "refused", differing="steps"):
        assert "the number of steps differs between processes (rank 1 from rank 0)" in message


def test_an_infinity_in_one_process_ends_the_step_in_every_process(processes):
    for message, unchanged in processes(2, "not_finite_in_one"):
        assert "not finite" in message
        assert unchanged


def test_ddp_sends_active_gradients_only(processes):
    for result in processes(2, "bytes_sent"):
        assert result["per_step"] == [result["stored"]] * 6
        assert result["stored"] < 0.3 * result["dense"]


@pytest.mark.parametrize("method", ["RigL", "RigLInverted", "SNFS"])
def test_layers_that_some_or_all_processes_do_not_use(processes, method):
    alone = processes(1, "branches", method=method)[0]
    one, other = processes(2, "branches", method=method)
    assert_equal(one, other)
    assert_same_run(one, alone)
    untouched = processes(1, "branches", method="Static")[0]["patterns"]
    for name, moved in {"trunk": True, "all": True, "first": True, "none": False}.items():
        key = name if name == "trunk" else f"branches.{name}"
        assert torch.equal(one["patterns"][key], untouched[key]) is not moved


def test_gradual_pruning_removes_the_same_weights_everywhere(processes):
    alone = processes(1, "pruned")[0]
    one, other = processes(2, "pruned")
    assert_equal(one, other)
    assert_equal(one["patterns"], alone["patterns"])
    torch.testing.assert_close(one["parameters"], alone["parameters"], rtol=1e-8, atol=1e-10)
    assert (one["updates"], one["nnz"]) == (4, round(0.05 * (90 + 80 * 21 + 21 * 7)))
    wrapped, inside = one["refused"]
    assert wrapped.startswith("compact must be False for a model inside of DistributedDataParallel")
    assert inside.startswith("model must not be wrapped in DistributedDataParallel")
