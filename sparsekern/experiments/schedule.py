"""Learning rates as a function of the step, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Sequence

SCHEDULES = ("cosine", "constant", "step")


def learning_rate(
    schedule: str,
    initial: float,
    step: int,
    steps: int,
    *,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
) -> float:
    """The learning rate of training step ``step``, counted from 0, of ``steps``.

    In the first ``warmup_steps`` it is ``initial * step / warmup_steps``. From then on, with ``t`` and ``T``
    the step and the number of steps without these:

    ``"cosine"``: ``initial * (1 + cos(pi * t / T)) / 2``, as Keras' ``CosineDecay`` with ``alpha=0``; its
    first step takes ``initial``, and 0 would come one step after the last. ``"constant"``: ``initial``.
    ``"step"``: ``initial`` times ``factor`` for each of ``milestones`` that ``step`` has reached; these are
    counted from the very first step, as epochs are in google-research/rigl.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if step < warmup_steps:
        return initial * step / warmup_steps
    if schedule == "constant":
        return initial
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
    return initial * factor ** sum(step >= milestone for milestone in milestones)
