"""The folder of a search for lottery tickets: each round whole or not there, and never mixed with others."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern.files import remove_unfinished, write_atomically
from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern

__all__ = ["Generators", "Saved", "TicketFolder"]

VERSION = 1
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Generators:
    """Where torch's generators were: the CPU's, and those of CUDA devices that are in use."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> Generators:
        in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if in_use else [])

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.device_count() == len(self.cuda):
            torch.cuda.set_rng_state_all(self.cuda)


@dataclass(frozen=True)
class Saved:
    """What a round hands to the next one; no state where it is that of the round before."""

    masks: Mapping[str, Pattern]
    state: Mapping[str, Any] | None
    generators: Generators


class TicketFolder:
    """Files ``settings.json``, ``start.pt`` and ``round-01.pt``, ``round-02.pt``, ...

    Parameters
    ----------
    path : path
        Of the folder; made by `open`. Other files in it are left alone.
    """

    def __init__(self, path: Any) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"folder must be the path of a folder, got {describe(path)}")
        self.path = Path(path)
        self._is_making = False

    def open(self, own: dict[str, Any], others: Any) -> None:
        """Make the folder, or go on in one of the same settings.

        Raises
        ------
        TypeError, ValueError
            For settings that JSON has no words for, and for a folder of others: names what differs.
        OSError
            When it cannot be made or read.
        """
        if not isinstance(others, Mapping):
            raise TypeError(f"settings must be a mapping, got {describe(others)}")
        try:
            text = json.dumps({"version": VERSION, **own, "settings": dict(others)}, indent=2)
        except (TypeError, ValueError) as error:
            raise TypeError(f"settings must be numbers, text and lists of them: {error}") from error
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / SETTINGS
        for path in (file, *(self._file(index) for index in range(own["rounds"] + 1))):
            remove_unfinished(path)
        if file.exists():
            self._check_settings(file, json.loads(text))
        elif self._file(0).exists():
            raise ValueError(f"{file}: expected the settings of the rounds that are there, found no file")
        else:
            write_atomically(file, text.encode())

    def _check_settings(self, file: Path, ours: dict[str, Any]) -> None:
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict) or not isinstance(theirs.get("settings"), dict):
            raise ValueError(
                f"{file}: expected the settings of find_tickets, found a damaged or another file"
            )
        ours, theirs = (_flat(given) for given in (ours, theirs))
        differing = [
            f"{key}: {_word(theirs, key)} there, {_word(ours, key)} here"
            for key in dict.fromkeys([*ours, *theirs])
            if ours.get(key) != theirs.get(key)
        ]
        if differing:
            raise ValueError(
                f"folder must be empty or of the same settings, got {self.path} with others "
                f"({'; '.join(differing)})"
            )

    def load_or_save(self, index: int, make: Callable[[], Saved]) -> Saved:
        """The round's result (that of 0 is the start), made and written if it is not there yet.

        Rounds are asked for in order. Once one has been made, files of later ones are of another search: they
        are written over.
        """
        path = self._file(index)
        if path.exists() and not self._is_making:
            return _read(path)
        self._is_making = True
        saved = make()
        content = {
            "masks": {name: pattern.data for name, pattern in saved.masks.items()},
            "state": saved.state,
            "cpu": saved.generators.cpu,
            "cuda": saved.generators.cuda,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(path, buffer.getvalue())
        return saved

    def _file(self, index: int) -> Path:
        return self.path / (f"round-{index:02d}.pt" if index else "start.pt")


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Each setting as text, those of the caller under names of their own."""
    own = {key: value for key, value in settings.items() if key != "settings"}
    others = {f"settings[{key!r}]": value for key, value in settings["settings"].items()}
    return {key: json.dumps(value, sort_keys=True) for key, value in {**own, **others}.items()}


def _word(settings: Mapping[str, str], key: str) -> str:
    text = settings.get(key, "nothing")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read(path: Path) -> Saved:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles it is about to refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
        masks = {name: Pattern(data) for name, data in content["masks"].items()}
        return Saved(masks, content["state"], Generators(content["cpu"], content["cuda"]))
    except OSError:
        raise
    except Exception as error:  # a damaged archive fails in more ways than torch documents
        raise ValueError(
            f"{path}: expected a round of find_tickets, found a damaged file or one of another kind; without "
            "it, that round and those after it are trained again"
        ) from error
