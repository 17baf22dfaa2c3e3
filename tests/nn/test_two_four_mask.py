"""When a 2:4 mask is chosen anew, and what is kept between forward passes."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparsekern import ops
from sparsekern.nn import TwoFourConv2d, TwoFourLinear


@pytest.fixture
def packings(monkeypatch):
    """A list that gets longer whenever a weight is packed."""
    calls, pack = [], ops.pack_two_four
    monkeypatch.setattr(ops, "pack_two_four", lambda *a, **k: calls.append(1) or pack(*a, **k))
    return calls


def make_layer(refresh_every=1, kind=TwoFourLinear, seed=0, **keywords):
    sizes = (16, 8) if kind is TwoFourLinear else (16, 8, 3)
    generator = torch.Generator().manual_seed(seed)
    return kind(*sizes, refresh_every=refresh_every, generator=generator, **keywords)


def draw(layer, seed=1):
    shape = (4, 16) if isinstance(layer, TwoFourLinear) else (2, 16, 5, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def change(layer, seed):
    """As a step of an optimizer: another weight altogether, written in place."""
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("kind", [TwoFourLinear, TwoFourConv2d])
@pytest.mark.parametrize("transposable", [False, True], ids=["rows", "transposable"])
def test_the_mask_is_kept_for_so_many_changes(kind, transposable, dense):
    layer, of_weight = make_layer(3, kind, transposable=transposable), dense.masks[transposable]
    x, masks, chosen = draw(layer), [], []
    for step in range(8):
        change(layer, step)
        layer(x)
        masks.append(layer.mask)
        chosen.append(of_weight(layer.weight))
    for step, mask in enumerate(masks):
        assert torch.equal(mask, chosen[step // 3 * 3])


def test_values_follow_the_weight_while_the_mask_is_kept():
    layer = make_layer(3)
    x = draw(layer)
    layer(x)
    mask = layer.mask
    change(layer, 5)
    y = layer(x)
    assert torch.equal(layer.mask, mask)
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight * mask, layer.bias))


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_several_passes_between_two_changes_are_one(gradients):
    layer, masks = make_layer(2), []
    for step in range(5):
        change(layer, step)
        with torch.set_grad_enabled(gradients):
            for _ in range(3):
                layer(draw(layer))
        masks.append(layer.mask)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[3], masks[4])


def test_a_step_that_writes_several_times_is_one_change():
    layer = make_layer(2)
    optimizer = torch.optim.AdamW(layer.parameters(), 10.0, weight_decay=0.5)
    masks = []
    for _ in range(4):
        optimizer.zero_grad()
        layer(draw(layer)).square().sum().backward()
        masks.append(layer.mask)
        version = layer.weight._version
        optimizer.step()
        assert layer.weight._version > version + 1
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert torch.equal(masks[2], masks[3])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_a_recomputed_pass_has_the_mask_of_the_first(refresh_every, reentrant):
    layers = [make_layer(refresh_every, decay=0.1) for _ in range(2)]
    for step in range(5):
        gradients = []
        for layer in layers:
            change(layer, step)
            layer.zero_grad()
            x = draw(layer).requires_grad_()
            y = layer(x) if layer is layers[0] else checkpoint(layer, x, use_reentrant=reentrant)
            y.square().sum().backward()
            gradients.append((x.grad, layer.weight.grad))
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
        assert torch.equal(layers[0].mask, layers[1].mask)


def test_evaluation_has_the_mask_of_the_weight_and_changes_nothing(dense):
    layer, twin = make_layer(3), make_layer(3)
    for step in range(7):
        for each in (layer, twin):
            change(each, step)
            each(draw(each))
        assert torch.equal(twin.mask, layer.mask)
        twin.eval()
        assert torch.equal(twin.mask, dense.masks[False](twin.weight))
        x = draw(twin)
        expected = nn.functional.linear(x, twin.weight * twin.mask, twin.bias)
        with torch.no_grad():
            torch.testing.assert_close(twin(x), expected)
        torch.testing.assert_close(twin(x), expected)
        change(twin, 100 + step)  # an average is swapped in, looked at, and out again
        with torch.no_grad():
            twin(x)
        change(twin, step)
        twin.train()


def test_the_packed_weight_is_kept_while_nothing_changes(packings):
    layer = make_layer().eval()
    x = draw(layer)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
    with torch.inference_mode():
        assert torch.equal(layer(x), first)
    assert len(packings) == 1
    layer(x)  # with gradients it is packed for the graph
    assert len(packings) == 2
    layer.train()
    with torch.no_grad():
        layer(x)
        layer(x)
    assert len(packings) == 4


def by_a_copy(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.ones_like(layer.weight))


def by_data_between_modes(layer):
    layer.train()
    layer.weight.data.fill_(1)
    layer.eval()


def by_new_data(layer):
    layer.weight.data = torch.ones_like(layer.weight)


def by_a_new_parameter(layer):
    layer.weight = nn.Parameter(torch.ones_like(layer.weight))


def by_another_dtype_and_back(layer):
    layer.double()
    layer.weight.data.fill_(1)
    layer.float()


def by_a_state_dict(layer):
    layer.load_state_dict({"weight": torch.ones_like(layer.weight)}, strict=False)


@pytest.mark.parametrize(
    "write",
    [
        by_a_copy,
        by_data_between_modes,
        by_new_data,
        by_a_new_parameter,
        by_another_dtype_and_back,
        by_a_state_dict,
    ],
)
def test_a_changed_weight_is_packed_again(write):
    layer = make_layer(bias=False).eval()
    x = torch.ones(1, 16)
    with torch.no_grad():
        layer(x)
        write(layer)
        assert layer(x).tolist() == [[8.0] * 8]


def test_weights_handed_over_one_after_another():
    """Each may lie where the last one lay, and have its version."""
    layer = make_layer(bias=False).eval()
    x = torch.ones(1, 16)
    with torch.no_grad():
        for step in range(20):
            weight = torch.full_like(layer.weight, step)
            y = torch.func.functional_call(layer, {"weight": weight}, (x,))
            assert y.tolist() == [[8.0 * step] * 8]
            del weight
            gc.collect()


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer = make_layer(bias=False).eval()
        x = torch.ones(1, 16)
        layer(x)
        layer.weight.fill_(1)
        assert layer(x).tolist() == [[8.0] * 8]


def test_a_copy_goes_on_where_the_layer_was():
    layer = make_layer(3)
    for step in range(2):
        change(layer, step)
        layer(draw(layer))
    change(layer, 2)  # still to be counted
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.mask, layer.mask)
    for step in range(3, 8):
        masks = []
        for each in (layer, copied):
            each(draw(each))
            masks.append(each.mask)
            change(each, step)
        assert torch.equal(*masks)


def test_an_average_has_a_mask_of_its_own(dense):
    model = nn.Sequential(make_layer(100))
    average = torch.optim.swa_utils.AveragedModel(model)
    for step in range(3):
        change(model[0], step)
        model(draw(model[0]))
        average.update_parameters(model)
    average.eval()
    layer = average.module[0]
    assert torch.equal(layer.mask, dense.masks[False](layer.weight))
    assert not torch.equal(layer.mask, model[0].mask)


def test_moves_are_no_changes():
    layer = make_layer(2)
    masks = []
    for step in range(4):
        change(layer, step)
        layer.double().float()
        layer(draw(layer))
        layer.double().float()
        masks.append(layer.mask)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])


def test_tied_layers_have_one_mask():
    a, b = make_layer(2), make_layer(2, seed=1)
    b.tie_weight(a)
    masks = []
    for step in range(4):
        change(a, step)
        b(a(draw(a)).repeat(1, 2))
        assert torch.equal(a.mask, b.mask)
        masks.append(a.mask)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])


def test_a_frozen_weight_keeps_its_mask(packings):
    layer = make_layer(2).requires_grad_(False)
    for _ in range(5):
        layer(draw(layer))
    assert len(packings) == 1


def fake(layer, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x))


def traced(layer, x):
    torch.jit.trace(layer, x, check_trace=False)


def counted(layer, x):
    with FlopCounterMode(display=False):
        layer(x)


def differentiated(layer, x):
    torch.func.grad(lambda x: layer(x).sum())(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("run", [fake, traced, counted, differentiated])
def test_what_traces_a_layer_leaves_nothing_behind(run, training):
    layer, twin = make_layer(3).train(training), make_layer(3).train(training)
    x = draw(layer)
    with torch.no_grad():
        for step in range(5):
            run(layer, x)
            assert torch.equal(layer(x), twin(x))
            run(layer, x)
            for each in (layer, twin):
                change(each, step)


def test_the_interval_may_change_at_any_time(dense):
    layer, masks, chosen = make_layer(1), [], []
    for step, layer.refresh_every in enumerate((1, 1, 3, 3, 3, 3, 1, 1, 2, 2)):
        change(layer, step)
        layer(draw(layer))
        masks.append(layer.mask)
        chosen.append(dense.masks[False](layer.weight))
    for step, of in enumerate((0, 1, 2, 2, 2, 5, 6, 7, 8, 8)):
        assert torch.equal(masks[step], chosen[of])


@pytest.mark.parametrize(("method", "every"), [("ste", 0), ("fixed", 2)])
def test_an_interval_that_makes_no_sense_is_refused(method, every):
    layer = make_layer(1, method=method)
    with pytest.raises(ValueError, match=f"refresh_every must be .*got {every}"):
        layer.refresh_every = every
    assert layer.refresh_every == 1


def test_the_interval_may_change_before_saving():
    layer, other = make_layer(1), make_layer(3, seed=1)
    layer(draw(layer))
    layer.refresh_every = 3
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask, layer.mask)
