"""Every random number of a run comes from one seed, through a generator of its own for each purpose.

Nothing here reads or moves PyTorch's global generator, so a run does not depend on what else the process did,
and two purposes never share a stream: changing how many numbers one of them draws leaves the others as they
were.
"""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed: the first bytes of SHA-256 of ``"seed/purpose/index"``, the same on every machine.

    Parameters
    ----------
    seed : int
        The run's seed.
    purpose : str
        What the numbers are for. A run of an experiment uses ``"init"`` (initial weights), ``"mask"`` (which
        weights are active), ``"data"`` (the order of the examples) and ``"update"`` (what mask updates draw).
    index : int
        Tells the generators of one purpose apart, as the epoch does for ``"data"``.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))
