"""The weights of an earlier run, as the dense weights of another."""

from pathlib import Path

from torch import nn

from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.recipe import Recipe
from sparsekern.export import dense_from_packed


def load_weights(model: nn.Module, recipe: Recipe) -> None:
    """Load what the checkpoint ``recipe.weights`` holds into the dense network; inactive weights are 0.

    Raises
    ------
    ExperimentError
        If it cannot be read, or is of another network.
    """
    path = Path(recipe.weights)
    try:
        state = read_checkpoint(path)
        saved = state["trainer"]["model"]
        model.load_state_dict(dense_from_packed(saved))
    except CheckpointError as error:
        raise ExperimentError(f"weights {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(
            f"weights {path}: expected those of a run of {recipe.network}, found others ({reason})"
        ) from None
