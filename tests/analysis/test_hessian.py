"""The Hessian against closed forms and against autograd's, entry by entry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import sparsekern as sk
from sparsekern.analysis import Hessian, hessian

STORAGES = [None, "compact", "masked"]


def dense_and_active(model):
    """The dense twin in evaluation mode, and a bool vector of what counts, made from masks and zeros."""
    active = []
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if name.endswith("bias") or (parameter.dim() < 2 and not isinstance(layer, sk.nn.SparseLayer)):
            active.append(torch.ones(parameter.numel(), dtype=torch.bool))
        elif isinstance(layer, sk.nn.SparseLayer):
            active.append(layer.mask.flatten())
        else:
            active.append(parameter.detach().flatten() != 0)
    twin = torch.nn.Sequential(*model)
    sk.densify_(twin)
    return twin.eval(), torch.cat(active)


def reference(model, images, labels, criterion=F.cross_entropy):
    """By autograd, over one vector of all entries of the dense network; then the active ones."""
    twin, active = dense_and_active(model)
    shapes = {name: parameter.shape for name, parameter in twin.named_parameters()}

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
        return criterion(functional_call(twin, weights, (images,)), labels)

    vector = torch.cat([parameter.detach().flatten() for parameter in twin.parameters()])
    return torch.autograd.functional.hessian(loss, vector)[active][:, active]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("examples_at_once", "columns_at_once"), [(3, 4), (100, 1000)])
def test_is_that_of_autograd(network, examples, unchanged, storage, examples_at_once, columns_at_once):
    model, (images, labels) = network(storage), examples()
    with unchanged(model):
        found = hessian(
            model, images, labels, examples_at_once=examples_at_once, columns_at_once=columns_at_once
        )
    expected = reference(model, images, labels)
    assert found.matrix.dtype == torch.float64
    assert torch.equal(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.eigenvalues(), torch.linalg.eigvalsh(expected), rtol=1e-8, atol=1e-12)


def test_of_a_model_that_runs_backwards(examples):
    """Registered in another order than it runs in: no matter."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.first = nn.Linear(84, 4)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x.flatten(1))))

    torch.manual_seed(0)
    model, (images, labels) = Backwards().double(), examples()
    found = hessian(model, images, labels)
    same = nn.Sequential(nn.Flatten(), model.first, nn.Tanh(), model.last)
    expected = hessian(same, images, labels)
    assert list(found.names) == ["last.weight", "last.bias", "first.weight", "first.bias"]
    order = torch.arange(len(expected.matrix)).roll(15)
    torch.testing.assert_close(found.matrix, expected.matrix[order][:, order], rtol=1e-9, atol=1e-13)


def test_of_least_squares_is_the_second_moment():
    inputs = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    found = hessian(model, inputs, torch.zeros(11, 1, dtype=torch.float64), nn.MSELoss(), examples_at_once=4)
    torch.testing.assert_close(found.matrix, 2 * inputs.T @ inputs / 11, rtol=1e-12, atol=1e-14)


def test_float32_is_near_float64(network, examples):
    model, (images, labels) = network("compact"), examples()
    expected = hessian(model, images, labels).matrix
    found = hessian(model.float(), images.float(), labels).matrix
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_sums_over_parts_are_float64():
    """2 x^2 / 64 of 64 inputs: in float32, those of 1 would be lost beside that of 4096."""
    inputs = torch.ones(64, 1)
    inputs[0] = 4096
    found = hessian(nn.Linear(1, 1, bias=False), inputs, torch.zeros(64, 1), F.mse_loss, examples_at_once=1)
    assert found.matrix.tolist() == [[2 * (4096**2 + 63) / 64]]


