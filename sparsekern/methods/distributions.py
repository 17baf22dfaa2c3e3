"""Sparsity distributions over layers, as the methods use them.

They live with the layers because `sparsify_` applies them and nothing in `nn` may import from `methods`.
"""

from __future__ import annotations

from sparsekern.nn.distributions import DISTRIBUTIONS, Distribution, layer_sparsities

__all__ = ["DISTRIBUTIONS", "Distribution", "layer_sparsities"]
