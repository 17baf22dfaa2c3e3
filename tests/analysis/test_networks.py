"""Models that PyTorch's own tools have changed are measured by the weights that they compute with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.analysis import (
    active_size,
    flat_weights,
    gradient_flow,
    hessian,
    hessian_vector_product,
    interpolate,
    l2_distance,
    output_std,
    predict,
)


def random_vector(size):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Distributed(nn.parallel.DistributedDataParallel):
    """A wrapper of the type of DDP's that needs no group of processes, and refuses to run."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *inputs):
        raise AssertionError("a collective operation")


WRAPPERS = {
    "ddp": Distributed,
    "average": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: Distributed(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("storage", [None, "compact"])
def test_wrappers_are_looked_through(network, examples, unchanged, storage, wrapper):
    """What is measured is what is inside, under its own names; no process waits for others."""
    model, other, (images, labels) = network(storage), network(storage, 1), examples()
    wrapped, wrapped_other = WRAPPERS[wrapper](network(storage)), WRAPPERS[wrapper](network(storage, 1))
    model.eval()
    wrapped.eval()

    def loss(model):
        return nn.functional.cross_entropy(model(images), labels)

    vector = random_vector(active_size(model))
    states = (wrapped.state_dict(), wrapped_other.state_dict())
    with unchanged(wrapped):
        assert torch.equal(flat_weights(wrapped), flat_weights(model))
        assert l2_distance(wrapped, wrapped_other) == l2_distance(model, other) > 0
        assert active_size(wrapped) == len(vector)
        assert torch.equal(hessian(wrapped, images, labels).matrix, hessian(model, images, labels).matrix)
        product = hessian_vector_product(wrapped, images, labels, vector)
        assert torch.equal(product, hessian_vector_product(model, images, labels, vector))
        assert torch.equal(predict(wrapped, images), predict(model, images))
        assert output_std(wrapped, images) == output_std(model, images)
    assert gradient_flow(wrapped.eval(), loss) == gradient_flow(model, loss)
    expected = interpolate(model, model, other, [0, 0.3, 1], flat_weights)
    for ends in ((wrapped, wrapped_other), states, (model.state_dict(), other.state_dict()), (model, other)):
        found = interpolate(wrapped, *ends, [0, 0.3, 1], flat_weights)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class TestPruned:
    """By `torch.nn.utils.prune`, which keeps the weights before pruning and multiplies them in a hook."""

    @pytest.fixture
    def pruned(self, network, examples):
        model = network()
        prune.l1_unstructured(model[0], "weight", 0.5)
        prune.l1_unstructured(model[0], "weight", 0.3)  # of what is left
        prune.l1_unstructured(model[6], "weight", 0.6)
        prune.l1_unstructured(model[8], "bias", 1)
        model.eval()(examples()[0])  # the weights have graphs now
        return model

    @pytest.fixture
    def permanent(self, pruned, network):
        """The same network without hooks; parameters in the usual order."""
        model = network()
        model.load_state_dict(pruned.state_dict(), strict=False)
        with torch.no_grad():
            model[0].weight.copy_(pruned[0].weight_orig * pruned[0].weight_mask)
            model[6].weight.copy_(pruned[6].weight_orig * pruned[6].weight_mask)
            model[8].bias.copy_(pruned[8].bias_orig * pruned[8].bias_mask)
        return model.eval()

    def test_distances_are_those_of_the_pruned_weights(self, pruned, permanent, unchanged):
        with unchanged(pruned):
            found = flat_weights(pruned)
        assert torch.equal(found, flat_weights(permanent))
        removed = copy.deepcopy(permanent)
        removed[0]._parameters["bias"] = removed[0]._parameters.pop("bias")
        assert l2_distance(pruned, removed) == 0

    def test_zeros_are_not_active(self, pruned, permanent, examples, unchanged):
        images, labels = examples()
        with unchanged(pruned):
            found = hessian(pruned, images, labels)
        exact = hessian(permanent, images, labels)
        # The bias that was pruned is a vector: without its mask, the 0 would count.
        rows = torch.ones(len(exact.matrix), dtype=torch.bool)
        rows[exact.names["8.bias"]] = permanent[8].bias.detach() != 0
        order = torch.cat([torch.arange(len(rows))[exact.names[name]] for name in found.names])
        order = order[rows[order]]
        assert active_size(pruned) == len(found.matrix) == len(order) == len(rows) - 1
        assert found.names.keys() == exact.names.keys()
        torch.testing.assert_close(found.matrix, exact.matrix[order][:, order], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("include_zeros", [False, True])
    def test_products_are_those_of_the_matrix(self, pruned, examples, unchanged, include_zeros):
        images, labels = examples()
        exact = hessian(pruned, images, labels, include_zeros=include_zeros).matrix
        vector = random_vector(len(exact))
        with unchanged(pruned):
            found = hessian_vector_product(pruned, images, labels, vector, include_zeros=include_zeros)
        torch.testing.assert_close(found, exact @ vector, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("as_modules", [False, True])
    def test_paths_are_between_the_pruned_networks(self, pruned, permanent, examples, as_modules):
        images = examples()[0]
        end = pruned if as_modules else pruned.state_dict()
        (found,) = interpolate(pruned, permanent, end, [1], lambda twin: predict(twin, images))
        assert torch.equal(found, predict(pruned, images))

    def test_a_shared_weight_with_two_masks_is_refused(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        prune.random_unstructured(model[0], "weight", 0.5)
        with pytest.raises(ValueError, match=r"'0\.weight_orig' and '1\.weight'"):
            flat_weights(model)
        with pytest.raises(ValueError, match="prune a shared parameter in all layers alike"):
            active_size(model)
        prune.custom_from_mask(model[1], "weight", model[0].weight_mask)
        assert len(flat_weights(model)) == 16 + 2 * 4


class TestLearnedMasks:
    """Of `straight_through_`: the network is that of evaluation mode, and scores are no weights of it."""

    @pytest.fixture(params=["edge_popup", "sigmoid"])
    def scored(self, network, request):
        model = network()
        generator = torch.Generator().manual_seed(3)
        sk.methods.straight_through_(model, 0.6, request.param, exclude=["8"], generator=generator)
        return model

    @pytest.fixture
    def fixed(self, scored):
        model = copy.deepcopy(scored)
        sk.methods.fix_learned_masks_(model)
        return model

    def test_distances_are_those_of_the_fixed_network(self, scored, fixed, unchanged):
        with unchanged(scored):
            found = flat_weights(scored)
        assert torch.equal(found, flat_weights(fixed))
        assert l2_distance(scored, fixed) == 0
        assert torch.equal(flat_weights(scored[6], biases=False), flat_weights(fixed[6]))

    def test_hessian_is_that_of_the_fixed_network(self, scored, fixed, examples, unchanged):
        images, labels = examples()
        with unchanged(scored):
            found = hessian(scored, images, labels)
        expected = hessian(fixed, images, labels)
        assert active_size(scored) == active_size(fixed) == len(expected.matrix)
        assert found.names.keys() == expected.names.keys()
        rows = torch.arange(len(expected.matrix))
        order = torch.cat([rows[expected.names[name]] for name in found.names])
        torch.testing.assert_close(found.matrix, expected.matrix[order][:, order], rtol=1e-12, atol=1e-14)

    def test_products_are_refused(self, scored, examples, unchanged):
        vector = torch.ones(active_size(scored))
        text = r"model must not have .* straight_through_.* got '0\.weight'; use .* fix_learned_masks_"
        with unchanged(scored), pytest.raises(TypeError, match=text):
            hessian_vector_product(scored, *examples(), vector)

    @pytest.mark.parametrize("as_modules", [False, True])
    def test_paths_are_between_the_fixed_networks(self, scored, fixed, network, examples, as_modules):
        images = examples()[0]
        end = scored if as_modules else scored.state_dict()
        (found,) = interpolate(scored, network(), end, [1], lambda twin: predict(twin, images))
        torch.testing.assert_close(found, predict(fixed, images), rtol=1e-12, atol=1e-15)

    def test_weights_that_will_not_be_trained_do_not_count(self, network, examples):
        model = network()
        model[0].weight.requires_grad_(False)
        sk.methods.straight_through_(model, 0.6, exclude=["6", "8"])
        assert "0.weight" not in hessian(model, *examples()).names
        size = active_size(model)
        exact = hessian(model, *examples()).matrix
        vector = random_vector(size)
        found = hessian_vector_product(model, *examples(), vector)
        torch.testing.assert_close(found, exact @ vector, rtol=1e-9, atol=1e-12)
        assert len(flat_weights(model)) == len(flat_weights(network())) - 54


def test_older_weight_norm_can_be_copied():
    with pytest.warns(FutureWarning):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 3))).double()
    inputs = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(inputs)  # the weight has a graph now
    assert len(flat_weights(model)) == 3 + 3 + 18
    model(inputs)
    (found,) = interpolate(model, model, model.state_dict(), [0.5], lambda twin: predict(twin, inputs))
    torch.testing.assert_close(found, predict(model, inputs))
    assert gradient_flow(model, lambda model: model(inputs).square().mean()).norm > 0


def test_int8_weights_are_not_trained():
    """They stand for integers: what is measured of trained parameters leaves them out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    sk.sparsify_(model, pattern="2:4", exclude=["2"], method="fixed")
    sk.nn.quantize_int8_(model)
    last = torch.cat([tensor.detach().flatten() for tensor in model[2].parameters()]).double()
    assert torch.equal(flat_weights(model), last)
    assert torch.equal(flat_weights(nn.Sequential(*model)), last)
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        flat_weights(model[0])
