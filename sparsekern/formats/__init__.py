"""The storage formats of sparse weights."""

from sparsekern.formats.checks import active_count, check_sparsity
from sparsekern.formats.layout import TILE_SIZES, default_tile_size
from sparsekern.formats.pattern import Pattern

__all__ = ["Pattern", "TILE_SIZES", "active_count", "check_sparsity", "default_tile_size"]
