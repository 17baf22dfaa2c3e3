"""The pattern that layers which share one weight hold in common."""

from __future__ import annotations

import torch

from sparsekern.formats.pattern import Pattern


class Topology:
    """Holds the pattern that a weight is stored in.

    Layers that share one weight share one of these, so that moving the weight to another pattern through any
    of them moves them all. `copy.deepcopy` and pickle keep the sharing, as they do for the Parameter itself.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern


def on_device_of(pattern: Pattern, device: torch.device) -> Pattern:
    """The pattern on a weight's device. It has no meta form: without its bits it has no shape and no nnz."""
    return pattern if device.type == "meta" else pattern.to(device)
