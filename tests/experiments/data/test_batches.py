import pytest
import torch

from sparsekern.experiments.data import BatchOrder
from sparsekern.experiments.errors import RecipeError


def stream(order, steps):
    return torch.cat([order.indices(step) for step in range(steps)])


@pytest.mark.parametrize(("examples", "batch"), [(1437, 128), (10, 3), (8, 4), (7, 7), (1, 1)])
def test_every_epoch_is_a_permutation_and_no_batch_is_short(examples, batch):
    order = BatchOrder(examples, batch, seed=0)
    steps = -(-3 * examples // batch)
    assert all(len(order.indices(step)) == batch for step in range(steps))
    for epoch in stream(order, steps)[: 3 * examples].view(3, examples):
        assert sorted(epoch.tolist()) == list(range(examples))


def test_epochs_and_seeds_differ():
    first = stream(BatchOrder(100, 100, seed=0), 2).view(2, 100)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], BatchOrder(100, 100, seed=1).indices(0))


def test_any_step_can_be_asked_for_first():
    expected = [BatchOrder(50, 7, seed=3).indices(step) for step in range(30)]
    order = BatchOrder(50, 7, seed=3)
    for step in [29, 0, 14, 13, 7, 8, 29]:
        assert torch.equal(order.indices(step), expected[step])


def test_order_is_the_same_on_every_machine_and_in_every_version():
    # A changed order would break the exact resume of runs that are under way.
    assert BatchOrder(10, 6, seed=0).indices(1).tolist() == [4, 1, 7, 3, 3, 9]


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = BatchOrder(20, 5, seed=0).indices(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, BatchOrder(20, 5, seed=0).indices(0))


def test_the_paper_trains_25_epochs_in_11719_steps():
    order = BatchOrder(60_000, 128, seed=0)
    assert order.epochs(11_719) == pytest.approx(25, abs=1e-3)
    assert order.epochs(11_719) >= 25


@pytest.mark.parametrize("batch", [11, 99_999_999_999])
def test_a_batch_larger_than_the_training_set_is_refused(batch):
    message = f"batch_size must be from 1 to the number of training examples, 10, got {batch:,}"
    with pytest.raises(RecipeError, match=message):
        BatchOrder(10, batch, seed=0)


@pytest.mark.parametrize(("examples", "batch", "name"), [(0, 1, "num_examples"), (1, 0, "batch_size")])
def test_sizes_below_one_are_refused(examples, batch, name):
    with pytest.raises(ValueError, match=f"{name} must be .*1.*, got 0"):
        BatchOrder(examples, batch, seed=0)
