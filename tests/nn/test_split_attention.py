"""SplitAttention: the values and gradients of nn.MultiheadAttention, and its state dicts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsekern.nn import SplitAttention, split_attention_
from tests.nn.attention_cases import (
    BATCH,
    FORMS,
    HEADS,
    KEYS,
    LENGTH,
    WIDTH,
    as_split,
    attention,
    double,
    split,
)


def inputs(module, batched=True):
    """Query, key and value of other lengths and widths."""

    def draw(length, width):
        batch = ((BATCH, length) if module.batch_first else (length, BATCH)) if batched else (length,)
        return torch.randn(*batch, width, dtype=double, requires_grad=True)

    return draw(LENGTH, WIDTH), draw(KEYS, module.kdim), draw(KEYS, module.vdim)


def masks(kind, batched=True):
    """Keyword arguments of forward; no query is left without a key."""
    batch = BATCH if batched else 1
    if kind == "none":
        return {}
    if kind == "causal":
        causal = torch.triu(torch.ones(LENGTH, KEYS, dtype=torch.bool), 1)
        return {"attn_mask": causal, "is_causal": True}
    if kind == "float":
        padding = torch.randn((BATCH, KEYS) if batched else (KEYS,), dtype=double)
        return {
            "attn_mask": torch.randn(batch * HEADS, LENGTH, KEYS, dtype=double),
            "key_padding_mask": padding,
        }
    hidden = torch.rand(LENGTH, KEYS) < 0.4
    padding = torch.rand((BATCH, KEYS) if batched else (KEYS,)) < 0.3
    hidden[:, 0] = padding[..., 0] = False
    return {"attn_mask": hidden, "key_padding_mask": padding}


def assert_same(module, made, arguments, keywords):
    """Values, attention weights and the gradients of all inputs and Parameters."""
    results = []
    for run in (module, made):
        torch.manual_seed(1)  # the same weights are dropped
        y, weights = run(*arguments, **keywords)
        loss = (y.sin() * torch.linspace(-1, 1, y.numel(), dtype=double).view(y.shape)).sum()
        if weights is not None:
            loss = loss + weights.square().sum()
        named = dict(run.named_parameters())
        gradients = torch.autograd.grad(loss, [*arguments, *named.values()])
        results.append((y, weights, gradients[:3], dict(zip(named, gradients[3:]))))
    (y, weights, to_inputs, to_weights), (y_made, weights_made, to_inputs_made, to_weights_made) = results
    close = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(y_made, y, **close)
    torch.testing.assert_close(weights_made, weights, **close)
    torch.testing.assert_close(to_inputs_made, to_inputs, **close)
    torch.testing.assert_close(to_weights_made, as_split(to_weights), **close)


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_multihead_attention(form, kind, batched):
    module = attention(**FORMS[form])
    made = split(module)
    arguments, keywords = inputs(module, batched), masks(kind, batched)
    for options in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        if kind == "causal" and "appended" not in form and "zeros" not in form:
            assert_same(module, made, arguments, {**keywords, **options})
        else:
            # Where keys are appended, PyTorch takes the hint alone for need_weights=False, and hides them.
            assert_same(module, made, arguments, {**keywords, **options, "is_causal": False})


def test_the_causal_hint_hides_no_appended_key():
    module = attention(add_zero_attn=True)
    made, arguments = split(module), inputs(module)
    causal = masks("causal")
    first, _ = made(*arguments, **causal, need_weights=False)
    second, _ = made(*arguments, attn_mask=causal["attn_mask"])
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_fused_inference(causal):
    module = attention(heads=4, batch_first=True).eval()
    made = split(module)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=double)
    mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1) if causal else None
    with torch.no_grad():
        expected, weights = module(x, x, x, attn_mask=mask, is_causal=causal, need_weights=False)
        got, none = made(x, x, x, attn_mask=mask, is_causal=causal, need_weights=False)
    torch.testing.assert_close(got, expected)
    assert weights is none is None


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("form", ["plain", "other widths", "appended keys"])
def test_loads_the_state_dict_of_multihead_attention(form, assign):
    source = nn.ModuleDict({"a": attention(**FORMS[form]), "b": nn.Linear(2, 2)})
    target = nn.ModuleDict({"a": attention(seed=1, **FORMS[form]), "b": nn.Linear(2, 2)})
    split_attention_(target)
    state = source.state_dict()
    keys = list(state)
    target.load_state_dict(state, assign=assign)
    assert list(state) == keys
    for name, tensor in as_split(dict(source["a"].named_parameters())).items():
        assert torch.equal(target["a"].get_parameter(name), tensor)
    state = target.state_dict()
    target.load_state_dict(state)  # and its own
    state["a.in_proj_weight_v"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        target.load_state_dict(state)


def test_copies_devices_and_dtypes():
    made = split(attention(dropout=0.1, batch_first=True)).eval()
    x = torch.randn(2, 3, WIDTH)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(copied(*[x.double()] * 3)[0], made(*[x.double()] * 3)[0])
    assert made.float()(x, x, x)[0].dtype == torch.float32
    assert made.to("meta").q_proj.weight.is_meta
    with torch.autocast("cpu", torch.bfloat16):
        for needed in (True, False):
            y, _ = split(attention(dtype=torch.float32, batch_first=True))(
                x, x, x, key_padding_mask=torch.zeros(2, 3, dtype=torch.bool), need_weights=needed
            )
            assert y.dtype == torch.bfloat16
    fresh = SplitAttention(WIDTH, HEADS, 0.2, kdim=5, batch_first=True, device="meta", dtype=double)
    assert fresh.k_proj.weight.shape == (WIDTH, 5)
    assert "num_heads=3, dropout=0.2, batch_first=True" in repr(fresh)


@pytest.mark.parametrize("layers", [("q_proj", "k_proj", "v_proj"), ("out_proj",)])
def test_biases_taken_away_later_stay_away(layers):
    made = split(attention(bias=True))
    for name in layers:
        getattr(made, name).bias = None
    merged = made.to_attention()
    assert not any(parameter.is_meta for parameter in merged.parameters())
    assert (merged.in_proj_bias is None, merged.out_proj.bias is None) == (len(layers) == 3, len(layers) == 1)
    x = torch.randn(LENGTH, BATCH, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(merged(x, x, x)[0], made(x, x, x)[0])


def refusals(module):
    x = torch.zeros(BATCH, LENGTH, WIDTH, dtype=double)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    good, mask = (x, x, x), torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    return [
        ((nested, nested, nested), {}, ValueError, "query must be an ordinary tensor, got a nested one"),
        ((x, None, x), {}, TypeError, "key must be a tensor, got None"),
        ((x[None], x, x), {}, ValueError, r"query must have 2 dimensions or 3, got shape \(1, 4, 5, 12\)"),
        ((x, x[0], x), {}, ValueError, r"key must have 3 dimensions, as query has, got shape \(5, 12\)"),
        ((x[..., 1:], x, x), {}, ValueError, r"query must have 12 features, got shape \(4, 5, 11\)"),
        ((x[1:], x, x), {}, ValueError, "one batch size, the dimension 0 for batch_first=True, got 3, 4, 4"),
        (
            (x, x[:, 1:], x),
            {},
            ValueError,
            r"value must be as long as key, .*\(4, 4, 12\), got .*\(4, 5, 12\)",
        ),
        (good, {"is_causal": True}, ValueError, "attn_mask must be the causal mask where is_causal=True"),
        (good, {"attn_mask": mask.int()}, TypeError, "attn_mask must be a tensor of bool or floating point"),
        (good, {"attn_mask": [mask]}, TypeError, "attn_mask must be a tensor of bool or floating point, got"),
        (
            good,
            {"attn_mask": mask[1:]},
            ValueError,
            r"attn_mask must have shape \(5, 5\) or \(12, 5, 5\), got",
        ),
        (
            good,
            {"key_padding_mask": mask},
            ValueError,
            r"key_padding_mask must have shape \(4, 5\), got \(5, 5\)",
        ),
    ]


def test_what_forward_refuses():
    module = split(attention(batch_first=True))
    for arguments, keywords, error, message in refusals(module):
        with pytest.raises(error, match=message):
            module(*arguments, **keywords)
    with pytest.raises(
        AttributeError, match=r"a SplitAttention has no 'in_proj_weight': .*split_attention_ on a model"
    ):
        module.in_proj_weight  # noqa: B018
