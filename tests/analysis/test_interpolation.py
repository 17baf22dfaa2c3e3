"""Paths between networks: the ends bit for bit, the middle by hand; barriers of known curves."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import sparsekern as sk
from sparsekern.analysis import barrier, interpolate, paper_alphas


def dense_state(model):
    model = copy.deepcopy(model)
    sk.densify_(model)
    return model.state_dict()


def states_along(model, start, end, alphas):
    return interpolate(model, start, end, alphas, lambda twin: copy.deepcopy(twin.state_dict()))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Also the signs of zeros.
        assert torch.equal(found[key], value), key
        if value.is_floating_point():
            assert torch.equal(found[key].signbit(), value.signbit()), key


@pytest.mark.parametrize("storage", [None, "compact", "masked"])
@pytest.mark.parametrize("as_modules", [False, True])
def test_ends_are_the_models(network, unchanged, storage, as_modules):
    start, end = network(storage, 0), network(storage, 1)
    with torch.no_grad():
        start[8].bias.copy_(torch.tensor([-0.0, 1.0, torch.inf]))
        end[1].num_batches_tracked.fill_(7)
    given = (start, end) if as_modules else (start.state_dict(), end.state_dict())
    with unchanged(start, end):
        first, last = states_along(start, *given, [0, 1])
    assert_equal(first, dense_state(start))
    assert_equal(last, dense_state(end))


def test_patterns_of_other_sizes(network):
    """Each end has its own pattern and number of values; either may be dense or a dense state."""
    start, end = network("compact", 0, sparsity=0.9), network("compact", 1, sparsity=0.3)
    assert start[6].pattern.nnz != end[6].pattern.nnz
    for given in (end.state_dict(), dense_state(end), end):
        (middle,) = states_along(start, start.state_dict(), given, [0.25])
        expected = 0.75 * start[6].to_dense() + 0.25 * end[6].to_dense()
        torch.testing.assert_close(middle["6.weight"], expected.detach(), rtol=1e-14, atol=0)


def test_goes_over_parameters_and_buffers(network):
    start, end = network(None, 0), network(None, 1)
    end[1].num_batches_tracked.fill_(7)
    for alpha, counter in ((-0.2, 0), (0.5, 0), (0.6, 7), (1.2, 7)):
        (found,) = states_along(start, start.state_dict(), end.state_dict(), [alpha])
        for key, value in found.items():
            if value.is_floating_point():
                expected = (1 - alpha) * start.state_dict()[key] + alpha * end.state_dict()[key]
                torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
        assert found["1.num_batches_tracked"] == counter


def test_evaluation_cannot_spoil_what_follows(network, examples):
    """Gradient steps and statistics of batches are gone at the next position."""
    start, end = network("compact", 0), network("compact", 1)

    def spoil(twin):
        state = copy.deepcopy(twin.state_dict())
        twin.train()(examples()[0])
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        return state

    found = interpolate(start, start, end, [1, 0, 1], spoil)
    assert_equal(found[0], found[2])
    assert_equal(found[0], dense_state(end))


def test_mode_is_that_of_the_model(network):
    model = network("compact")
    for training in (True, False):
        model.train(training)
        modes = interpolate(model, model, model, [0.5], lambda twin: {m.training for m in twin.modules()})
        assert modes == [{training}]


def test_mode_is_that_of_the_model_whatever_evaluate_does(network):
    model = network("compact")
    model[1].eval()
    seen = []

    def evaluate(twin):
        seen.append([module.training for module in twin.modules()])
        twin.eval()

    interpolate(model, model, model, [0, 0.5, 1], evaluate)
    assert seen == [[module.training for module in model.modules()]] * 3


class Stateful(torch.nn.Module):
    """Complex weights, a buffer that is not persistent, and a state of its own."""

    def __init__(self, value, label=None, sparse=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([value * 1j, value]))
        self.register_buffer("fixed", torch.tensor([value]), persistent=False)
        self.inner = torch.nn.Sequential(torch.nn.Linear(8, 8))
        self.extra = {"labels": [label]}
        if sparse:
            sk.sparsify_(self.inner, 0.5)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_complex_parameters_are_on_the_line():
    found = []
    interpolate(
        Stateful(0.0),
        Stateful(0.0),
        Stateful(10.0),
        [0.25, 0.6, 1.2],
        lambda t: found.append(t.weight.tolist()),
    )
    assert found == [[2.5j, 2.5], [6j, 6], [12j, 12]]


def test_buffers_that_are_not_persistent_are_those_of_the_model():
    model, start, end = Stateful(1.0), Stateful(2.0), Stateful(3.0)
    for given in ((start, end), (start.state_dict(), end.state_dict())):
        found = interpolate(model, *given, [0, 0.5, 1], lambda twin: twin.fixed.item())
        assert found == [1, 1, 1]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("as_modules", [False, True])
def test_extra_states_are_those_of_the_nearer_end(sparse, as_modules):
    model, start, end = Stateful(1.0, 1, sparse), Stateful(2.0, 2, sparse), Stateful(3.0, 3, sparse)

    def spoil(twin):
        twin.extra["labels"].append(len(twin.extra["labels"]))
        return twin.extra["labels"]

    given = (start, end) if as_modules else (start.state_dict(), end.state_dict())
    assert interpolate(model, *given, [0, 0.4, 0.6, 1.2], spoil) == [[2, 1], [2, 1], [3, 1], [3, 1]]
    assert [made.extra for made in (model, start, end)] == [{"labels": [label]} for label in (1, 2, 3)]


def test_a_tensor_as_extra_state_is_no_weight():
    class Bytes(Stateful):
        def get_extra_state(self):
            return torch.arange(float(self.extra["labels"][0]))

        def set_extra_state(self, state):
            self.extra = len(state)

    ends = Bytes(1.0, 2), Bytes(1.0, 5)
    assert interpolate(Bytes(1.0, 3), *ends, [0, 0.5, 0.7, 1], lambda twin: twin.extra) == [2, 2, 5, 5]


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"model": 1}, TypeError, "model must be a torch.nn.Module"),
            ({"start_state": 1}, TypeError, "start_state must be a state dict or a torch.nn.Module, got 1"),
            ({"end_state": {}}, ValueError, "end_state must be a state dict of the model"),
            ({"end_state": torch.nn.Linear(2, 2)}, ValueError, "end_state must have the names of the model"),
            ({"alphas": []}, ValueError, "alphas must be at least 1 numbers"),
            ({"alphas": 0.5}, TypeError, "alphas must be a sequence of numbers"),
            ({"alphas": [math.nan]}, ValueError, "alphas must be finite numbers"),
            ({"evaluate": 1}, TypeError, "evaluate must be a function"),
        ],
    )
    def test_one_for_each_argument(self, network, unchanged, change, error, text):
        model = network("compact")
        arguments = {
            "model": model,
            "start_state": model.state_dict(),
            "end_state": model.state_dict(),
            "alphas": [0],
            "evaluate": id,
        }
        with unchanged(model), pytest.raises(error, match=text):
            interpolate(**(arguments | change))

    def test_another_dtype(self, network):
        model = network()
        with pytest.raises(ValueError, match=r"end_state\['0\.weight'\] must be a torch.float64 tensor"):
            interpolate(model, model, network(dtype=torch.float32), [0], id)


def test_positions_of_the_paper():
    alphas = paper_alphas()
    assert len(alphas) == 29
    assert 0 in alphas
    assert 1 in alphas
    np.testing.assert_allclose(alphas, np.linspace(-0.2, 1.2, 29), rtol=0, atol=1e-15)


class TestBarrier:
    def test_of_a_parabola(self):
        """a (1 - a) + 3 a + 1 over the line from 1 to 4 is a (1 - a), at most 1/4; outside is no matter."""
        alphas = paper_alphas()
        losses = [a * (1 - a) + 3 * a + 1 for a in alphas]
        assert barrier(losses, alphas) == pytest.approx(0.25, abs=1e-12)
        assert barrier(torch.tensor(losses), np.array(alphas)) == pytest.approx(0.25, abs=1e-6)

    def test_of_a_valley_is_zero(self):
        alphas = paper_alphas()
        assert barrier([(a - 0.5) ** 2 for a in alphas], alphas) == 0

    def test_in_any_order(self):
        assert barrier([5, 1, 1], [0.5, 1, 0]) == 4

    def test_of_nan_is_nan(self):
        assert math.isnan(barrier([1, math.nan, 1], [0, 0.5, 1]))
        assert math.isnan(barrier([1, math.nan], [0, 1]))

    def test_above_an_infinite_end_there_is_none_to_tell(self):
        assert math.isnan(barrier([1, 2, math.inf], [0, 0.5, 1]))
        assert barrier([1, math.inf, 1], [0, 0.5, 1]) == math.inf

    @pytest.mark.parametrize(
        ("losses", "alphas", "error", "text"),
        [
            ([1, 2], [0, 0.5], ValueError, "alphas must contain 0 and 1"),
            ([1, 2, 3], [0, 1], ValueError, "losses must be one for each of 2 alphas, got 3"),
            (["a", "b"], [0, 1], TypeError, "losses must be numbers"),
            (3, [0, 1], TypeError, "losses must be a sequence"),
        ],
    )
    def test_errors(self, losses, alphas, error, text):
        with pytest.raises(error, match=text):
            barrier(losses, alphas)
