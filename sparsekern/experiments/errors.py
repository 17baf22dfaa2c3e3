"""Errors a user can mend: the command prints them as one line, without a traceback."""


class ExperimentError(Exception):
    """Base of all of them."""


class RecipeError(ExperimentError, ValueError):
    """A recipe, or an override of one of its keys, is wrong."""


class DataError(ExperimentError, ValueError):
    """A data set is missing, damaged, or not what its name says."""


class CheckpointError(ExperimentError, RuntimeError):
    """A checkpoint cannot be written or read, or belongs to another run."""


class TrainingError(ExperimentError, RuntimeError):
    """Training itself cannot go on."""


class DivergedError(TrainingError):
    """The loss or a gradient is not finite any more."""
