"""The paths that files are written to and read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparsekern.formats.checks import describe

__all__ = ["checked_path"]


def checked_path(path: Any, suffix: str) -> Path:
    """`path` as a Path; TypeError or ValueError unless it is one that ends in `suffix`, as ``.onnx``."""
    rule = f"path must be the path of a {suffix} file"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{rule}, got {describe(path)}")
    if Path(path).suffix != suffix:
        raise ValueError(f"{rule}, got {os.fspath(path)!r}")
    return Path(path)
