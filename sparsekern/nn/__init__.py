"""Sparse layers, and swapping a model's dense layers for them."""

from __future__ import annotations

from sparsekern.nn.base import SparseLayer
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.distributions import layer_sparsities
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.sparsify import densify_, sparsify_

__all__ = [
    "LayerReport",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparsifyReport",
    "densify_",
    "layer_sparsities",
    "sparsify_",
]
