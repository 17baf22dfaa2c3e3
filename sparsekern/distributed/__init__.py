"""Many processes: checkpoints that any number of them can go on from, and what a run needs of each."""

from __future__ import annotations

from sparsekern.distributed.agreement import CheckpointError
from sparsekern.distributed.budget import MemoryBudget, budget_table, memory_budget
from sparsekern.distributed.checkpoint import load_checkpoint, save_checkpoint

__all__ = [
    "CheckpointError",
    "MemoryBudget",
    "budget_table",
    "load_checkpoint",
    "memory_budget",
    "save_checkpoint",
]
