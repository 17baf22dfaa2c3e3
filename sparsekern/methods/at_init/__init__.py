"""Pruning at initialization: scores of a network's weights before it is trained, and masks by them."""

from __future__ import annotations

from sparsekern.methods.at_init.masks import at_init_masks
from sparsekern.methods.at_init.scores import grasp_scores, magnitude_scores, random_scores, snip_scores
from sparsekern.methods.at_init.synflow import synflow_scores

__all__ = [
    "at_init_masks",
    "grasp_scores",
    "magnitude_scores",
    "random_scores",
    "snip_scores",
    "synflow_scores",
]
