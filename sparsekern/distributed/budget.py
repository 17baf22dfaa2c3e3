"""What training takes of each GPU, computed: memory of all that stays between steps, and bytes sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekern.formats.checks import check_bool, check_choice, check_integer, check_positive, check_sparsity

__all__ = ["MemoryBudget", "budget_table", "memory_budget"]

STRATEGIES = ("ddp", "fsdp2")
TILE = 64
# A position's bit; 2 bytes a row of a tile, its offset; 16 a tile: start, column, place in transposed order.
PATTERN_BYTES = 1 / 8 + 2 / TILE + 16 / TILE**2
# The bit of a method that notes which positions have ever been active.
EXPLORED_BYTES = 1 / 8
# Dense gradients are float32 where methods sum them.
DENSE_GRADIENT_BYTES = 4


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes on one GPU, and bytes that it sends; see :func:`memory_budget`.

    Attributes
    ----------
    values, gradients, optimizer : int
        Of the nonzeros, or of all positions of a dense model.
    patterns, explored : int
        Of all positions; 0 for a dense model.
    sent_each_step, sent_each_update : int
        For the gradients and weights of a step, and for an update of RigL.
    """

    values: int
    gradients: int
    optimizer: int
    patterns: int
    explored: int
    sent_each_step: int
    sent_each_update: int

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return self.values + self.gradients + self.optimizer + self.patterns + self.explored


def memory_budget(
    positions: int,
    sparsity: float | None,
    gpus: int = 1,
    strategy: str = "fsdp2",
    *,
    value_bytes: float = 4,
    gradient_bytes: float = 4,
    optimizer_bytes: float = 8,
    sent_bytes: float = 2,
    dynamic: bool = True,
) -> MemoryBudget:
    """Compute what each of `gpus` holds and sends to train weights of so many positions together.

    With n GPUs, P positions, z = (1 - sparsity) P nonzeros and tiles of 64:

    - values, gradients and optimizer state: z times their bytes; over n for ``"fsdp2"``
    - patterns: (1/8 + 1/32 + 1/256) P, on every GPU, whatever the strategy
    - explored positions of a dynamic method: P / 8, on every GPU
    - sent in a step, rings: ``"ddp"`` reduces gradients, 2 (n - 1) / n z sent_bytes; ``"fsdp2"`` gathers the
      weights twice and scatters gradients, 3 (n - 1) / n z sent_bytes
    - sent in an update of RigL: 2 (n - 1) / n P 4 for the dense gradient, and for ``"fsdp2"`` what moves the
      values: (n - 1) / n z (2 value_bytes + gradient_bytes + optimizer_bytes)

    Activations are not part of it, nor what is there for a moment: scratch, weights that FSDP2 has gathered,
    and in an update the new patterns beside the old ones, and one layer's dense gradient.

    Parameters
    ----------
    positions : int
        Of all sparse weights.
    sparsity : float or None
        The fraction of zeros; None for a dense model, without patterns.
    gpus : int
    strategy : str
        ``"ddp"``: all on every GPU, or ``"fsdp2"``: sharded.
    value_bytes, gradient_bytes, optimizer_bytes : float
        For each weight. By default float32, and AdamW with two states; bfloat16 values and gradients with a
        float32 copy of the weights in the optimizer add up to the same 16: 2, 2, 12.
    sent_bytes : float
        Of each number that is sent in a step. By default bfloat16: FSDP2's ``MixedPrecisionPolicy``, or DDP's
        ``bf16_compress_hook``.
    dynamic : bool
        Whether a dynamic method is attached.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    positions, gpus = check_integer(positions, "positions"), check_integer(gpus, "gpus")
    check_choice(strategy, STRATEGIES, "strategy")
    dynamic = check_bool(dynamic, "dynamic") and sparsity is not None
    sizes = {
        "value_bytes": value_bytes,
        "gradient_bytes": gradient_bytes,
        "optimizer_bytes": optimizer_bytes,
        "sent_bytes": sent_bytes,
    }
    value, gradient, optimizer, sent = (check_positive(size, name) for name, size in sizes.items())
    stored = positions if sparsity is None else round((1 - check_sparsity(sparsity)) * positions)
    sharded = strategy == "fsdp2"
    here = math.ceil(stored / gpus) if sharded else stored
    ring = (gpus - 1) / gpus
    moved = ring * stored * (2 * value + gradient + optimizer) if sharded else 0.0
    update = 2 * ring * positions * DENSE_GRADIENT_BYTES + moved
    return MemoryBudget(
        values=math.ceil(here * value),
        gradients=math.ceil(here * gradient),
        optimizer=math.ceil(here * optimizer),
        patterns=0 if sparsity is None else math.ceil(PATTERN_BYTES * positions),
        explored=math.ceil(EXPLORED_BYTES * positions) if dynamic else 0,
        sent_each_step=math.ceil((3 if sharded else 2) * ring * stored * sent),
        sent_each_update=math.ceil(update) if dynamic else 0,
    )


def budget_table(
    positions: int,
    strategy: str = "fsdp2",
    quantity: str = "memory",
    *,
    gpus: Sequence[int] = (1, 8, 64, 256, 1024),
    sparsities: Sequence[float | None] = (None, 0.5, 0.8, 0.9, 0.95, 0.99),
) -> str:
    """A Markdown table of :func:`memory_budget`: sparsities by GPUs, in GB of 10^9 bytes a GPU.

    Parameters
    ----------
    positions, strategy
        As there, with its defaults for the rest.
    quantity : str
        ``"memory"``, ``"step"`` or ``"update"``: the total, or what is sent.
    gpus, sparsities
        Columns and rows; None is the dense model. A star marks what is more than that takes.
    """
    quantities = {"memory": "total", "step": "sent_each_step", "update": "sent_each_update"}
    attribute = quantities[check_choice(quantity, tuple(quantities), "quantity")]

    def amount(sparsity: float | None, n: int) -> float:
        return getattr(memory_budget(positions, sparsity, n, strategy), attribute) / 1e9

    header = ["", *(f"{n:,} GPU{'s' * (n > 1)}" for n in gpus)]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * len(gpus)]
    for sparsity in sparsities:
        cells = ["dense" if sparsity is None else f"{100 * sparsity:g} %"]
        for n in gpus:
            here = amount(sparsity, n)
            # A dense model has no updates.
            more = quantity != "update" and here > amount(None, n)
            cells.append(_rounded(here) + "*" * more)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rounded(number: float) -> str:
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f}"
