"""split_attention_ and merge_attention_: the same values and gradients as nn.MultiheadAttention, and back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparsekern.nn import (
    SparseLinear,
    SplitAttention,
    densify_,
    merge_attention_,
    sparsify_,
    split_attention_,
)

WIDTH, HEADS, LENGTH, KEYS, BATCH = 12, 3, 5, 7, 4
double = torch.float64


def attention(seed=0, heads=HEADS, **keywords):
    """Weights, biases included, that are not 0."""
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, heads, **{"dtype": double, **keywords})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def split(module):
    box = nn.ModuleList([copy.deepcopy(module)])
    assert split_attention_(box) == ["0"]
    return box[0]


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


def as_split(named):
    """Tensors by the names of nn.MultiheadAttention, under those of SplitAttention."""
    found = {}
    for name, tensor in named.items():
        if name.startswith("in_proj_"):
            parts = tensor.chunk(3)
            found |= {f"{which}_proj.{name[8:]}": part for which, part in zip("qkv", parts)}
        elif name.endswith("_proj_weight"):
            found[name.replace("_weight", ".weight")] = tensor
        else:
            found[name] = tensor
    return found


FORMS = {
    "plain": {"dropout": 0.3},
    "batch first, no bias": {"batch_first": True, "bias": False},
    "other widths": {"kdim": 8, "vdim": 10, "batch_first": True, "dropout": 0.3},
    "appended keys": {"add_bias_kv": True, "add_zero_attn": True},
    "a key of zeros": {"add_zero_attn": True, "batch_first": True, "kdim": 8},
}


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


def transformer(**keywords):
    torch.manual_seed(0)
    model = nn.Transformer(
        16, 4, 2, 2, 24, dropout=0.0, batch_first=keywords.pop("batch_first", True), dtype=double, **keywords
    )
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    return model


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_inside_a_transformer(batch_first, mode):
    model = transformer(batch_first=batch_first)
    made = copy.deepcopy(model)
    assert len(split_attention_(made)) == 6  # of two encoder layers and two decoder layers
    batch = (3, 7) if batch_first else (7, 3)
    source, target = (torch.randn(*batch, 16, dtype=double) for _ in range(2))
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2, [False] * 2 + [True] * 5])
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=double)
    keywords = {
        "tgt_mask": causal,
        "tgt_is_causal": True,
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }
    for run in (model, made):
        run.train(mode == "train")
    with torch.set_grad_enabled(mode == "train"):
        torch.testing.assert_close(made(source, target, **keywords), model(source, target, **keywords))


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_fused_and_nested_inference_bypass_nothing(norm_first, padded, storage):
    """In eval mode PyTorch would read all weights of a layer itself, and pack a padded batch."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, norm_first=norm_first)
    # Nested tensors are PyTorch's choice unless norm_first.
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    split_attention_(model)
    report = sparsify_(model, 0.5, storage=storage)
    assert len(report.converted) == 2 * 6
    assert not report.left
    x = torch.randn(3, 7, 16)
    padding = torch.arange(7) >= torch.tensor([7, 5, 2])[:, None] if padded else None
    dense = copy.deepcopy(model)
    densify_(dense)
    assert len(merge_attention_(dense)) == 2
    if storage == "masked":
        for module in model.modules():
            if isinstance(module, SparseLinear):
                with torch.no_grad():
                    module.weight[~module.mask] = 1e6  # what a fused path would read
    with torch.no_grad():
        got = model.eval()(x, src_key_padding_mask=padding)
        # Here the fused paths are on again.
        assert dense.use_nested_tensor is not norm_first
        expected = dense.eval()(x, src_key_padding_mask=padding)
    seen = torch.ones(3, 7, dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(got[seen], expected[seen])


def test_there_and_back():
    model = transformer()
    model.encoder.layers[0].self_attn.user_note = "mine"
    model.decoder.layers[1].self_attn.in_proj_weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    kept = model.encoder.layers[1].self_attn.out_proj.weight
    nested, draws, calls = model.encoder.use_nested_tensor, torch.get_rng_state(), []
    model.encoder.layers[0].self_attn.register_forward_hook(lambda module, *_: calls.append(type(module)))
    names = split_attention_(model)
    assert split_attention_(model) == []
    assert model.encoder.layers[1].self_attn.out_proj.weight is kept
    assert not model.decoder.layers[1].self_attn.k_proj.weight.requires_grad
    assert model.encoder.use_nested_tensor is False
    assert merge_attention_(model) == names
    assert merge_attention_(model) == []
    assert torch.equal(torch.get_rng_state(), draws)
    assert model.encoder.use_nested_tensor == nested
    assert model.encoder.layers[0].self_attn.user_note == "mine"
    model(torch.randn(2, 3, 16, dtype=double), torch.randn(2, 3, 16, dtype=double))
    assert calls == [nn.MultiheadAttention]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trains
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_after_sparse_training_the_state_dict_has_the_old_names():
    model = transformer()
    names = list(model.state_dict())
    split_attention_(model)
    sparsify_(model, 0.8)
    source, target = torch.randn(2, 3, 16, dtype=double), torch.randn(2, 4, 16, dtype=double)
    expected = model(source, target)
    with pytest.raises(
        ValueError, match=r"got 'encoder\.layers\.0\.self_attn': q_proj must be a plain nn.Linear"
    ):
        merge_attention_(model)
    densify_(model)
    merge_attention_(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(source, target), expected)


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


def test_ties_survive():
    model = nn.ModuleDict({"a": attention(), "c": attention(seed=1)})
    model["b"] = model["a"]
    model["c"].in_proj_weight = model["a"].in_proj_weight
    split_attention_(model)
    assert model["a"] is model["b"]
    assert model["c"].v_proj.weight is model["a"].v_proj.weight
    assert model["c"].v_proj.bias is not model["a"].v_proj.bias
    report = sparsify_(model, 0.5)
    assert [layer.tied_to for layer in report.converted] == [None] * 4 + [
        "a.q_proj",
        "a.k_proj",
        "a.v_proj",
        None,
    ]
    densify_(model)
    merge_attention_(model)
    assert model["a"] is model["b"]
    assert model["c"].in_proj_weight is model["a"].in_proj_weight
    assert model["c"].in_proj_bias is not model["a"].in_proj_bias


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


class Patched(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.first = attention()
        self.attention = attention()
        change(self)


def hooked(model):
    model.attention.in_proj_weight.register_hook(lambda gradient: gradient)


def saved(model):
    model.attention.register_state_dict_post_hook(lambda *arguments: None)


def replaced(model):
    model.attention.forward = lambda *arguments: arguments


def sparse_out_projection(model):
    model.attention.out_proj = SparseLinear(WIDTH, WIDTH, sparsity=0.5, dtype=double)


def tied_to_a_layer(model):
    model.layer = nn.Linear(WIDTH, 3 * WIDTH, dtype=double)
    model.layer.weight = model.attention.in_proj_weight


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, "a Parameter of it has gradient hooks"),
        (saved, "it has state-dict hooks"),
        (replaced, "the forward of it was replaced"),
        (sparse_out_projection, "its out_proj is a SparseLinear"),
        (tied_to_a_layer, "its packed weight or bias is tied to one of layer"),
        (
            lambda m: parametrizations.weight_norm(m.attention, "in_proj_weight"),
            "parametrized; torch.nn.utils",
        ),
        (lambda m: parametrizations.weight_norm(m.attention.out_proj), "its out_proj is parametrized"),
        (lambda m: prune.random_unstructured(m.attention, "in_proj_weight", 0.5), "computed by a hook"),
        (
            lambda m: nn.utils.weight_norm(m.attention.out_proj),
            "its out_proj holds more than weight and bias",
        ),
    ],
)
def test_attention_that_cannot_be_split_changes_nothing(change, message):
    model = Patched(change)
    modules = list(model.modules())
    with pytest.raises(
        ValueError, match=f"model must have attention that can be split, got 'attention': .*{message}"
    ):
        split_attention_(model)
    assert list(model.modules()) == modules


def test_models_that_are_refused(ddp):
    module = attention()
    for convert in (split_attention_, merge_attention_):
        with pytest.raises(TypeError, match="model must be a module that contains attention, got 'model'"):
            convert("model")
        with pytest.raises(ValueError, match="model must not be wrapped in DistributedDataParallel"):
            convert(ddp(nn.ModuleList([module])))
    with pytest.raises(TypeError, match=r"a single MultiheadAttention.*use SplitAttention.from_attention"):
        split_attention_(module)
    with pytest.raises(TypeError, match=r"a single SplitAttention.*use its to_attention\(\)"):
        merge_attention_(SplitAttention.from_attention(module))
    with pytest.raises(TypeError, match=r"attention must be a torch.nn.MultiheadAttention, got Linear"):
        SplitAttention.from_attention(nn.Linear(2, 2))
    made = SplitAttention.from_attention(module)
    made.k_proj.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="q_proj, k_proj and v_proj must agree"):
        made.to_attention()


def test_a_subclass_is_left(reasons):
    class Mine(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict({"mine": Mine(8, 2), "plain": nn.Linear(4, 4)})
    assert split_attention_(model) == []
    assert set(reasons(sparsify_(model, 0.5))) == {"mine", "mine.out_proj"}
