"""The pattern that layers which share one weight hold in common."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from sparsekern.formats.pattern import Pattern
from sparsekern.ops.observers import Observer, observe, stop_observing


class Topology:
    """Holds the pattern that a weight is stored in, and knows who observes the weight's gradient.

    Layers that share one weight share one of these, so that moving the weight to another pattern through any
    of them moves them all. `copy.deepcopy` and pickle keep the sharing, as they do for the Parameter itself;
    a copy is not observed.
    """

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        # Whether no other weight can be on the same pattern object, so that an observer sees this one alone.
        self._is_own = False
        self._observer: weakref.ref[Observer] | None = None

    @property
    def pattern(self) -> Pattern:
        return self._pattern

    @pattern.setter
    def pattern(self, pattern: Pattern) -> None:
        observer = None if self._observer is None else self._observer()
        self.observe(None)
        self._pattern, self._is_own = pattern, False
        self.observe(observer)

    def observe(self, observer: Observer | None) -> None:
        """Let `observer`, an object that is held weakly, see every contribution to the weight's gradient, on
        any later pattern too; None ends it."""
        if self._observer is not None:
            stop_observing(self._pattern)
        self._observer = None if observer is None else weakref.ref(observer)
        if observer is not None:
            if not self._is_own:
                self._pattern, self._is_own = self._pattern.copy(), True
            observe(self._pattern, observer)

    def __getstate__(self) -> dict[str, Any]:
        # A copy may share the pattern of a weight that is not observed, but not of one that is or will be.
        pattern = self._pattern.copy() if self._is_own else self._pattern
        return {"_pattern": pattern, "_is_own": False, "_observer": None}


def on_device_of(pattern: Pattern, device: torch.device) -> Pattern:
    """The pattern on a weight's device. It has no meta form: without its bits it has no shape and no nnz."""
    return pattern if device.type == "meta" else pattern.to(device)