class Tempered(nn.Module):
    """With a parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(84, 3)
        self.logit_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, images):
        return self.linear(images.flatten(1)) * self.logit_scale.exp()


@pytest.mark.parametrize("columns_at_once", [1, 64])
def test_a_parameter_that_is_one_number(examples, columns_at_once):
    torch.manual_seed(0)
    model, (images, labels) = Tempered().double(), examples()
    found = hessian(model, images, labels, columns_at_once=columns_at_once)
    assert found.names["logit_scale"].stop - found.names["logit_scale"].start == 1
    products = [
        sk.analysis.hessian_vector_product(model, images, labels, vector)
        for vector in torch.eye(len(found.matrix), dtype=torch.float64)
    ]
    torch.testing.assert_close(found.matrix, torch.stack(products), rtol=1e-9, atol=1e-12)


class TestTheCoordinates:
    def test_names_are_those_of_the_dense_model(self, network, examples):
        model = network("compact")
        names = hessian(model, *examples()).names
        ends = [slice_.stop for slice_ in names.values()]
        assert [slice_.start for slice_ in names.values()] == [0, *ends[:-1]]
        sizes = {name: slice_.stop - slice_.start for name, slice_ in names.items()}
        assert sizes == {
            "0.weight": model[0].pattern.nnz,
            "0.bias": 3,
            "1.weight": 3,
            "1.bias": 3,
            "6.weight": model[6].pattern.nnz,
            "8.weight": 15,
            "8.bias": 3,
        }

    def test_zeros_of_a_dense_weight_count_when_asked_for(self, network, examples):
        model, (images, labels) = network(), examples()
        with torch.no_grad():
            model[6].weight[1:4] = 0
            model[8].bias.zero_()
        every = hessian(model, images, labels, include_zeros=True)
        some = hessian(model, images, labels)
        rows = torch.ones(len(every.matrix), dtype=torch.bool)
        rows[every.names["6.weight"].start + 6 : every.names["6.weight"].start + 24] = False
        assert len(some.matrix) == len(every.matrix) - 18
        torch.testing.assert_close(some.matrix, every.matrix[rows][:, rows], rtol=1e-12, atol=1e-14)

    def test_active_zeros_of_a_sparse_layer_count(self, network, examples):
        model, (images, labels) = network("compact"), examples()
        with torch.no_grad():
            model[6].values[0] = 0
        size = hessian(model, images, labels).names["6.weight"]
        assert size.stop - size.start == model[6].pattern.nnz

    def test_frozen_parameters_are_left_out(self, network, examples):
        model = network()
        model[8].requires_grad_(False)
        assert "8.weight" not in hessian(model, *examples()).names

    def test_tied_weights_count_once(self, examples):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(84, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3))
        model[4].weight = model[3].weight
        model.double()
        images, labels = examples()
        found = hessian(model, images, labels)
        assert list(found.names) == ["1.weight", "1.bias", "3.weight", "3.bias", "4.bias"]
        vector = torch.ones(len(found.matrix), dtype=torch.float64)
        product = sk.analysis.hessian_vector_product(model, images, labels, vector)
        torch.testing.assert_close(found.matrix @ vector, product, rtol=1e-9, atol=1e-12)

    def test_a_single_sparse_layer(self):
        layer = sk.nn.SparseLinear(6, 4, sparsity=0.5, dtype=torch.float64)
        inputs = torch.randn(5, 6, dtype=torch.float64)
        found = hessian(layer, inputs, torch.tensor([0, 1, 2, 3, 0]))
        assert list(found.names) == ["weight", "bias"]
        assert found.matrix.shape == (16, 16)

    def test_layers_packed_two_four(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
        sk.sparsify_(model, pattern="2:4", exclude=["2"])
        found = hessian(model, torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]))
        assert found.names["0.weight"] == slice(0, 16)


def test_attention():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Flatten(), nn.Linear(12, 2)
    )
    model.double()
    inputs, labels = torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 0])
    found = hessian(model, inputs, labels)
    vector = torch.randn(len(found.matrix), dtype=torch.float64)
    product = sk.analysis.hessian_vector_product(model, inputs, labels, vector)
    torch.testing.assert_close(found.matrix @ vector, product, rtol=1e-8, atol=1e-11)


def test_progress_counts_columns(network, examples):
    calls = []
    found = hessian(
        network("compact"), *examples(), columns_at_once=9, progress=lambda *numbers: calls.append(numbers)
    )
    total = len(found.matrix)
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"model": 3}, TypeError, "model must be a torch.nn.Module, got 3"),
            ({"inputs": [1]}, TypeError, "inputs must be a tensor"),
            ({"inputs": torch.zeros(0, 2, 7, 6)}, ValueError, "inputs must have at least one example"),
            (
                {"targets": torch.zeros(3).long()},
                ValueError,
                "targets must be for the 7 examples of inputs, got 3",
            ),
            ({"criterion": 1}, TypeError, "criterion must be a function"),
            ({"criterion": lambda z, y: z}, TypeError, "criterion must return a scalar"),
            ({"include_zeros": 1}, TypeError, "include_zeros must be True or False"),
            ({"examples_at_once": 0}, ValueError, "examples_at_once must be at least 1"),
            ({"columns_at_once": 1.5}, TypeError, "columns_at_once must be an integer"),
            ({"progress": 1}, TypeError, "progress must be a function"),
        ],
    )
    def test_one_for_each_argument(self, network, examples, unchanged, change, error, text):
        model, (images, labels) = network("compact"), examples()
        arguments = {"model": model, "inputs": images, "targets": labels} | change
        with unchanged(model), pytest.raises(error, match=text):
            hessian(**arguments)

    def test_nothing_to_differentiate_by(self, network, examples):
        with pytest.raises(ValueError, match="model must have a trainable parameter"):
            hessian(network().requires_grad_(False), *examples())

    def test_lazy_parameters(self, examples):
        with pytest.raises(ValueError, match=r"model must have parameters with contents, got '1\.weight'"):
            hessian(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), *examples())

    def test_eigenvalues_of_what_is_not_finite(self):
        with pytest.raises(ValueError, match="matrix must be finite"):
            Hessian(torch.full((2, 2), torch.nan), {}).eigenvalues()
