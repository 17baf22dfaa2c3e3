import math

import pytest
import torch
import torch.nn.functional as F

from sparsekern.experiments.models import DATA_OF, MLP, MODELS, LeNet5

MNIST_MODELS = [name for name in MODELS if "mnist" in DATA_OF[name]]


def build(name, seed=0):
    return MODELS[name][1](torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [("lenet5", 44_190, 236), ("mlp", 266_200, 410), ("small-lenet5", 2_336, 63), ("small-mlp", 6_416, 26)],
)
def test_parameter_counts_are_those_of_the_paper(name, weights, biases):
    parameters = dict(build(name).named_parameters())
    assert sum(p.numel() for n, p in parameters.items() if n.endswith("weight")) == weights
    assert sum(p.numel() for n, p in parameters.items() if n.endswith("bias")) == biases


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lenet5", [(6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)]),
        ("small-lenet5", [(3, 1, 5, 5), (3, 3, 5, 5), (27, 48), (20, 27), (10, 20)]),
        ("mlp", [(300, 784), (100, 300), (10, 100)]),
        ("small-mlp", [(8, 784), (8, 8), (10, 8)]),
    ],
)
def test_layer_shapes(name, shapes):
    assert [tuple(p.shape) for n, p in build(name).named_parameters() if n.endswith("weight")] == shapes


@pytest.mark.parametrize("name", MNIST_MODELS)
def test_initial_weights_are_glorot_uniform_and_biases_zero(name):
    for parameter_name, parameter in build(name).named_parameters():
        if parameter_name.endswith("bias"):
            assert parameter.eq(0).all()
            continue
        area = math.prod(parameter.shape[2:])
        bound = math.sqrt(6 / (area * (parameter.shape[0] + parameter.shape[1])))
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.8 * bound
        if parameter.numel() > 1000:
            assert parameter.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


@pytest.mark.parametrize("name", MNIST_MODELS)
def test_weights_depend_on_the_generator_only(name):
    state = torch.get_rng_state()
    first, second, other = build(name, 1), build(name, 1), build(name, 2)
    assert torch.equal(state, torch.get_rng_state())
    weights = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["fc1.weight"], weights[2]["fc1.weight"])


def lenet5_as_written_in_the_paper(model, x):
    x = F.max_pool2d(F.relu(F.conv2d(x, model.conv1.weight, model.conv1.bias)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, model.conv2.weight, model.conv2.bias)), 2)
    x = F.relu(F.linear(x.reshape(len(x), 256), model.fc1.weight, model.fc1.bias))
    x = F.relu(F.linear(x, model.fc2.weight, model.fc2.bias))
    return F.linear(x, model.fc3.weight, model.fc3.bias)


def test_lenet5_pools_before_relu_with_the_same_outputs_and_gradients():
    generator = torch.Generator().manual_seed(0)
    model = LeNet5(generator=generator).double()
    images = torch.rand(8, 1, 28, 28, generator=generator, dtype=torch.float64)
    labels = torch.arange(8)
    ours, written = model(images), lenet5_as_written_in_the_paper(model, images)
    assert ours.shape == (8, 10)
    torch.testing.assert_close(ours, written, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(ours, labels), parameters)
    expected = torch.autograd.grad(F.cross_entropy(written, labels), parameters)
    for gradient, reference in zip(gradients, expected):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)


def test_mlp_is_three_linear_layers():
    generator = torch.Generator().manual_seed(0)
    model = MLP(generator=generator).double()
    x = torch.rand(4, 1, 28, 28, generator=generator, dtype=torch.float64)
    h = (x.reshape(4, 784) @ model.fc1.weight.T).clamp(min=0)
    h = (h @ model.fc2.weight.T).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.fc3.weight.T, rtol=1e-12, atol=1e-12)
