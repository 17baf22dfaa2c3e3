"""split_attention_ and merge_attention_: models that compute the same, keep what they had, and come back."""

from __future__ import annotations

import copy

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
from tests.nn.attention_cases import WIDTH, attention, double


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


CAUSAL = {"mask": nn.Transformer.generate_square_subsequent_mask(7), "is_causal": True}
PADDED = {"src_key_padding_mask": torch.arange(7) >= torch.tensor([7, 5, 2])[:, None]}


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(
    "keywords", [{}, PADDED, CAUSAL, {**PADDED, **CAUSAL}], ids=["full", "padded", "causal", "both"]
)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["split", "feed-forward alone"])
def test_fused_and_nested_inference_bypass_nothing(whole, norm_first, keywords, storage):
    """In eval mode PyTorch would read all weights of a layer itself, and pack a padded batch."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, norm_first=norm_first)
    # Nested tensors are PyTorch's choice unless norm_first.
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    assert len(split_attention_(model) if whole else []) == 2 * whole
    report = sparsify_(model, 0.5, storage=storage)
    assert len(report.converted) == 2 * (6 if whole else 2)
    assert bool(report.left) is not whole
    x = torch.randn(3, 7, 16)
    dense = copy.deepcopy(model)
    densify_(dense)
    merge_attention_(dense)
    if storage == "masked":
        for module in model.modules():
            if isinstance(module, SparseLinear):
                with torch.no_grad():
                    module.weight[~module.mask] = 1e6  # what a fused path would read
    with torch.no_grad():
        got = model.eval()(x, **keywords)
        # Here the fused paths are on again.
        assert dense.use_nested_tensor is not norm_first
        expected = dense.eval()(x, **keywords)
    seen = ~keywords.get("src_key_padding_mask", torch.zeros(3, 7, dtype=torch.bool))
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


def tie_to_a_layer(model):
    model.layer.weight = model.attention.k_proj.weight


def tie_to_the_model(model):
    model.own = model.attention.k_proj.weight


def tie_keys_to_queries(model):
    model.attention.k_proj = model.attention.q_proj


def share_a_projection(model):
    model.layer = model.attention.v_proj


def tie_keys_of_two(model):
    model.other.k_proj.weight = model.attention.k_proj.weight


@pytest.mark.parametrize(
    ("tie", "where"),
    [
        (tie_to_a_layer, "layer"),
        (tie_to_the_model, "ModuleDict"),
        (tie_keys_to_queries, "attention.q_proj"),
        (share_a_projection, "layer"),
        (tie_keys_of_two, "attention.k_proj"),
    ],
)
def test_ties_that_packing_would_undo(tie, where):
    model = nn.ModuleDict(
        {
            "layer": nn.Linear(WIDTH, WIDTH, dtype=double),
            "attention": SplitAttention.from_attention(attention()),
            "other": SplitAttention.from_attention(attention(1)),
        }
    )
    tie(model)
    modules = list(model.modules())
    message = f"attention that can be merged, got a projection whose .* is tied to one of '{where}'"
    with pytest.raises(ValueError, match=message):
        merge_attention_(model)
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
