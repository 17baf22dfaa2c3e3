"""Schedules: the share of a layer that an update exchanges, and a layer's sparsity, by the step."""

from __future__ import annotations

import math

__all__ = ["DROP_SCHEDULES", "cubic_sparsity", "drop_fraction"]

DROP_SCHEDULES = ("cosine", "constant", "lr")


def drop_fraction(
    schedule: str, initial: float, step: int, stop_at: int | None = None, lr_ratio: float = 1.0
) -> float:
    r"""The fraction of a layer's active weights that the update after `step` drops.

    .. math:: \alpha(t) = \alpha_0 \cdot \begin{cases} 1 & \text{constant} \\
              \tfrac12 \big(1 + \cos(\pi t / t_{stop})\big) & \text{cosine} \\
              \min(1, \eta(t) / \eta(0)) & \text{lr} \end{cases}

    Parameters
    ----------
    schedule : str
        ``"cosine"``, ``"constant"`` or ``"lr"``.
    initial : float
        :math:`\alpha_0`.
    step : int
        t, optimizer steps done.
    stop_at : int, optional
        :math:`t_{stop}`, for ``"cosine"``.
    lr_ratio : float
        Learning rate over the initial one, for ``"lr"``.

    Returns
    -------
    float

    References
    ----------
    Evci et al., *Rigging the Lottery* (2020), Section 3, cosine; google-research/rigl, ``rigl_tf2``, lr.
    """
    if schedule == "constant":
        return initial
    if schedule == "lr":
        return initial * min(1.0, lr_ratio)
    if schedule == "cosine" and stop_at is not None:
        return initial * 0.5 * (1 + math.cos(math.pi * min(step / stop_at, 1.0)))
    raise ValueError(
        f"schedule must be 'constant', 'lr', or 'cosine' with stop_at, got {schedule!r} and {stop_at}"
    )


def cubic_sparsity(initial: float, final: float, step: int, begin: int, end: int) -> float:
    r"""The sparsity of gradual pruning after `step`.

    .. math:: s(t) = s_f + (s_i - s_f) \Big(1 - \frac{t - t_0}{t_1 - t_0}\Big)^3, \qquad t_0 \le t \le t_1

    Parameters
    ----------
    initial, final : float
        :math:`s_i` before and at `begin`, :math:`s_f` from `end` on.
    step, begin, end : int
        t, :math:`t_0` and :math:`t_1`, in optimizer steps, ``begin < end``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When `begin` is not below `end`.

    References
    ----------
    Zhu and Gupta, *To prune, or not to prune* (2017), Equation 1.
    """
    if begin >= end:
        raise ValueError(f"begin must be below end, got {begin} and {end}")
    left = 1 - min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * left**3
