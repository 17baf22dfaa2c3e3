"""Learning rates as a function of the step, so that a resumed run needs no scheduler state."""

import math


def learning_rate(schedule: str, initial: float, step: int, steps: int) -> float:
    """The learning rate of training step ``step``, counted from 0, of ``steps``.

    ``"cosine"``: ``initial * (1 + cos(pi * step / steps)) / 2``, as Keras' ``CosineDecay`` with ``alpha=0``;
    the first step takes ``initial``, and 0 would come one step after the last. ``"constant"``: ``initial``.
    No warm-up.
    """
    if schedule == "constant":
        return initial
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * step / steps))
    raise ValueError(f"schedule must be cosine or constant, got {schedule!r}")
