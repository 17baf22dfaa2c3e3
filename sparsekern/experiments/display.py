"""What a person watching a run sees: a bar on a terminal, and a line for every evaluation anywhere."""

import sys
from typing import Any, Protocol

from tqdm import tqdm

_BAR = "{desc} {percentage:3.0f}% |{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]{postfix}"


class Watcher(Protocol):
    """What follows a run: it hears of every step and every record of the metrics."""

    def advance(self) -> None:
        """One more step is done."""

    def record(self, record: dict[str, Any]) -> None:
        """A record was written."""

    def close(self) -> None:
        """The run ends here."""


class Display:
    """Shows the records of a run as they come.

    Parameters
    ----------
    name : str
        What stands before the bar.
    first, steps : int
        The steps done before, and all of them.
    bar : bool, optional
        Whether to draw the progress bar; None draws it where standard error is a terminal.
    """

    def __init__(self, name: str, first: int, steps: int, bar: bool | None = None) -> None:
        self._steps = steps
        self._train: dict[str, Any] = {}
        self._update: dict[str, Any] = {}
        self._prune: dict[str, Any] = {}
        self._gradient: dict[str, Any] = {}
        self._bar = tqdm(
            total=steps,
            initial=first,
            desc=name,
            unit=" steps",
            bar_format=_BAR,
            dynamic_ncols=True,
            leave=False,
            disable=not (sys.stderr.isatty() if bar is None else bar),
        )

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def record(self, record: dict[str, Any]) -> None:
        """The last metrics of each kind go to the bar's end, an evaluation becomes a line."""
        match record["kind"]:
            case "test":
                self.line(self._evaluation(record))
                return
            case "train":
                self._train = record
            case "update":
                self._update = record
            case "prune":
                self._prune = record
            case "gradient":
                self._gradient = record
        self._bar.set_postfix_str(self._postfix(), refresh=False)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _postfix(self) -> str:
        parts = []
        if train := self._train:
            parts.append(f"loss {train['loss']:.4f}, accuracy {train['accuracy']:.2%}")
            parts.append(f"lr {train['learning_rate']:.3g}")
        if update := self._update:
            parts.append(f"moved {update['grown']:,}")
            parts.append(f"explored {update['exploration_rate']:.1%}")
        if prune := self._prune:
            parts.append(f"sparsity {prune['sparsity']:.2%}")
        if gradient := self._gradient:
            parts.append(f"gradient {gradient['norm']:.3g}")
        return ", ".join(parts)

    def _evaluation(self, record: dict[str, Any]) -> str:
        width = len(f"{self._steps:,}")
        text = f"step {record['step']:>{width},}/{self._steps:,}"
        if self._train:
            train = self._train
            text += f"   train loss {train['loss']:.4f}, accuracy {train['accuracy']:.2%}"
        text += f"   test loss {record['loss']:.4f}, accuracy {record['accuracy']:.2%}"
        for field in record:
            if field.startswith("bits_per_"):
                text += f", {record[field]:.3f} {field.replace('_', ' ')}"
        if self._update:
            text += f"   explored {self._update['exploration_rate']:.1%}"
        if self._prune:
            text += f"   sparsity {self._prune['sparsity']:.2%}"
        if self._train:
            rate = train["steps_per_second"]
            text += f"   lr {train['learning_rate']:<9.3g}{rate:>4.{0 if rate >= 9.95 else 1}f} steps/s"
        return text
