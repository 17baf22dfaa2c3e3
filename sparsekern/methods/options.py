"""The options that all methods share, checked as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsekern.formats.checks import (
    check_bool,
    check_choice,
    check_integer,
    describe,
    is_integer,
    is_number,
)
from sparsekern.methods.schedules import DROP_SCHEDULES

__all__ = ["Options"]

# A seed is an int64 in a checkpoint.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """What decides which updates a method makes; see `DynamicMethod`. Equal options make equal runs."""

    update_every: int
    drop_fraction: float
    stop_at: int | None
    schedule: str
    update: str
    regrow_dropped: bool
    grow_gradient: str
    new_values: str
    nonfinite: str
    seed: int

    @classmethod
    def checked(cls, *, schedule: str | None, holdout: Callable[[], Any] | None, **given: Any) -> Options:
        """Options from arguments as users give them.

        Raises
        ------
        TypeError, ValueError
            For one that is out of range, or that does not go with another.
        """
        update_every = check_integer(given["update_every"], "update_every")
        fraction = given["drop_fraction"]
        if not is_number(fraction):
            raise TypeError(f"drop_fraction must be a number above 0 and at most 1, got {describe(fraction)}")
        if not 0 < fraction <= 1:
            raise ValueError(f"drop_fraction must be a number above 0 and at most 1, got {fraction}")
        stop_at = given["stop_at"]
        if stop_at is not None and check_integer(stop_at, "stop_at") <= update_every:
            raise ValueError(
                f"stop_at must be beyond the first update, after step {update_every}, got {stop_at}"
            )
        if schedule is None:
            schedule = "constant" if stop_at is None else "cosine"
        if check_choice(schedule, DROP_SCHEDULES, "schedule") == "cosine" and stop_at is None:
            raise ValueError("stop_at must be given with schedule='cosine', which falls to 0 there, got None")
        source = check_choice(given["grow_gradient"], ("batch", "holdout"), "grow_gradient")
        if source == "holdout" and not callable(holdout):
            raise TypeError(
                "holdout must be a function that returns the loss of a fixed batch, for "
                f"grow_gradient='holdout', got {describe(holdout)}"
            )
        if source == "batch" and holdout is not None:
            raise ValueError(
                f"holdout must be left out unless grow_gradient='holdout', got {describe(holdout)}"
            )
        seed = given["seed"]
        if not is_integer(seed) or not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {describe(seed)}")
        return cls(
            update_every=update_every,
            drop_fraction=float(fraction),
            stop_at=None if stop_at is None else int(stop_at),
            schedule=schedule,
            update=check_choice(given["update"], ("after_step", "replaces_step"), "update"),
            regrow_dropped=check_bool(given["regrow_dropped"], "regrow_dropped"),
            grow_gradient=source,
            new_values=check_choice(given["new_values"], ("zero", "per_neuron"), "new_values"),
            nonfinite=check_choice(given["nonfinite"], ("skip", "raise"), "nonfinite"),
            seed=int(seed),
        )

    def check_sharding(self, name: str, is_sharded: bool) -> None:
        """Raise ValueError for what no layer spread over processes by FSDP2 can do."""
        for option, works in (("grow_gradient", "batch"), ("new_values", "zero")):
            if is_sharded and getattr(self, option) != works:
                raise ValueError(
                    f"{option} must be {works!r} where FSDP2 shards weights, as that of layer {name!r}, "
                    f"got {getattr(self, option)!r}"
                )
