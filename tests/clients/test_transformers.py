"""Models of transformers, made from configurations: reports, short trainings, and what needs a way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from sparsekern.nn import sparsify_
from tests.clients.training import Client, assert_trains_and_resumes

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOKENS = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))


def bert():
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **SIZES, **dropout))


def llama(tied=False):
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, **SIZES)
    return LlamaForCausalLM(config)


def vit():
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SIZES))


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    tokens = {"vocab_size": 50, "pad_token_id": 0, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, **tokens))


def classes(model):
    padding = (torch.arange(9) < torch.tensor([9, 7, 5, 9])[:, None]).long()
    return model(TOKENS, attention_mask=padding, labels=torch.tensor([0, 1, 1, 0])).loss


def next_tokens(model):
    return model(TOKENS, labels=TOKENS).loss


def reasons(report):
    return {row.name: row.reason for row in report.left}


def test_bert_trains():
    client = Client(bert, classes, exclude=("classifier",))
    left = reasons(assert_trains_and_resumes(client))
    embedding = "bert.embeddings.{}_embeddings".format
    assert left == {
        **dict.fromkeys(
            map(embedding, ("word", "position", "token_type")), "Embedding is not nn.Linear or nn.Conv2d"
        ),
        "classifier": "excluded by 'classifier'",
    }


def test_llama_trains():
    report = assert_trains_and_resumes(Client(llama, next_tokens, learning_rate=0.01))
    assert list(reasons(report)) == ["model.embed_tokens"]
    assert len(report.converted) == 2 * 7 + 1


def test_a_tied_head_stays_dense_and_the_report_says_how_to_untie_it():
    model = llama(tied=True)
    left = reasons(sparsify_(model, 0.9))
    assert left["lm_head"] == (
        "its weight is tied to model.embed_tokens.weight, which stays dense; give it a Parameter of its own "
        "first (in transformers, tie_word_embeddings=False)"
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_conv1d_of_gpt2():
    """All of its layers are linear ones with a transposed weight."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    ).eval()
    expected = model(TOKENS).logits
    message = (
        "Conv1D is not nn.Linear or nn.Conv2d; an nn.Linear with the transposed weight computes the same"
    )
    with pytest.raises(ValueError, match=message):
        sparsify_(model, 0.9)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.nx, child.nf)
                linear.load_state_dict({"weight": child.weight.T, "bias": child.bias})
                setattr(parent, name, linear)
    torch.testing.assert_close(model(TOKENS).logits, expected)
    assert len(sparsify_(model, 0.0).converted) == 2 * 4
    torch.testing.assert_close(model(TOKENS).logits, expected)


@pytest.mark.parametrize(
    ("make", "exclude", "run"),
    [
        (vit, "*.patch_embeddings", lambda model: model(torch.zeros(2, 3, 16, 16)).logits),
        (t5, "*.wo", lambda model: model(TOKENS, labels=TOKENS).logits),
    ],
    ids=["ViT", "T5"],
)
def test_a_layer_whose_dtype_the_model_reads_is_excluded(make, exclude, run):
    """The error says so, and then the model computes what it should."""
    model = make().eval()
    sparsify_(model, 0.5)
    with pytest.raises(AttributeError, match=r"has no 'weight'.* leave the layer dense by exclude="):
        run(model)
    model = make().eval()
    expected = run(model)
    sparsify_(model, 0.0, exclude=[exclude])
    torch.testing.assert_close(run(model), expected)
