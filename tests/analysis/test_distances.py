"""Distances by hand, and maps of two and three points, whose distances can be met exactly."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

from sparsekern.analysis import distance_matrix, flat_weights, l2_distance, mds


class TestFlatWeights:
    def test_is_the_same_for_all_storages(self, network, unchanged):
        compact, masked = network("compact"), network("masked")
        with unchanged(compact):
            found = flat_weights(compact)
        assert torch.equal(found, flat_weights(masked))
        expected = [compact[0].to_dense(), compact[0].bias, *compact[1].parameters()]
        expected += [compact[6].to_dense(), *compact[8].parameters()]
        assert torch.equal(found, torch.cat([tensor.detach().flatten() for tensor in expected]))

    def test_without_biases(self, network):
        assert len(flat_weights(network("compact"), biases=False)) == 54 + 30 + 15

    @pytest.mark.parametrize("storage", [None, "compact", "masked"])
    def test_of_frozen_parameters_there_is_nothing(self, network, storage):
        model = network(storage)
        model[0].requires_grad_(False)
        model[8].bias.requires_grad_(False)
        assert torch.equal(flat_weights(model), flat_weights(network(storage))[57:-3])

    @pytest.mark.parametrize(
        ("model", "options", "error", "text"),
        [
            (1, {}, TypeError, "model must be a torch.nn.Module"),
            (nn.Linear(2, 2), {"biases": 1}, TypeError, "biases must be True or False"),
            (nn.Identity(), {}, ValueError, "model must have a trainable parameter"),
        ],
    )
    def test_errors(self, model, options, error, text):
        with pytest.raises(error, match=text):
            flat_weights(model, **options)


class TestDistances:
    def test_of_a_network_and_itself_is_zero(self, network):
        assert l2_distance(network("compact"), network("masked")) == 0

    def test_by_hand(self, network):
        model, other = network("compact"), network("compact")
        with torch.no_grad():
            other[8].bias += torch.tensor([3.0, 0.0, -4.0])
        assert l2_distance(model, other) == pytest.approx(5, rel=1e-14)
        assert l2_distance(model, other, biases=False) == 0

    def test_matrix(self, network):
        models = [network("compact", seed) for seed in range(3)]
        found = distance_matrix(models)
        assert torch.equal(found, found.T)
        assert torch.equal(found, distance_matrix([flat_weights(model) for model in models]))
        for i, first in enumerate(models):
            for j, second in enumerate(models):
                assert float(found[i, j]) == pytest.approx(l2_distance(first, second), rel=1e-14)
        assert float(found[0, 1]) > 0

    def test_near_networks_keep_their_digits(self):
        first = torch.full((1000,), 100.0, dtype=torch.float64)
        second = first.clone()
        second[0] += 2.0**-40
        assert float(distance_matrix([first, second])[0, 1]) == 2.0**-40

    def test_errors(self, network):
        with pytest.raises(ValueError, match="b must have as many weights as a, 111, got 3"):
            l2_distance(network(), torch.ones(3))
        with pytest.raises(TypeError, match=r"a must be a torch\.nn\.Module, got 1"):
            l2_distance(1, torch.ones(3))
        with pytest.raises(
            ValueError, match=r"models\[1\] must have as many weights as models\[0\], 2, got 3"
        ):
            distance_matrix([torch.ones(2), torch.ones(3)])
        with pytest.raises(TypeError, match="models must be a sequence"):
            distance_matrix(network().parameters())
        with pytest.raises(ValueError, match=r"models\[0\] must be finite"):
            distance_matrix([torch.tensor([torch.nan])])


class TestMds:
    @pytest.fixture(autouse=True)
    def _without_warnings(self):
        pytest.importorskip("sklearn.manifold")  # whose own import may warn
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    @pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
    def test_of_two_points(self, scale):
        wanted = scale * torch.tensor([[0.0, 3.0], [3.0, 0.0]], dtype=torch.float64)
        found = mds(wanted)
        assert found.coordinates.shape == (2, 2)
        torch.testing.assert_close(torch.cdist(*[found.coordinates] * 2), wanted, rtol=1e-4, atol=0)
        assert found.stress < 1e-8 * scale**2

    def test_of_a_triangle(self):
        wanted = torch.tensor([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]], dtype=torch.float64)
        found = mds(wanted, seed=3)
        torch.testing.assert_close(torch.cdist(*[found.coordinates] * 2), wanted, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(found.coordinates.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)

    def test_stress_is_what_is_left(self):
        """An equilateral triangle does not fit on a line: 0, 2/3 and 4/3 are the best points."""
        wanted = 1 - torch.eye(3, dtype=torch.float64)
        found = mds(wanted, dimensions=1)
        lengths = torch.cdist(*[found.coordinates] * 2)
        assert found.stress == pytest.approx(float((lengths - wanted).triu().square().sum()), rel=1e-9)
        assert found.stress == pytest.approx(1 / 3, rel=1e-3)

    def test_of_equal_points(self):
        found = mds(torch.zeros(3, 3))
        assert torch.equal(found.coordinates, torch.zeros(3, 2).double())
        assert found.stress == 0

    def test_same_seed_same_points(self, network):
        wanted = distance_matrix([network("compact", seed) for seed in range(4)])
        assert torch.equal(mds(wanted, seed=5).coordinates, mds(wanted, seed=5).coordinates)

    @pytest.mark.parametrize(
        ("distances", "error", "text"),
        [
            ([[0.0]], TypeError, "distances must be a tensor"),
            (torch.zeros(2, 3), ValueError, "distances must be a square matrix"),
            (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), ValueError, "distances must be symmetric"),
            (torch.eye(2), ValueError, "distances must be symmetric with zeros on the diagonal"),
            (
                torch.tensor([[0.0, -1.0], [-1.0, 0.0]]),
                ValueError,
                "distances must be finite and not negative",
            ),
        ],
    )
    def test_errors(self, distances, error, text):
        with pytest.raises(error, match=text):
            mds(distances)

    def test_without_scikit_learn(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
        with pytest.raises(ImportError, match="pip install scikit-learn"):
            mds(torch.zeros(2, 2))
