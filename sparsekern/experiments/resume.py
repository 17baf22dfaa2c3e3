"""What an earlier process left in a run's folder, checked as a whole before this one changes anything."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.data import Text
from sparsekern.experiments.errors import CheckpointError, RecipeError
from sparsekern.experiments.folder import RunFolder
from sparsekern.experiments.layout import misfit
from sparsekern.experiments.metrics import lines_through
from sparsekern.experiments.recipe import Recipe, recipe_from
from sparsekern.experiments.trainer import Trainer

_KEYS = {"recipe", "data", "threads", "trainer"}
_TEXT_KEYS = {*_KEYS, "characters"}


@dataclass(frozen=True)
class Resumed:
    """A run that is carried on: its metrics so far, and what to tell the user."""

    metrics: str
    notes: list[str]


def run_state(trainer: Trainer) -> dict[str, Any]:
    """The content of a run's checkpoint; of text in characters, these too."""
    dataset = trainer.dataset
    characters = dataset.characters if isinstance(dataset, Text) else None
    return {
        **({} if characters is None else {"characters": characters}),
        "recipe": asdict(trainer.recipe),
        "data": dataset.fingerprint,
        "threads": torch.get_num_threads(),
        "trainer": trainer.state_dict(),
    }


def read_state(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """The folder's checkpoint, as :func:`run_state` made it in a run of the same recipe.

    Raises
    ------
    CheckpointError
        If the file is damaged or holds something else, or the run is of another recipe.
    """
    state = read_checkpoint(folder.checkpoint)
    if state.keys() not in (_KEYS, _TEXT_KEYS):
        raise CheckpointError(
            f"{folder.checkpoint}: expected the state of a run ({', '.join(sorted(_KEYS))}), "
            f"found {', '.join(sorted(map(str, state))) or 'nothing'}"
        )
    try:
        theirs = recipe_from(state["recipe"], f"{folder.checkpoint}: the run's recipe")
    except RecipeError as error:
        raise CheckpointError(str(error)) from None
    folder.refuse_another(recipe, theirs)
    return state


def resume(trainer: Trainer, state: dict[str, Any], folder: RunFolder) -> Resumed:
    """Set ``trainer`` to what :func:`read_state` found, and check all else that the run needs.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit the network or the number of steps, or comes from other data; if the
        metrics are not those of its steps.
    """
    path, expected = folder.checkpoint, run_state(trainer)
    wrong = misfit(state, {**expected, "recipe": state["recipe"], "trainer": state["trainer"]}, "the run")
    if wrong:
        raise CheckpointError(f"{path}: {wrong}")
    if unknown := sorted(set(expected.get("characters", "")) - set(state.get("characters", ""))):
        more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{path}: expected a run that knows the characters of this text, found one without "
            f"{unknown[0]!r}{more}"
        )
    if state["data"] != expected["data"]:
        raise CheckpointError(
            f"{path}: expected a run on this {trainer.dataset.name} data set (fingerprint "
            f"{expected['data'][:12]}), found one on other data ({state['data'][:12]})"
        )
    try:
        trainer.load_state_dict(state["trainer"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    first, last = trainer.recipe.first_step + 1, trainer.recipe.steps
    if not first <= trainer.step <= last:
        raise CheckpointError(f"{path}: expected a step from {first:,} to {last:,}, found {trainer.step:,}")
    metrics = lines_through(folder.metrics, trainer.recipe, trainer.step, trainer.update_steps)
    notes = [f"resumed after step {trainer.step:,}"]
    before, now = state["threads"], expected["threads"]
    if before != now:
        notes.append(
            f"note: the number of threads was {before}, is {now}: the last bits of dense layers may differ"
        )
    return Resumed(metrics, notes)
