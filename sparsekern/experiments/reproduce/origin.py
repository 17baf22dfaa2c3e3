"""What all runs in a folder have in common: the version that did them, and their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsekern._version import __version__
from sparsekern.experiments.data import Dataset
from sparsekern.experiments.errors import ExperimentError
from sparsekern.files import write_atomically

ORIGIN = "origin.json"


def claim(folder: Path, dataset: Dataset) -> None:
    """Note the version and the data that the runs of a folder are of: recipes, and so addresses, have no more
    than the name of the data.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    dataset : Dataset
        Others may be beside it.

    Raises
    ------
    ExperimentError
        If runs of another version, of none that is noted, or on other data are there, or the note cannot be
        read or written. Nothing is changed then.
    """
    note = folder / ORIGIN
    if not note.exists() and any(folder.glob("*/recipe.yaml")):
        raise ExperimentError(
            f"{folder} holds runs of an unknown version and data: expected {ORIGIN} beside them; --output "
            "names another folder"
        )
    known = _read(note) if note.exists() else {"sparsekern": __version__, "data": {}}
    if known["sparsekern"] != __version__:
        raise ExperimentError(
            f"{folder} holds runs of sparsekern {known['sparsekern']}: expected {__version__}; --output "
            "names another folder"
        )
    found = known["data"].get(dataset.name)
    if found == dataset.fingerprint:
        return
    if found is not None:
        raise ExperimentError(
            f"{folder} holds runs on other data: expected this {dataset.name} data set (fingerprint "
            f"{dataset.fingerprint[:12]}), found {found[:12]}; --output names another folder"
        )
    known["data"][dataset.name] = dataset.fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(note, (json.dumps(known, indent=2) + "\n").encode())
    except OSError as error:
        raise ExperimentError(f"--output {folder}: cannot be written: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        texts = [known["sparsekern"], *known["data"].keys(), *known["data"].values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ExperimentError(
            f"{path}: expected the version and the data that the runs are of; remove it if they are of this "
            "version and on this data"
        ) from None
    return known
