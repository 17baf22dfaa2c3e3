"""Random generators of each process: what its next draws follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparsekern.formats.checks import describe

__all__ = ["check_generators", "generator_states", "restore_generators"]


def check_generators(generators: Any) -> list[torch.Generator]:
    """Return `generators` as a list when it is a sequence of them; TypeError otherwise."""
    if isinstance(generators, Sequence) and all(isinstance(g, torch.Generator) for g in generators):
        return list(generators)
    raise TypeError(f"generators must be a sequence of torch.Generator, got {describe(generators)}")


def generator_states(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """The states of PyTorch's own generators, of the CPU and of the current CUDA device, and of the given."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if on_cuda else None,
        "given": [generator.get_state() for generator in generators],
    }


def restore_generators(states: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Draw from now on as the process did that the states are of."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    for generator, state in zip(generators, states["given"]):
        generator.set_state(state)
