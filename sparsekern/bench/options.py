"""What the options of ``sparsekern bench`` take, as argparse converts it."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

MOST = 1 << 20
LARGEST_SIZE = 10_000_000
PICTURES = (".png", ".svg", ".pdf")


def layer_shape(text: str) -> tuple[int, int]:
    """``OUTxIN``."""
    sizes = _sizes(text, MOST)
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"must be OUTxIN, such as 4096x4096, got {text!r}")
    return sizes


def input_shape(text: str) -> tuple[int, ...]:
    """The shape of one example, ``3x224x224`` or ``784``."""
    sizes = _sizes(text, LARGEST_SIZE)
    if not sizes:
        raise argparse.ArgumentTypeError(
            f"must be the sizes of one example without the batch, such as 3x224x224, got {text!r}"
        )
    return sizes


def input_tokens(text: str) -> tuple[int, int]:
    """``VOCABULARYxLENGTH``."""
    sizes = _sizes(text, LARGEST_SIZE)
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"must be VOCABULARYxLENGTH, such as 50257x1024, got {text!r}")
    return sizes


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or len(text) > 7 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST}, got {text!r}")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers from 1, each once, in order."""
    return sorted({count(part.strip()) for part in text.split(",")})


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, at most 3600, got {text!r}")
    return value


def sparsities(text: str) -> tuple[float, ...]:
    """Fractions of zeros, each once, in order."""
    try:
        values = {float(part) for part in text.split(",")}
    except ValueError:
        values = {-1.0}
    if not all(0 <= value < 1 for value in values):
        hint = "; 90 % is 0.9" if all(1 < value <= 100 for value in values) else ""
        raise argparse.ArgumentTypeError(
            f"must be fractions of zeros from 0 to below 1, such as 0.5,0.9, got {text!r}{hint}"
        )
    return tuple(sorted(values))


def assignment(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``; the value is a Python literal, or else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def json_file(text: str) -> Path:
    """A file in a folder that is there."""
    return _file(text)


def picture_file(text: str) -> Path:
    """A picture's file in a folder that is there."""
    path = _file(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PICTURES)}, got {text!r}")
    return path


def _file(text: str) -> Path:
    # Looked at before anything is measured, so that minutes of work do not end in an error.
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a folder that exists, got {text!r}")
    return path


def _sizes(text: str, most: int) -> tuple[int, ...]:
    parts = re.split(r"[xX,]", text)
    if not all(re.fullmatch(r"[0-9]{1,8}", part) for part in parts):
        return ()
    sizes = tuple(map(int, parts))
    return sizes if all(1 <= size <= most for size in sizes) else ()
