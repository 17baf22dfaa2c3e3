"""Lanczos and its uses against exact spectra, and products against the exact Hessian."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern as sk
from sparsekern.analysis import (
    active_size,
    extreme_eigenvalues,
    hessian,
    hessian_vector_product,
    lanczos,
    spectral_density,
)

SIZE = 37


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def matrix(generator):
    half = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    return half + half.T


class TestProducts:
    @pytest.mark.parametrize("storage", [None, "compact", "masked"])
    @pytest.mark.parametrize("examples_at_once", [3, 1000])
    def test_are_those_of_the_matrix(self, network, examples, unchanged, storage, examples_at_once):
        model, (images, labels) = network(storage), examples()
        exact = hessian(model, images, labels).matrix
        assert active_size(model) == len(exact)
        vector = torch.randn(len(exact), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with unchanged(model):
            found = hessian_vector_product(model, images, labels, vector, examples_at_once=examples_at_once)
        torch.testing.assert_close(found, exact @ vector, rtol=1e-9, atol=1e-12)

    def test_zeros_of_a_dense_weight_count_when_asked_for(self, network, examples):
        model, (images, labels) = network(), examples()
        with torch.no_grad():
            model[6].weight[2] = 0
        exact = hessian(model, images, labels, include_zeros=True).matrix
        assert active_size(model, include_zeros=True) == len(exact) == active_size(model) + 6
        vector = torch.ones(len(exact))
        found = hessian_vector_product(model, images, labels, vector, include_zeros=True)
        torch.testing.assert_close(found, exact.sum(1), rtol=1e-9, atol=1e-12)

    def test_under_no_grad(self, network, examples):
        model, (images, labels) = network("compact"), examples()
        vector = torch.ones(active_size(model))
        expected = hessian_vector_product(model, images, labels, vector)
        with torch.no_grad():
            assert torch.equal(hessian_vector_product(model, images, labels, vector), expected)

    @pytest.mark.parametrize("storage", [None, "compact", "masked"])
    def test_in_inference_mode(self, network, examples, storage):
        """Of a model that no other pass has gone through, and with examples and a vector made there."""
        images, labels = examples()
        vector = torch.linspace(-1, 1, active_size(network(storage)), dtype=torch.float64)
        for size in (4, 1000):
            expected = hessian_vector_product(network(storage), images, labels, vector, examples_at_once=size)
            fresh = network(storage)
            with torch.inference_mode():
                own = (images.clone(), labels.clone(), vector.clone())
                found = hessian_vector_product(fresh, *own, examples_at_once=size)
            assert torch.equal(found, expected)

    def test_sums_over_parts_are_float64(self):
        """2 x^2 / 64 of 64 inputs: in float32, those of 1 would be lost beside that of 4096."""
        inputs = torch.ones(64, 1)
        inputs[0] = 4096
        found = hessian_vector_product(
            nn.Linear(1, 1, bias=False),
            inputs,
            torch.zeros(64, 1),
            torch.ones(1),
            F.mse_loss,
            examples_at_once=1,
        )
        assert found.tolist() == [2 * (4096**2 + 63) / 64]

    def test_of_a_loss_that_is_linear(self):
        model = nn.Sequential(nn.Linear(3, 1, bias=False))
        found = hessian_vector_product(
            model, torch.ones(2, 3), torch.zeros(2), torch.ones(3), lambda outputs, _: outputs.mean()
        )
        assert torch.equal(found, torch.zeros(3, dtype=torch.float64))

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"vector": torch.ones(3)}, ValueError, r"vector must have shape \(\d+,\), got \(3,\)"),
            ({"vector": [1.0]}, TypeError, "vector must be a floating-point tensor"),
            ({"targets": torch.zeros(1)}, ValueError, "targets must be for the 7 examples"),
            ({"criterion": lambda z, y: z}, TypeError, "criterion must return a scalar"),
            (
                {"criterion": lambda z, y: torch.tensor(1.0)},
                ValueError,
                "criterion must return a loss that depends",
            ),
            ({"examples_at_once": 0}, ValueError, "examples_at_once must be at least 1"),
        ],
    )
    def test_errors_leave_the_model_alone(self, network, examples, unchanged, change, error, text):
        model, (images, labels) = network("compact"), examples()
        arguments = {
            "model": model,
            "inputs": images,
            "targets": labels,
            "vector": torch.ones(active_size(model)),
        }
        with unchanged(model), pytest.raises(error, match=text):
            hessian_vector_product(**(arguments | change))

    def test_layers_packed_two_four_are_refused(self):
        model = nn.Sequential(nn.Linear(8, 4))
        sk.sparsify_(model, pattern="2:4")
        with pytest.raises(TypeError, match=r"model must not have layers packed 2:4.*'0\.weight'"):
            hessian_vector_product(
                model, torch.ones(2, 8), torch.zeros(2).long(), torch.ones(active_size(model))
            )


class TestLanczos:
    def test_all_steps_give_the_spectrum(self, matrix, generator):
        values, weights, errors = lanczos(matrix.mv, SIZE, SIZE, generator).ritz()
        exact = torch.linalg.eigvalsh(matrix)
        torch.testing.assert_close(values, exact, rtol=1e-10, atol=1e-10)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)

    def test_errors_are_bounds(self, matrix, generator):
        found = lanczos(matrix.mv, SIZE, 12, generator)
        values, _, errors = found.ritz()
        exact = torch.linalg.eigvalsh(matrix)
        assert len(values) == 12
        assert found.rest > 0
        nearest = (values[:, None] - exact).abs().amin(1)
        assert bool((nearest <= errors + 1e-10).all())

    def test_stays_orthogonal_where_eigenvalues_are_far_apart(self, generator):
        """Without reorthogonalization the largest would appear several times."""
        exact = torch.logspace(-9, 3, 40, dtype=torch.float64)
        values, _, _ = lanczos(lambda v: exact * v, 40, 40, generator).ritz()
        assert int((values > 400).sum()) == int((exact > 400).sum())

    def test_ends_when_there_is_nothing_left(self, generator):
        found = lanczos(lambda v: 3 * v, SIZE, 20, generator)
        assert found.diagonal.tolist() == pytest.approx([3])
        assert len(found.off_diagonal) == 0
        assert found.rest == 0
        two = torch.tensor([1.0, 5.0], dtype=torch.float64).repeat(9)
        values, weights, errors = lanczos(lambda v: two * v, 18, 10, generator).ritz()
        torch.testing.assert_close(values, two[:2])
        assert bool((errors == 0).all())

    def test_of_zero(self, generator):
        assert lanczos(torch.zeros_like, 4, 4, generator).diagonal.tolist() == [0.0]

    def test_same_generator_same_result(self, matrix):
        first, second = (
            lanczos(matrix.mv, SIZE, 5, torch.Generator().manual_seed(4)).diagonal for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_extremes(self, matrix, generator):
        exact = torch.linalg.eigvalsh(matrix)
        found = extreme_eigenvalues(matrix.mv, SIZE, steps=30, generator=generator)
        assert found.smallest == pytest.approx(float(exact[0]), rel=1e-6)
        assert found.largest == pytest.approx(float(exact[-1]), rel=1e-6)

    def test_extremes_of_a_network(self, network, examples, generator):
        model, (images, labels) = network("compact"), examples()
        exact = hessian(model, images, labels).eigenvalues()
        found = extreme_eigenvalues(
            lambda v: hessian_vector_product(model, images, labels, v), len(exact), generator=generator
        )
        assert found == pytest.approx((float(exact[0]), float(exact[-1])), rel=1e-8)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ((1, 3, 3), TypeError, "matvec must be a function"),
            ((torch.clone, 0, 3), ValueError, "size must be at least 1"),
            ((torch.clone, 3, 0), ValueError, "steps must be at least 1"),
            ((torch.clone, 3, 3, 7), TypeError, "generator must be a torch.Generator"),
            ((lambda v: v[:1], 3, 3), ValueError, r"matvec must return a tensor of shape \(3,\)"),
            ((lambda v: v / 0, 3, 3), ValueError, "matvec must return finite numbers"),
        ],
    )
    def test_errors(self, arguments, error, text):
        with pytest.raises(error, match=text):
            lanczos(*arguments)


class TestSpectralDensity:
    def test_of_one_eigenvalue_is_a_gaussian(self, generator):
        grid = torch.linspace(1, 3, 101, dtype=torch.float64)
        found = spectral_density(
            lambda v: 2 * v, SIZE, steps=5, probes=3, width=0.2, grid=grid, generator=generator
        )
        expected = torch.exp(-((grid - 2) / 0.2).square() / 2) / (0.2 * math.sqrt(2 * math.pi))
        torch.testing.assert_close(found.density, expected, rtol=1e-8, atol=1e-12)
        assert found.width == 0.2

    def test_moments(self, matrix, generator):
        """Those of the spectrum up to the error of the probes, about sqrt(2 / (probes * size))."""
        probes = 400
        found = spectral_density(matrix.mv, SIZE, steps=20, probes=probes, generator=generator)
        exact = torch.linalg.eigvalsh(matrix)
        step = found.grid[1] - found.grid[0]
        assert float(found.density.sum() * step) == pytest.approx(1, abs=1e-5)
        spread = float(exact.std())
        mean = float((found.density * found.grid).sum() * step)
        assert mean == pytest.approx(float(exact.mean()), abs=4 * spread * math.sqrt(2 / (probes * SIZE)))
        second = float((found.density * found.grid.square()).sum() * step)
        assert second == pytest.approx(float(exact.square().mean()) + found.width**2, rel=0.05)

    def test_default_width_and_grid_follow_the_range(self, matrix, generator):
        found = spectral_density(matrix.mv, SIZE, steps=SIZE, probes=1, generator=generator)
        exact = torch.linalg.eigvalsh(matrix)
        assert found.width == pytest.approx(math.sqrt(1e-5) * float(exact[-1] - exact[0]), rel=1e-6)
        assert float(found.grid[0]) == pytest.approx(float(exact[0]) - 5 * found.width, rel=1e-6)
        assert float(found.grid[-1]) == pytest.approx(float(exact[-1]) + 5 * found.width, rel=1e-6)

    @pytest.mark.parametrize("scale", [0.0, 3.0])
    def test_of_equal_eigenvalues_integrates_to_one(self, generator, scale):
        found = spectral_density(lambda v: scale * v, SIZE, probes=2, generator=generator)
        assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"probes": 0}, ValueError, "probes must be at least 1"),
            ({"width": 0}, ValueError, "width must be a positive finite number"),
            ({"grid": [1.0]}, TypeError, "grid must be a floating-point tensor of one dimension"),
        ],
    )
    def test_errors(self, options, error, text):
        with pytest.raises(error, match=text):
            spectral_density(torch.clone, 3, **options)


def test_criterion_is_what_is_differentiated(network, examples):
    model, (images, labels) = network(), examples()
    vector = torch.ones(active_size(model))

    def doubled(outputs, targets):
        return 2 * F.cross_entropy(outputs, targets)

    once = hessian_vector_product(model, images, labels, vector)
    torch.testing.assert_close(hessian_vector_product(model, images, labels, vector, doubled), 2 * once)
