"""fix_masks_: dense weights with 2:4 masks become packed ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.nn import TwoFourConv2d, TwoFourLayer, TwoFourLinear, fix_masks_, sparsify_


def network(**keywords):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(72, 10), nn.Linear(10, 5)
    )
    sparsify_(model, pattern="2:4", **keywords)
    return model


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "keywords", [{}, {"method": "ste"}, {"refresh_every": 5, "dense_below": 2}], ids=["SR-STE", "STE", "held"]
)
def test_what_was_computed_is_computed(keywords, training):
    model, x = network(**keywords), torch.randn(2, 4, 5, 5)
    model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model[4].weight.requires_grad_(False)
    model.train(training)
    with torch.no_grad():
        expected = model(x)
    assert fix_masks_(model) == ["0", "2", "4"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    for layer in model.modules():
        if isinstance(layer, TwoFourLayer):
            assert (layer.method, layer.refresh_every, layer.decay) == ("fixed", 1, 0)
            assert layer.dense_below == keywords.get("dense_below", 0)
            assert layer.training == training
            assert layer.values.requires_grad == (layer is not model[4])
    assert fix_masks_(model) == []


def test_the_mask_stays_in_fine_tuning():
    model = network()
    fix_masks_(model)
    masks = [layer.mask for layer in model.modules() if isinstance(layer, TwoFourLayer)]
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 5, 5)).square().sum().backward()
        optimizer.step()
    after = [layer.mask for layer in model.modules() if isinstance(layer, TwoFourLayer)]
    assert all(torch.equal(*pair) for pair in zip(masks, after, strict=True))
    state = model.state_dict()
    assert state["4.values"].shape == (10, 36)
    other = network(method="fixed")
    other.load_state_dict(state)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(other(x), model(x))


def test_shared_weights_stay_shared():
    model = nn.ModuleList([TwoFourLinear(8, 8), TwoFourLinear(8, 8), TwoFourLinear(8, 8)])
    model[2].tie_weight(model[0])
    mask = model[0].mask
    assert fix_masks_(model) == ["0", "1", "2"]
    assert model[0].values is model[2].values
    assert model[1].values is not model[0].values
    assert torch.equal(model[0].mask, mask)
    assert torch.equal(model[2].mask, mask)


def test_a_single_layer():
    layer = TwoFourConv2d(4, 4, 3)
    dense = layer.to_dense()
    assert fix_masks_(layer) == [""]
    assert layer.fix_mask_() is layer
    assert torch.equal(layer.to_dense(), dense)


def test_hooks_and_the_bias_stay():
    layer, calls = TwoFourLinear(8, 8), []
    bias = layer.bias
    layer.register_forward_hook(lambda *arguments: calls.append(1))
    layer.fix_mask_()(torch.randn(2, 8))
    assert calls == [1]
    assert layer.bias is bias


def test_nothing_is_changed_where_a_weight_is_not_finite():
    model = network()
    with torch.no_grad():
        model[4].weight[3, 5] = torch.inf
    with pytest.raises(ValueError, match="expected finite values, got inf at row 3, column 5"):
        fix_masks_(model)
    assert [layer.method for layer in model.modules() if isinstance(layer, TwoFourLayer)] == ["sr_ste"] * 3


def test_refuses(ddp):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 'model'"):
        fix_masks_("model")
    with pytest.raises(ValueError, match="model must not be wrapped in DistributedDataParallel"):
        fix_masks_(ddp(network()))
