"""Files of `torch.save` with a state dict in them: read without running code, and where it is looked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# Where files keep a state dict: they are one, a run's checkpoint, Lightning's, and common habits.
PLACES = ((), ("state", "trainer", "model"), ("state_dict",), ("model",), ("model_state_dict",))


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, with ``weights_only=True``.

    Raises
    ------
    ValueError
        When the file is damaged, of another kind, or would run code: says which, without the file's name.
    OSError
        When the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of pickles it is about to refuse
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive fails in more ways than torch documents
            raise ValueError(f"a damaged file or one of another kind ({reason(error)})") from None


def at_place(content: Any, place: tuple[str, ...]) -> Mapping[Any, Any] | None:
    """The mapping at one of `PLACES`, None where there is none."""
    for key in place:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else None


def reason(error: Exception) -> str:
    """The first sentence of an error, or its kind where that says more."""
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    # The text of a KeyError, for one, is a number that means nothing by itself.
    return text if " " in text else type(error).__name__


def outline(content: Any) -> str:
    """What a file has, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = [repr(key) for key in content]
    return f"the keys {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "nothing"
