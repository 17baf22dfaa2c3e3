"""Attention of PyTorch's own, in all its forms, for the tests of what is made of it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sparsekern.nn import split_attention_

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
