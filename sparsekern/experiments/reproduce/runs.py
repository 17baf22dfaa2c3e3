"""The runs behind the paper's tables and figures, addressed by their content.

A run's folder is named after the digest of its recipe, and a recipe that takes its masks from another run
names that run's folder; so equal runs are one run, whichever table asks for them, and no path outside of the
folder of all runs is part of an address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.recipe import Recipe, load_recipe
from sparsekern.experiments.settings import GRADIENT_METHODS

NETWORKS = ("lenet5", "mlp")
INITS = ("dense", "per_layer", "per_neuron")
#: What the paper calls training with a static random mask, and the methods that update it.
SPARSE_METHODS = ("static", "set", "rigl")
#: The seeds of runs that start anew lie apart from those of the pruning runs: with an equal seed, masked
#: initial weights would be the lottery ticket's.
FRESH = 1000


@dataclass(frozen=True)
class PaperRun:
    """One training run of the paper.

    Attributes
    ----------
    role : str
        What the paper calls it: ``"prune"``, ``"scratch"``, ``"lottery"``, ...
    recipe : Recipe
        Whose masks and weights lie in the source's folder, relative to the folder of all runs.
    source : PaperRun or None
        The run that has to end before this one begins.
    """

    role: str
    recipe: Recipe
    source: PaperRun | None = None

    @property
    def start(self) -> tuple[object, ...]:
        """What decides the network that it starts from: runs of equal ones start alike."""
        recipe = self.recipe
        if recipe.weights:
            return recipe.model, recipe.masks, recipe.weights
        seed = recipe.seed if recipe.init_seed is None else recipe.init_seed
        return recipe.model, recipe.masks, recipe.init, seed

    @property
    def folder(self) -> str:
        """Its name among all runs."""
        return f"{self.recipe.network}-{self.recipe.method}-{self.recipe.digest}"


_QUICK = {
    "steps": 400,
    "update_every": 40,
    "prune_begin": 100,
    "prune_end": 240,
    "log_every": 50,
    "evaluate_every": 400,
    "checkpoint_every": 400,
    "gradient_flow_every": 40,
}


@dataclass(frozen=True)
class Scale:
    """How long runs are: as in the paper's code, or minutes in all.

    Attributes
    ----------
    quick : bool
    dataset : str
    changes : mapping of str to Any
        Of keys of the recipe, in all runs.
    """

    quick: bool = False
    dataset: str = "mnist"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def base(self, network: str) -> Recipe:
        """The recipe that all runs of a network are variations of."""
        recipe = load_recipe(f"{network}-mnist").override(
            {
                # Only the runs that read it have it in their address, see `grow_batch_start`.
                "grow_batch_start": 0,
                "dataset": self.dataset,
                "log_every": 200,
                "evaluate_every": 2000,
                "checkpoint_every": 2000,
                "gradient_flow_every": 200,
            }
        )
        if self.quick:
            recipe = recipe.override(_QUICK)
        return recipe.override(self.changes)

    @property
    def grow_batch_start(self) -> int:
        """Where the examples begin that RigL grows by: behind those that the gradient flow is measured on,
        where there are so many."""
        return 1000 if self.dataset == "mnist" else 0

    @property
    def prune_every(self) -> int:
        """Steps between updates of gradual pruning, which are those of the masks for other methods."""
        return 10 if self.quick else 100


class PaperRuns:
    """Makes the runs of one network.

    Parameters
    ----------
    network : str
        ``"lenet5"`` (95 % sparse) or ``"mlp"`` (98 %).
    seeds : sequence of int
        Of the repetitions, each from 0 to 999.
    scale : Scale

    Raises
    ------
    RecipeError
        For other seeds.
    """

    def __init__(self, network: str, seeds: Sequence[int], scale: Scale) -> None:
        for seed in seeds:
            if not 0 <= seed < FRESH:
                raise RecipeError(f"seeds must be from 0 to {FRESH - 1}, got {seed}")
        self.network = network
        self.seeds = tuple(seeds)
        self.base = scale.base(network)
        self._prune_every = scale.prune_every
        self._grow_batch_start = scale.grow_batch_start

    def prune(self, seed: int) -> PaperRun:
        """Gradual pruning: its final mask is that of all runs of the seed."""
        changes = {"method": "gradual_pruning", "init": "dense", "update_every": self._prune_every}
        return PaperRun("prune", self.base.override(changes | {"seed": seed}))

    def dense(self, seed: int) -> PaperRun:
        """The dense network."""
        return PaperRun("dense", self.base.override({"method": "dense", "init": "dense", "seed": seed}))

    def small_dense(self, seed: int) -> PaperRun:
        """The dense network of as many parameters as the sparse one has."""
        changes = {"method": "small_dense", "init": "dense", "seed": seed}
        return PaperRun("small_dense", self.base.override(changes))

    def sparse(
        self, method: str, init: str, seed: int, *, of: int | None = None, init_of: int | None = None
    ) -> PaperRun:
        """A run with the mask of the pruning run of seed ``of``, from new initial weights.

        ``init_of`` is the seed of these weights where it is not ``seed``, which orders the data.
        """
        changes: dict[str, object] = {"method": method, "init": init, "seed": FRESH + seed}
        if init_of not in (None, seed):
            changes["init_seed"] = FRESH + init_of
        if method in GRADIENT_METHODS:
            changes["grow_batch_start"] = self._grow_batch_start
        role = "scratch" if method == "static" else method
        return self._masked(role, changes, seed if of is None else of)

    def lottery(self, seed: int, *, of: int | None = None) -> PaperRun:
        """The ticket of a pruning run: its mask, the weights it started from, another order of data."""
        of = seed if of is None else of
        changes = {"method": "static", "init": "dense", "seed": FRESH + seed, "init_seed": of}
        return self._masked("lottery", changes, of)

    def restart(self, seed: int, *, of: int) -> PaperRun:
        """Training again from where a pruning run ended, with the whole schedule, another order of data."""
        weights = f"{self.prune(of).folder}/checkpoint.pt"
        changes = {"method": "static", "init": "dense", "seed": FRESH + seed, "weights": weights}
        return self._masked("restart", changes, of)

    def accuracy_table(self) -> list[PaperRun]:
        """The runs of Table 1 or 5, seed by seed."""
        runs = []
        for seed in self.seeds:
            runs += [self.prune(seed), self.dense(seed), self.lottery(seed), self.small_dense(seed)]
            runs += [self.sparse(method, init, seed) for init in INITS for method in SPARSE_METHODS]
        return runs

    def inverted(self) -> list[PaperRun]:
        """RigL that grows the least gradients, of Figure 3."""
        return [self.sparse("rigl_inverted", "per_neuron", seed) for seed in self.seeds]

    def solutions(self) -> dict[str, list[PaperRun]]:
        """The groups of solutions that Tables 2 and 6 and Figure 5 compare, all of the first pruning run."""
        of = self.seeds[0]
        return {
            "lottery": [self.lottery(seed, of=of) for seed in self.seeds],
            "scratch": [self.sparse("static", "per_neuron", seed, of=of, init_of=of) for seed in self.seeds],
            "scratch_other_init": [self.sparse("static", "per_neuron", seed, of=of) for seed in self.seeds],
            "restart": [self.restart(seed, of=of) for seed in self.seeds],
            "pruned": [self.prune(seed) for seed in self.seeds],
        }

    def _masked(self, role: str, changes: dict[str, object], of: int) -> PaperRun:
        source = self.prune(of)
        masks = f"{source.folder}/checkpoint.pt"
        return PaperRun(role, self.base.override({**changes, "masks": masks}), source)


def unique(runs: Iterable[PaperRun]) -> list[PaperRun]:
    """Each run once, sources included and before all that need them."""
    found: dict[str, PaperRun] = {}
    for run in runs:
        for needed in (run.source, run):
            if needed is not None:
                found.setdefault(needed.folder, needed)
    return list(found.values())
