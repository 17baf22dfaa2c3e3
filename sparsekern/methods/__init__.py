"""Which weights live: sparsity distributions, and the methods that choose and change patterns."""

from __future__ import annotations

from sparsekern.methods.distributions import layer_sparsities

__all__ = ["layer_sparsities"]
