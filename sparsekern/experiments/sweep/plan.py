"""The runs of a sweep: methods times initializations times seeds, each in a folder of its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.recipe import Recipe, recipe_keys
from sparsekern.experiments.settings import DENSE_METHODS, PRUNING_METHODS, TWO_FOUR_METHODS

# Each seed is a folder for every method and initialization.
MOST_SEEDS = 10_000
# What a sweep sets itself: times of steps would be those of runs that share a machine.
SWEPT = ("method", "init", "seed", "benchmark_steps")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    recipe: Recipe
    folder: Path

    @property
    def words(self) -> tuple[str, ...]:
        """What it is called where runs are listed, in columns."""
        return self.recipe.method, self.recipe.init, f"seed {self.recipe.seed}"

    @property
    def cell(self) -> tuple[str, str]:
        """Method and initialization: its place in the table."""
        return self.recipe.method, self.recipe.init


def plan_jobs(
    recipe: Recipe, methods: Sequence[str], inits: Sequence[str], seeds: Sequence[int], output: Path
) -> list[Job]:
    """Every combination, all of the first seed first, so that the table fills evenly.

    Networks that are dense, or start so, have one initialization, ``dense``, whatever ``inits`` are.

    Raises
    ------
    RecipeError
        If the recipe does not go with one of the methods.
    """
    jobs = []
    for seed in seeds:
        for method in methods:
            starts_dense = (*DENSE_METHODS, *TWO_FOUR_METHODS, *PRUNING_METHODS)
            dense = method in starts_dense or not recipe.sparsity
            for init in ["dense"] if dense else inits:
                swept = recipe.override(dict(zip(SWEPT, (method, init, seed, 0))))
                jobs.append(Job(swept, output / f"{method}-{init}-seed{seed}"))
    return jobs


def parse_words(text: str, key: str) -> list[str]:
    """``a,b`` as ``["a", "b"]``, each one of the choices of a recipe key, none twice.

    Raises
    ------
    RecipeError
        Names the option.
    """
    choices = recipe_keys()[key].choices
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word not in choices]
    if wrong:
        raise RecipeError(f"--{key}s must be of {', '.join(choices)}, separated by commas, got {wrong[0]!r}")
    return list(dict.fromkeys(words))


def parse_seeds(text: str) -> list[int]:
    """``0-2,7`` as ``[0, 1, 2, 7]``, none twice.

    Raises
    ------
    RecipeError
        If it is no list of whole numbers and ranges of them, or one of very many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise RecipeError(f"--seeds must be whole numbers and ranges such as 0-2,7, got {text!r}")
        some = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(seeds) + len(some) > MOST_SEEDS:
            raise RecipeError(f"--seeds must be at most {MOST_SEEDS:,} seeds, got {text!r}")
        seeds += some
    return list(dict.fromkeys(seeds))
