"""Which weights live: sparsity distributions, and the methods that choose and change patterns."""

from __future__ import annotations

from sparsekern.methods.distributions import layer_sparsities
from sparsekern.methods.masks import load_masks, masks_of, save_masks

__all__ = ["layer_sparsities", "load_masks", "masks_of", "save_masks"]
