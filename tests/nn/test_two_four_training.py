"""Training with 2:4 weights is the training of a masked dense model, step by step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsekern.nn import TwoFourConv2d, TwoFourLayer, TwoFourLinear, sparsify_
from tests.processes import one_thread

__all__ = ["one_thread"]  # for all tests here

NAMES = ("0", "2", "5")
FORMS = {
    "SR-STE": {"method": "sr_ste", "decay": 0.05},
    "STE": {"method": "ste"},
    "transposable": {"method": "sr_ste", "transposable": True, "decay": 0.05},
    "held": {"method": "sr_ste", "refresh_every": 3, "decay": 0.05},
    "held, transposable": {"method": "ste", "refresh_every": 4, "transposable": True},
    "fixed": {"method": "fixed"},
    "fixed, transposable": {"method": "fixed", "transposable": True},
}
OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 2e-2, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(
        parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 12, 1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).double()


def batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(6, 4, 4, 4, generator=generator, dtype=torch.float64)
    return x.to(memory_format=torch.channels_last), torch.randint(3, (6,), generator=generator)


def sparse_network(**form):
    model = network()
    report = sparsify_(model, pattern="2:4", exclude=["7"], **form)
    assert [layer.name for layer in report.converted] == list(NAMES)
    return model


def dense_weights(model):
    """Those of the 2:4 layers as their optimizer sees them, 0 where nothing is stored."""
    layers = [model.get_submodule(name) for name in NAMES]
    return [layer.to_dense() if layer.method == "fixed" else layer.weight for layer in layers]


def assert_same_weights(model, twin):
    for name, weight in zip(NAMES, dense_weights(model), strict=True):
        theirs = twin.model.get_parameter(f"{name}.weight").detach()
        if twin.method == "fixed":
            theirs = theirs * twin.masks[name]
        torch.testing.assert_close(weight.detach(), theirs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(model[7].weight, twin.model[7].weight, rtol=1e-9, atol=1e-11)


def step_of(model, optimizer, twin, its_optimizer, step, accumulate=1, forward=nn.Module.__call__):
    """One step of both on the same batch, cut in parts."""
    optimizer.zero_grad()
    its_optimizer.zero_grad()
    twin.choose()
    for x, labels in zip(*(part.chunk(accumulate) for part in batch(step)), strict=True):
        (F.cross_entropy(forward(model, x), labels) / accumulate).backward()
        (F.cross_entropy(twin(x), labels) / accumulate + twin.added()).backward()
    for name in NAMES:
        layer = model.get_submodule(name)
        assert torch.equal(layer.mask, twin.masks[name])
    optimizer.step()
    its_optimizer.step()
    twin.changes += 1


def pair(form, make_optimizer, dense):
    form = {"decay": 0.0, **FORMS[form]}
    model = sparse_network(**form)
    twin = dense.Twin(network(), NAMES, **form)
    return model, make_optimizer(model.parameters()), twin, make_optimizer(twin.model.parameters())


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("form", FORMS)
def test_twenty_steps_are_those_of_the_masked_dense_model(form, make_optimizer, dense):
    run = pair(form, make_optimizer, dense)
    first = [mask.clone() for mask in run[2].masks.values()]
    for step in range(20):
        step_of(*run, step)
    assert_same_weights(run[0], run[2])
    moved = [not torch.equal(*masks) for masks in zip(first, run[2].masks.values(), strict=True)]
    assert any(moved) == (run[2].method != "fixed")


@pytest.mark.parametrize("form", ["SR-STE", "held", "fixed"])
def test_accumulation(form, dense):
    """The decay comes once for each backward pass, in both."""
    run = pair(form, OPTIMIZERS["AdamW"], dense)
    for step in range(8):
        step_of(*run, step, accumulate=3)
    assert_same_weights(run[0], run[2])


def test_a_decay_divided_by_the_passes_is_that_of_one_pass():
    model, other = (sparse_network(method="sr_ste", decay=0.3) for _ in range(2))
    for layer in other.modules():
        if isinstance(layer, TwoFourLayer):
            layer.decay = 0.3 / 2
    x, labels = batch(0)
    F.cross_entropy(model(x), labels).backward()
    for part, their_labels in zip(x.chunk(2), labels.chunk(2), strict=True):
        (F.cross_entropy(other(part), their_labels) / 2).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("form", ["SR-STE", "held", "fixed"])
def test_checkpointing(form, reentrant, dense):
    run = pair(form, OPTIMIZERS["AdamW"], dense)

    def forward(model, x):
        y = checkpoint(model[:4], x.requires_grad_(), use_reentrant=reentrant)
        return checkpoint(model[4:], y, use_reentrant=reentrant)

    for step in range(8):
        step_of(*run, step, forward=forward)
    assert_same_weights(run[0], run[2])


@pytest.mark.parametrize("form", ["SR-STE", "transposable", "held", "fixed"])
def test_autocast(form):
    """Products in bfloat16 of masks chosen in float32; gradients in float32."""
    torch.manual_seed(0)
    options = {"decay": 0.05 if FORMS[form]["method"] == "sr_ste" else 0.0, **FORMS[form]}
    layer = TwoFourLinear(64, 32, **options)
    x = torch.randn(16, 64)
    mask = layer.mask
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    weight = layer.to_dense().detach()
    torch.testing.assert_close(y.float(), F.linear(x, weight, layer.bias), rtol=0.02, atol=0.02)
    y.float().sum().backward()
    gradient = layer.stored_weight.grad
    assert gradient.dtype == layer.bias.grad.dtype == torch.float32
    expected = x.sum(0).expand(32, 64)
    if options["method"] == "fixed":
        expected = expected[mask].view(32, 32)
    else:
        expected = expected + options["decay"] * (layer.weight * ~mask).detach()
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dense_below", [0, 1000], ids=["packed", "dense below"])
@pytest.mark.parametrize("form", ["SR-STE", "transposable", "fixed"])
def test_compiles_as_one_graph(form, dense_below):
    torch.compiler.reset()
    model = sparse_network(dense_below=dense_below, **FORMS[form]).float()
    copied = copy.deepcopy(model)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    optimizers = [torch.optim.AdamW(each.parameters(), 1e-2) for each in (model, compiled)]
    for step in range(4):
        x, labels = batch(step)
        for each, optimizer in zip((model, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(each(x.float()), labels).backward()
            optimizer.step()
    for mine, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    model.eval()
    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x.float()), model(x.float()))
        for each in (model, copied):
            each[5].stored_weight.neg_()
        torch.testing.assert_close(compiled(x.float()), model(x.float()))


def test_a_held_mask_leaves_the_graph():
    torch.compiler.reset()
    model = sparse_network(**FORMS["held"]).float()
    copied = copy.deepcopy(model)
    compiled = torch.compile(copied, backend="aot_eager")
    optimizers = [torch.optim.AdamW(each.parameters(), 0.1) for each in (model, compiled)]
    for step in range(7):
        x, labels = batch(step)
        for each, optimizer in zip((model, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(each(x.float()), labels).backward()
            optimizer.step()
        assert torch.equal(model[5].mask, copied[5].mask)
    for mine, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", ["SR-STE", "held", "fixed"])
def test_an_encoder_learns(form):
    """Of BERT's shape, and tiny: which of the words is in the sentence twice?"""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    model = nn.Sequential(nn.Embedding(12, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 12))
    report = sparsify_(model, pattern="2:4", **FORMS[form])
    assert len([entry for entry in report.converted if ".linear" in entry.name]) == 4
    assert {entry.name: entry.reason for entry in report.left}["1.layers.0.self_attn"] is not None
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(150):
        words = torch.rand(64, 12).argsort(1)[:, :8]
        words[:, -1] = words[torch.arange(64), torch.randint(7, (64,))]
        loss = F.cross_entropy(model(words).mean(1), words[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    model.eval()
    with torch.no_grad():
        accuracy = (model(words).mean(1).argmax(1) == words[:, -1]).double().mean()
    assert accuracy > 0.5


def test_convolutions_and_linear_layers_are_both_there():
    model = sparse_network(method="sr_ste")
    assert [type(model.get_submodule(name)) for name in NAMES] == [
        TwoFourConv2d,
        TwoFourConv2d,
        TwoFourLinear,
    ]
