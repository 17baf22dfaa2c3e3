import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern as sk
from sparsekern.experiments.models import GPT, GPT_SIZES, GPTConfig

SMALL = GPTConfig(vocabulary=11, context=7, layers=3, heads=2, width=12)


def small(tied=True, dropout=0.0):
    sizes = {name: getattr(SMALL, name) for name in ("vocabulary", "context", "layers", "heads", "width")}
    config = GPTConfig(**sizes, tied=tied, dropout=dropout)
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    for parameter in model.parameters():  # far from zero, so that every part shows in the logits
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.fixture
def tokens():
    return torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))


def gpt_as_written(state, config, tokens):
    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    time, size = tokens.shape[1], config.width // config.heads
    x = state["token_embedding.weight"][tokens] + state["position_embedding.weight"][:time]
    for number in range(config.layers):
        block = f"blocks.{number}"
        y, heads = norm(x, f"{block}.norm1"), []
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            names = ("query", "key", "value")
            q, k, v = (linear(y, f"{block}.attention.{name}")[..., part] for name in names)
            scores = q @ k.transpose(1, 2) / math.sqrt(size)
            later = torch.ones(time, time, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
        x = x + linear(torch.cat(heads, -1), f"{block}.attention.projection")
        y = linear(norm(x, f"{block}.norm2"), f"{block}.feed_forward.expansion")
        y = y / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{block}.feed_forward.projection")
    head = state.get("head.weight", state["token_embedding.weight"])
    return norm(x, "norm") @ head.T


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("time", [1, 7])
def test_logits_are_those_of_the_network_written_out(tokens, tied, time):
    model = small(tied)
    logits = model(tokens[:, :time])
    assert logits.shape == (2, time, 11)
    expected = gpt_as_written(model.state_dict(), model.config, tokens[:, :time])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-12)


def test_logits_depend_on_the_tokens_up_to_their_own_only(tokens):
    model = small()
    logits = model(tokens)
    for place in range(7):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        same = (model(changed) == logits).all(-1).all(0)
        assert same[:place].all()
        assert not same[place:].any()


@pytest.mark.parametrize(("tied", "name"), [(True, "tiny"), (False, "8b")])
def test_names_and_shapes_do_not_depend_on_the_device(tied, name):
    with torch.device("meta"):
        model = GPT(GPT_SIZES[name])
    assert all(parameter.is_meta for parameter in model.parameters())
    built = GPT(GPTConfig(vocabulary=5, context=4, layers=1, heads=1, width=8, tied=tied), device="cpu")
    assert ("head.weight" in built.state_dict()) is not tied
    assert not any(parameter.is_meta for parameter in built.parameters())


# 124,439,808 and 354,823,168 are GPT-2's, with biases and positions.
@pytest.mark.parametrize(
    ("name", "parameters", "linear"),
    [
        ("tiny", 842_496, 786_432),
        ("124m", 124_439_808, 84_934_656),
        ("350m", 354_823_168, 301_989_888),
        ("1b", 1_315_723_264, 1_207_959_552),
        ("8b", 8_269_443_072, 8_053_063_680),
    ],
)
def test_parameter_counts_of_the_named_sizes(name, parameters, linear):
    config = GPT_SIZES[name]
    assert (config.parameters, config.linear_weights) == (parameters, linear)
    model = GPT(config, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) == linear


def test_an_untied_head_counts():
    model = small(tied=False)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters == SMALL.parameters + 11 * 12
    assert model.config.linear_weights == 12 * 3 * 12**2 + 11 * 12


def test_initial_values_are_those_of_gpt_2():
    model = GPT(GPT_SIZES["tiny"], torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name
            continue
        deviation = 0.02 / math.sqrt(8) if "projection" in name else 0.02
        assert parameter.std().item() == pytest.approx(deviation, rel=0.03), name
        assert abs(parameter.mean().item()) < 0.05 * deviation, name


def test_weights_depend_on_the_generator_only():
    state = torch.get_rng_state()
    first, again, other = (GPT(SMALL, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attention.query.weight"], other["blocks.0.attention.query.weight"])


def test_dropout_is_for_training(tokens):
    model, plain = small(dropout=0.5), small()
    assert not torch.equal(model(tokens), plain(tokens))
    assert torch.equal(model.eval()(tokens), plain(tokens))


def test_sparsify_takes_the_layers_of_the_blocks_and_gradients_are_those_of_the_dense_weights(tokens):
    dense, sparse = small(), small()
    report = sk.sparsify_(sparse, sparsity=0.7, init="keep", generator=torch.Generator().manual_seed(0))
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    layers = {name: m for name, m in sparse.named_modules() if isinstance(m, sk.nn.SparseLayer)}
    assert len(layers) == 18
    assert isinstance(sparse.token_embedding, nn.Embedding)
    with torch.no_grad():
        for name, layer in layers.items():
            dense.get_submodule(name).weight.copy_(layer.to_dense())
    losses = []
    for model in (dense, sparse):
        losses.append(F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for name, layer in layers.items():
        expected = sk.ops.pack(dense.get_submodule(name).weight.grad, layer.pattern)
        torch.testing.assert_close(layer.values.grad, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
        ({"layers": 2.0}, r"layers must be a whole number of at least 1, got 2\.0"),
        ({"heads": True}, "heads must be a whole number of at least 1, got True"),
        ({"heads": 5}, "width must be a multiple of heads, 5, got 12"),
        ({"tied": 1}, "tied must be True or False, got 1"),
        ({"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1, got 1\.0"),
        ({"dropout": "much"}, "dropout must be a number of at least 0 and below 1, got 'much'"),
    ],
    ids=str,
)
def test_a_wrong_size_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        GPTConfig(**{"vocabulary": 11, "context": 7, "layers": 3, "heads": 2, "width": 12, **changes})


def test_a_config_by_its_name_is_refused():
    with pytest.raises(
        TypeError, match=r"^config must be a GPTConfig, such as GPT_SIZES\['124m'\], got '8b'$"
    ):
        GPT("8b")


@pytest.mark.parametrize("shape", [(7,), (2, 8), (1, 2, 3)])
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"^tokens must have the shape \(batch, time\) with a time of at most 7"
    ):
        small()(torch.zeros(shape, dtype=torch.int64))
