"""Sparse layers, and swapping a model's dense layers for them."""

from __future__ import annotations

from sparsekern.nn.attention import merge_attention_, split_attention_
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.batch_norm import recalibrate_batch_norm_
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.depthwise import is_depthwise
from sparsekern.nn.distributions import layer_sparsities
from sparsekern.nn.fix_masks import fix_masks_
from sparsekern.nn.int8 import TwoFourLinearInt8
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.module import SparseModule
from sparsekern.nn.quantize import quantize_int8_
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.sparsify import densify_, sparsify_
from sparsekern.nn.split_attention import SplitAttention
from sparsekern.nn.two_four_conv import TwoFourConv2d
from sparsekern.nn.two_four_layer import TwoFourLayer
from sparsekern.nn.two_four_linear import TwoFourLinear

__all__ = [
    "LayerReport",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseModule",
    "SparsifyReport",
    "SplitAttention",
    "TwoFourConv2d",
    "TwoFourLayer",
    "TwoFourLinear",
    "TwoFourLinearInt8",
    "densify_",
    "fix_masks_",
    "is_depthwise",
    "layer_sparsities",
    "merge_attention_",
    "quantize_int8_",
    "recalibrate_batch_norm_",
    "sparsify_",
    "split_attention_",
]
