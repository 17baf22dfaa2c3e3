"""Random growth without a score for every position: only the largest scores are ever drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.formats.checks import check_generator, check_integer, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.ops import Candidates

__all__ = ["uniform_candidates"]

# Random words have this many bits, so that they are not negative as int64.
WORD_BITS = 62


def uniform_candidates(pattern: Pattern, count: int, generator: torch.Generator | None = None) -> Candidates:
    """The largest of ``log(U)``, with U uniform on (0, 1) and independent for every position.

    For ``update_topology(..., by="value")`` with at most `count` positions to exchange: its outcome has
    exactly the distribution that a dense ``torch.rand`` as scores would give, and in which the positions that
    are not kept are equally likely to become active. No dense temporary is made unless more than half of the
    inactive positions are asked for.

    Parameters
    ----------
    pattern : Pattern
        On any device.
    count : int
        Inactive positions to list; all of them where there are fewer.
    generator : torch.Generator, optional
        Of the CPU; torch's global one by default. The draws are the same for any device of the pattern.

    Returns
    -------
    Candidates
        On the pattern's device, float64, all at most 0: `active` of every active position, and of the
        inactive ones the ``min(count, inactive)`` largest scores in descending order.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.

    Notes
    -----
    The largest of I independent uniforms is ``V ** (1 / I)`` with V uniform; below one at U, the next of the
    I - j others is ``U * V ** (1 / (I - j))`` (Devroye, *Non-Uniform Random Variate Generation*, 1986,
    Section V.3.2). Logarithms, since the largest of many uniforms would all be rounded to 1. Which positions
    have the largest scores is independent of the scores, and every order is equally likely.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a sparsekern.Pattern, got {describe(pattern)}")
    inactive = pattern.numel - pattern.nnz
    count = min(check_integer(count, "count", minimum=0), inactive)
    if check_generator(generator) is not None and generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
    active = _log_uniform(pattern.nnz, generator).to(pattern.device)
    if 2 * count > inactive:
        scores, order = _log_uniform(inactive, generator).sort(descending=True, stable=True)
        positions = _inactive_positions(pattern)[order[:count].to(pattern.device)]
        return Candidates(active, positions, scores[:count].to(pattern.device))
    remaining = torch.arange(inactive, inactive - count, -1, dtype=torch.float64, device="cpu")
    scores = (_log_uniform(count, generator) / remaining).cumsum(0).to(pattern.device)
    return Candidates(active, _random_inactive(pattern, count, generator), scores)


def _log_uniform(count: int, generator: torch.Generator | None) -> Tensor:
    """``log(1 - U)``: as exact near 0 as U itself, and never infinite."""
    drawn = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
    return drawn.neg_().log1p_()


def _inactive_positions(pattern: Pattern) -> Tensor:
    mask = pattern.to_mask()
    matrix = mask if mask.dim() == 2 else mask.permute(0, 2, 3, 1)
    return matrix.flatten().logical_not_().nonzero().squeeze(1)


def _random_inactive(pattern: Pattern, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` distinct inactive positions in random order: positions are drawn, and unusable ones dropped.

    Meant for at most half of the inactive positions, so that half of the inactive ones drawn are new.
    """
    found = torch.empty(0, dtype=torch.int64, device=pattern.device)
    inactive = pattern.numel - pattern.nnz
    while (missing := count - found.numel()) > 0:
        # As many as hold the missing ones on average, and a few more.
        draws = missing * pattern.numel // (inactive - found.numel()) + 16
        drawn = _random_positions(pattern.numel, draws, generator).to(pattern.device)
        found = _first_occurrences(torch.cat([found, drawn[~pattern.is_active(drawn)]]))
    return found[:count]


def _random_positions(numel: int, draws: int, generator: torch.Generator | None) -> Tensor:
    """About `draws` numbers below `numel`, each equally likely; ``torch.randint`` favours some of them."""
    words = torch.randint(2**WORD_BITS, (draws,), dtype=torch.int64, generator=generator, device="cpu")
    return words[words < 2**WORD_BITS // numel * numel] % numel


def _first_occurrences(numbers: Tensor) -> Tensor:
    """The distinct numbers, in the order of their first occurrence."""
    ordered, index = numbers.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return numbers[index[first].sort().values]
