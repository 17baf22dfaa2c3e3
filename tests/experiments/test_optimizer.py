import pytest
import torch
from torch import nn

from sparsekern.experiments.models import LeNet5
from sparsekern.experiments.optimizer import build_optimizer, split_parameters
from sparsekern.experiments.recipe import load_recipe
from sparsekern.nn import SparseLinear


@pytest.fixture
def recipe():
    return load_recipe("lenet5-digits").override(
        {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.02}
    )


def test_weights_decay_and_biases_do_not():
    model = LeNet5()
    weights, others = split_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in weights] == [f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2", "fc3")]
    assert [names[id(p)] for p in others] == [f"{n}.bias" for n in ("conv1", "conv2", "fc1", "fc2", "fc3")]


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_the_weight_of_a_sparse_layer_decays_in_both_storages(storage):
    layer = SparseLinear(8, 4, sparsity=0.5, storage=storage)
    weights, others = split_parameters(layer)
    assert [id(p) for p in weights] == [id(layer.stored_weight)]
    assert [id(p) for p in others] == [id(layer.bias)]


def test_the_scale_of_a_normalization_does_not_decay():
    weights, others = split_parameters(nn.BatchNorm2d(4))
    assert weights == []
    assert len(others) == 2


def test_sgd_step_by_hand(recipe):
    layer = nn.Linear(2, 1)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = build_optimizer(layer, recipe)
    velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step()
        # weight_decay 0.02 is Keras' l2(0.01): the gradient of 0.01 * sum(w**2).
        velocity = (
            0.5 * velocity[0] + torch.tensor([[1.0, 2.0]]) + 2 * 0.01 * weight,
            0.5 * velocity[1] + 1.0,
        )
        weight, bias = weight - 0.1 * velocity[0], bias - 0.1 * velocity[1]
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer.bias.detach(), bias)


def test_nesterov_steps_by_hand(recipe):
    layer = nn.Linear(2, 1, bias=False)
    weight, velocity = layer.weight.detach().clone(), torch.zeros(1, 2)
    optimizer = build_optimizer(layer, recipe.override({"nesterov": True, "weight_decay": 0}))
    for step in range(1, 4):
        optimizer.zero_grad()
        (step * layer(torch.tensor([[1.0, 2.0]]))).sum().backward()
        optimizer.step()
        gradient = step * torch.tensor([[1.0, 2.0]])
        velocity = 0.5 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.5 * velocity)
    torch.testing.assert_close(layer.weight.detach(), weight)


def test_adamw_takes_momentum_as_its_first_beta(recipe):
    optimizer = build_optimizer(nn.Linear(2, 1), recipe.override({"optimizer": "adamw"}))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.999)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
