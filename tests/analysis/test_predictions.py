"""Predictions and how they differ, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.analysis import (
    disagreement,
    disagreement_with,
    ensemble_accuracy,
    jensen_shannon_divergence,
    kl_divergence,
    pairwise_disagreement,
    pairwise_jensen_shannon_divergence,
    pairwise_kl_divergence,
    predict,
)


def one_hot(*classes):
    return F.one_hot(torch.tensor(classes), 4).double()


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(9, 5, generator=generator, dtype=torch.float64).softmax(1)


class TestPredict:
    @pytest.mark.parametrize("storage", [None, "compact", "masked"])
    @pytest.mark.parametrize("batch_size", [3, 100])
    def test_is_the_softmax_in_evaluation_mode(self, network, examples, unchanged, storage, batch_size):
        model, (images, _) = network(storage), examples()
        with unchanged(model):
            found = predict(model, images, batch_size)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        torch.testing.assert_close(found, model.eval()(images).softmax(1).detach(), rtol=1e-12, atol=1e-15)

    def test_small_probabilities_are_kept(self):
        found = predict(nn.Identity(), torch.tensor([[0.0, 300.0]]))
        assert float(found[0, 0]) == pytest.approx(math.exp(-300), rel=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ((1, torch.ones(2, 3)), TypeError, "model must be a torch.nn.Module"),
            ((nn.Identity(), 1), TypeError, "inputs must be a tensor"),
            ((nn.Identity(), torch.ones(2, 3), 0), ValueError, "batch_size must be at least 1"),
            (
                (nn.Identity(), torch.ones(2, 3, 4)),
                ValueError,
                r"model must return \(2, classes\) logits.*softmax",
            ),
        ],
    )
    def test_errors(self, arguments, error, text):
        with pytest.raises(error, match=text):
            predict(*arguments)


class TestDisagreement:
    def test_by_hand(self):
        assert disagreement(one_hot(0, 1, 2, 3), one_hot(0, 1, 3, 2)) == 0.5
        assert disagreement(one_hot(0, 1), one_hot(0, 1)) == 0

    def test_over_pairs(self):
        given = [one_hot(0, 1), one_hot(0, 1), one_hot(0, 2)]
        assert pairwise_disagreement(given) == pytest.approx(1 / 3)
        assert pairwise_disagreement(torch.stack(given)) == pytest.approx(1 / 3)

    def test_with_a_reference(self):
        assert disagreement_with([one_hot(0, 1), one_hot(1, 0)], one_hot(0, 0)) == 0.5
        assert disagreement_with([one_hot(0, 1)], one_hot(0, 1)) == 0

    def test_errors(self):
        with pytest.raises(ValueError, match="b must have the shape and device of a"):
            disagreement(one_hot(0), one_hot(0, 1))
        with pytest.raises(TypeError, match="a must be a floating-point tensor"):
            disagreement(torch.tensor([[1]]), one_hot(0))
        with pytest.raises(ValueError, match="b must not have NaN"):
            disagreement(one_hot(0), torch.full((1, 4), torch.nan))
        with pytest.raises(ValueError, match="predictions must be at least 2"):
            pairwise_disagreement([one_hot(0)])
        with pytest.raises(ValueError, match=r"predictions\[1\] must have the shape"):
            pairwise_disagreement([one_hot(0), one_hot(0, 1)])
        with pytest.raises(ValueError, match="reference must have the shape"):
            disagreement_with([one_hot(0)], one_hot(0, 1))


class TestEnsemble:
    def test_is_of_the_mean_and_no_vote(self):
        sure = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        unsure = torch.tensor([[0.4, 0.6], [0.45, 0.55]])
        labels = torch.tensor([0, 0])
        # Means: 0.567 for class 0 against two votes for class 1; 0.37 for the second example.
        assert ensemble_accuracy([sure, unsure, unsure], labels) == 0.5
        assert ensemble_accuracy([unsure], labels) == 0

    def test_each_counts_as_much(self):
        """Sums of 1.008 and 0.992 would let the first one win."""
        first, second = torch.tensor([[0.6048, 0.4032]]), torch.tensor([[0.3964, 0.5956]])
        assert ensemble_accuracy([first, second], torch.tensor([1])) == 1

    @pytest.mark.parametrize(
        ("predictions", "labels", "error", "text"),
        [
            ([], torch.tensor([0]), ValueError, "predictions must be at least 1"),
            ([one_hot(0)], torch.tensor([0.0]), TypeError, "labels must be a tensor of integers"),
            ([one_hot(0)], torch.tensor([0, 1]), ValueError, r"labels must have shape \(1,\)"),
            ([one_hot(0)], torch.tensor([4]), ValueError, "labels must be from 0 to 3, got 4 to 4"),
            ([one_hot(0)], torch.tensor([-1]), ValueError, "labels must be from 0 to 3, got -1 to -1"),
            ([2 * one_hot(0)], torch.tensor([0]), ValueError, r"predictions\[0\] must be probabilities"),
        ],
    )
    def test_errors(self, predictions, labels, error, text):
        with pytest.raises(error, match=text):
            ensemble_accuracy(predictions, labels)


class TestDivergences:
    def test_kl_by_hand(self):
        p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert kl_divergence(p, q) == pytest.approx((first + math.log(2)) / 2, rel=1e-7)

    def test_kl_is_that_of_torch(self, random):
        p, q = random(), random()
        expected = F.kl_div(q.log(), p, reduction="batchmean")
        assert kl_divergence(p, q) == pytest.approx(float(expected), rel=1e-12)
        assert kl_divergence(p, q) != pytest.approx(kl_divergence(q, p), rel=1e-3)

    @pytest.mark.parametrize("divergence", [kl_divergence, jensen_shannon_divergence])
    def test_rounded_probabilities_are_normalized(self, divergence):
        """A softmax in bfloat16 does not quite sum to 1, which would make the divergence negative."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 200, 10, generator=generator)
        logits[1] = logits[0] + 0.003 * logits[1]
        p, q = logits.bfloat16().softmax(2)
        assert float((p.double().sum(1) - 1).abs().max()) > 1e-3
        exact = [rows.double() / rows.double().sum(1, keepdim=True) for rows in (p, q)]
        for first, second in ((0, 1), (1, 0)):
            found = divergence((p, q)[first], (p, q)[second])
            assert 0 < found == pytest.approx(divergence(exact[first], exact[second]), rel=1e-12)

    def test_is_never_negative(self):
        p, q = torch.tensor([[0.5, 0.495]]), torch.tensor([[0.5, 0.505]])
        assert 0 < kl_divergence(p, q) < 1e-4
        p = torch.rand(100, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
        q = (p.log() + 1e-10 * p.flip(0)).softmax(1)
        assert all(kl_divergence(*pair) >= 0 for pair in zip(p.split(1), q.split(1)))

    def test_zeros(self):
        p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        assert kl_divergence(p, q) == pytest.approx(math.log(2))
        assert kl_divergence(q, p) == math.inf
        assert kl_divergence(p, p) == 0

    def test_of_equal_ones_is_zero(self, random):
        p = random()
        assert kl_divergence(p, p) == jensen_shannon_divergence(p, p) == 0

    def test_jensen_shannon(self, random):
        p, q = random(), random()
        m = (p + q) / 2
        expected = (kl_divergence(p, m) + kl_divergence(q, m)) / 2
        found = jensen_shannon_divergence(p, q)
        assert found == pytest.approx(expected, rel=1e-12)
        assert found == jensen_shannon_divergence(q, p)
        assert 0 < found < math.log(2)
        assert jensen_shannon_divergence(one_hot(0, 1), one_hot(1, 2)) == pytest.approx(math.log(2))

    def test_over_pairs(self, random):
        p, q, r = random(), random(), random()
        both = [(p, q), (q, p), (p, r), (r, p), (q, r), (r, q)]
        expected = sum(kl_divergence(*pair) for pair in both) / 6
        assert pairwise_kl_divergence([p, q, r]) == pytest.approx(expected, rel=1e-12)
        expected = sum(jensen_shannon_divergence(*pair) for pair in both) / 6
        assert pairwise_jensen_shannon_divergence([p, q, r]) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("divergence", [kl_divergence, jensen_shannon_divergence])
    def test_errors(self, random, divergence):
        with pytest.raises(ValueError, match="q must be probabilities, rows of numbers from 0 that sum to 1"):
            divergence(random(), 2 * random())
        with pytest.raises(ValueError, match="p must be probabilities"):
            divergence(torch.tensor([[1.5, -0.5]]), torch.tensor([[0.5, 0.5]]))
        with pytest.raises(ValueError, match="q must have the shape and device of p"):
            divergence(one_hot(0), one_hot(0, 1))


def test_identical_networks_are_alike(network, examples):
    images = examples()[0]
    first, second = (predict(network(storage), images) for storage in ("compact", "compact"))
    assert disagreement(first, second) == 0
    assert kl_divergence(first, second) == 0
    assert jensen_shannon_divergence(first, second) == 0
