"""Any text as a data set: its bytes or its characters, in blocks of which each token predicts the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.data.dataset import Batches, Examples
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import DataError
from sparsekern.seeds import generator

#: What a token may be.
TOKENS = ("bytes", "characters")

_BYTES = 256
_SUFFIX = ".txt"
# The last of so many equal parts is for testing.
_PARTS = 10
_TEST_TOKENS = 8192


@dataclass(frozen=True)
class Text:
    """Tokens to train and to test. An example is a block: ``context`` tokens, and the one after each of them.

    The text is cut into blocks from its beginning; what is left at the end is in none. Training draws
    blocks that begin anywhere.

    Attributes
    ----------
    train, test : Tensor
        (tokens,) uint8, or int32 where there are more than 256 characters.
    context : int
        Tokens of a block.
    characters : str or None
        The character of each token, in order; None where tokens are bytes.
    fingerprint : str
        Digest of the tokens and the characters.
    """

    name: str
    train: Tensor
    test: Tensor
    context: int
    characters: str | None
    fingerprint: str

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return _BYTES if self.characters is None else len(self.characters)

    @property
    def train_labels(self) -> Tensor:
        """(blocks, context) of the tokens' own type: the token after each one of a block."""
        return _blocks(self.train, self.context, 1)

    @property
    def test_labels(self) -> Tensor:
        """(blocks, context) of the tokens' own type."""
        return _blocks(self.test, self.context, 1)

    def to(self, device: torch.device | str) -> Text:
        """The same data set on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def train_examples(self, which: Tensor | slice) -> Examples:
        """Some blocks of the training part by their places, and the tokens that follow, both int64."""
        return _blocks(self.train, self.context, 0)[which].long(), self.train_labels[which].long()

    def test_examples(self, which: Tensor | slice) -> Examples:
        """Some blocks of the test part by their places."""
        return _blocks(self.test, self.context, 0)[which].long(), self.test_labels[which].long()

    def train_batches(self, order: BatchOrder) -> Batches:
        """Blocks that begin anywhere, each step's drawn from the order's seed and the step."""
        return _DrawnBatches(self, order)

    def test_batches(self) -> Iterator[Examples]:
        """All blocks of the test part, in order."""
        size = max(1, _TEST_TOKENS // self.context)
        for begin in range(0, len(self.test_labels), size):
            yield self.test_examples(slice(begin, begin + size))


def load_text(path: Path, tokens: str = "bytes", context: int = 128) -> Text:
    """Read a text file, or all ``.txt`` files of a folder in the order of their names, joined.

    The first nine tenths are for training, the last tenth for testing. Tokens are held in memory.

    Parameters
    ----------
    path : Path
        A file of any name, or a folder.
    tokens : str
        ``"bytes"``: 256 of them, whatever the encoding. ``"characters"``: of UTF-8, those that are in the
        text, numbered in the order of their code points.
    context : int
        Tokens of a block, at least 1.

    Raises
    ------
    DataError
        If nothing can be read, a file is not UTF-8, or a part is too short for a block.
    ValueError
        If ``tokens`` or ``context`` is not one of these.
    """
    if tokens not in TOKENS:
        raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}")
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    path = Path(path)
    files = _files(path)
    if tokens == "bytes":
        content = numpy.frombuffer(b"".join(map(_read, files)), numpy.uint8)
        characters = None
    else:
        content, characters = _numbered("".join(map(_decode, files)))
    needed = _PARTS * (context + 1)
    if len(content) < needed:
        raise DataError(
            f"{path}: expected at least {needed:,} {tokens}, for {_PARTS} blocks of context + 1 = "
            f"{context + 1:,}, found {len(content):,}"
        )
    # A copy: torch wants memory that may be written to.
    numbers = torch.from_numpy(content.copy())
    train = len(numbers) - len(numbers) // _PARTS
    return Text("text", numbers[:train], numbers[train:], context, characters, digest([numbers, characters]))


class _DrawnBatches:
    def __init__(self, text: Text, order: BatchOrder) -> None:
        self._text = text
        self._order = order

    def __call__(self, step: int) -> Examples:
        train, context = self._text.train, self._text.context
        begins = torch.randint(
            len(train) - context,
            (self._order.batch_size, 1),
            generator=generator(self._order.seed, "text", step),
        )
        blocks = train[(begins + torch.arange(context + 1)).to(train.device)].long()
        return blocks[:, :-1], blocks[:, 1:]

    def close(self) -> None:
        pass


def _blocks(tokens: Tensor, context: int, offset: int) -> Tensor:
    count = (len(tokens) - 1) // context
    return tokens[offset : offset + count * context].view(count, context)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"--data-dir must be a text file or a folder of {_SUFFIX} files, got {path}, which is none"
        )
    files = sorted(each for each in path.iterdir() if each.suffix.lower() == _SUFFIX and each.is_file())
    if not files:
        raise DataError(f"{path}: expected {_SUFFIX} files, found none (--data-dir may also be one file)")
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, found {error.object[error.start]:#04x} at byte {error.start:,}; "
            "--tokens bytes takes any file"
        ) from None


def _numbered(text: str) -> tuple[numpy.ndarray, str]:
    """The number of each character, and the characters in the order of these numbers."""
    points = numpy.frombuffer(text.encode("utf-32-le"), numpy.uint32)
    known, numbers = numpy.unique(points, return_inverse=True)
    kind = numpy.uint8 if len(known) <= _BYTES else numpy.int32
    return numbers.astype(kind), "".join(map(chr, known.tolist()))
