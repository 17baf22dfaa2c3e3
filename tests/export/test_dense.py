"""Packed weights as those of a dense model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern import export
from tests.export.networks import X, dense_network, network


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("source", ["model", "state"])
def test_the_dense_model_computes_the_same(storage, source):
    model = network(storage).eval()
    state = (
        export.dense_state_dict(model)
        if source == "model"
        else export.dense_from_packed({key: value.clone() for key, value in model.state_dict().items()})
    )
    dense = dense_network().eval()
    assert list(state) == list(dense.state_dict())
    dense.load_state_dict(state)
    torch.testing.assert_close(dense(X), model(X))
    assert torch.equal(dense[3].weight, model[3].to_dense())


def test_tied_layers_have_both_names():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    sk.sparsify_(model, sparsity=0.5)
    state = export.dense_state_dict(model)
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_single_layer_has_no_prefix():
    layer = sk.nn.SparseLinear(8, 4, sparsity=0.5)
    assert list(export.dense_state_dict(layer)) == ["weight", "bias"]
    assert torch.equal(export.dense_from_packed(layer.state_dict())["weight"], layer.to_dense())


def test_two_four_state():
    weight = torch.randn(6, 12, generator=torch.manual_seed(0))
    for columns in (4, 8, 12):
        packed = sk.ops.pack_two_four(weight[:, :columns])
        expected = sk.ops.unpack_two_four(packed)
        state = {"a.values": packed.values, "a.metadata": packed.metadata, "b.weight": weight}
        dense = export.dense_from_packed(state)
        assert torch.equal(dense["a.weight"], expected)
        assert dense["b.weight"] is weight
        masked = export.dense_from_packed({"weight": weight[:, :columns], "metadata": packed.metadata})
        assert torch.equal(masked["weight"], expected)


def test_what_does_not_fit_names_the_layer():
    model = network()
    state = model.state_dict()
    state["3.values"] = state["3.values"][:-1]
    with pytest.raises(ValueError, match=r"state must have a weight for the pattern of '3\.values'"):
        export.dense_from_packed(state)
    packed = sk.ops.pack_two_four(torch.randn(4, 8))
    wrong = {"a.values": packed.values, "a.metadata": torch.zeros_like(packed.metadata)}
    with pytest.raises(ValueError, match=r"metadata of 'a.values': metadata must have two ascending columns"):
        export.dense_from_packed(wrong)


@pytest.mark.parametrize(
    "options",
    [{"method": "fixed"}, {"method": "sr_ste", "refresh_every": 3}],
    ids=["fixed", "held"],
)
def test_states_of_two_four_layers(options):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    sk.sparsify_(model, pattern="2:4", **options)
    model(torch.randn(3, 16))
    state = export.dense_from_packed(model.state_dict())
    assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(state["0.weight"], model[0].to_dense())
    if options["method"] == "fixed":
        sk.nn.quantize_int8_(model.eval())
        state = export.dense_from_packed(model.state_dict())
        assert torch.equal(state["0.weight"], model[0].to_dense())
        assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_state_of_a_two_four_convolution_that_is_trained():
    model = nn.Sequential(nn.Conv2d(8, 4, 3))
    sk.sparsify_(model, pattern="2:4", refresh_every=2)
    model(torch.randn(1, 8, 5, 5))
    state = export.dense_from_packed(model.state_dict())
    assert torch.equal(state["0.weight"], model[0].to_dense())


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        export.dense_state_dict({"a": 1})
