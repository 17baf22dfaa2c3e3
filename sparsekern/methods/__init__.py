"""Which weights live: sparsity distributions, and the methods that choose and change patterns."""

from __future__ import annotations

from sparsekern.methods import at_init
from sparsekern.methods.at_init import at_init_masks
from sparsekern.methods.base import DynamicMethod
from sparsekern.methods.compact import compact_
from sparsekern.methods.distributions import layer_sparsities
from sparsekern.methods.dynamic import SET, SNFS, RigL, RigLInverted, Static
from sparsekern.methods.gradual_pruning import GradualPruning, PruningUpdate
from sparsekern.methods.masks import load_masks, masks_of, save_masks
from sparsekern.methods.nm_masks import nm_mask, nm_mask_
from sparsekern.methods.statistics import LayerUpdate, UpdateStatistics

__all__ = [
    "SET",
    "SNFS",
    "DynamicMethod",
    "GradualPruning",
    "LayerUpdate",
    "PruningUpdate",
    "RigL",
    "RigLInverted",
    "Static",
    "UpdateStatistics",
    "at_init",
    "at_init_masks",
    "compact_",
    "layer_sparsities",
    "load_masks",
    "masks_of",
    "nm_mask",
    "nm_mask_",
    "save_masks",
]
