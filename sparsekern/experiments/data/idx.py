"""The IDX format of MNIST: two zero bytes, an element type, a rank, big-endian dimensions, the elements."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy
import torch

from sparsekern.experiments.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 8


def read_idx(path: Path, rank: int) -> torch.Tensor:
    """Read an IDX file of unsigned bytes, gzip-compressed or not (its content decides, not its name).

    Parameters
    ----------
    path : Path
        The file.
    rank : int
        The number of dimensions it must have: 3 for images, 1 for labels.

    Returns
    -------
    torch.Tensor
        uint8, of the shape the file states.

    Raises
    ------
    DataError
        Names the file, what was expected and what was found: not readable, damaged compression, wrong magic
        number, or a size that does not fit its dimensions.
    """
    content = _read(path)
    magic = bytes([0, 0, _UNSIGNED_BYTE, rank])
    if content[:4] != magic:
        raise DataError(
            f"{path}: expected the IDX magic number {_spell(magic)} ({rank} dimensions of unsigned bytes), "
            f"found {_spell(content[:4])}"
        )
    header_size = 4 + 4 * rank
    if len(content) < header_size:
        raise DataError(
            f"{path}: expected a header of {header_size} bytes, found {len(content)} bytes in all"
        )
    shape = struct.unpack(f">{rank}I", content[4:header_size])
    expected = header_size + math.prod(shape)
    size = " x ".join(map(str, shape))
    if len(content) != expected:
        raise DataError(f"{path}: expected {expected:,} bytes for {size} elements, found {len(content):,}")
    # NumPy counts the other dimensions also where one is 0.
    if math.prod(extent or 1 for extent in shape) >= 2**63:
        raise DataError(f"{path}: expected dimensions that memory has room for, found {size}")
    # A copy: torch wants memory that may be written to.
    return torch.from_numpy(numpy.frombuffer(content, numpy.uint8, offset=header_size).reshape(shape).copy())


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if content[:2] != _GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected whole gzip data, found damage: {error}") from None


def _spell(content: bytes) -> str:
    return "0x" + content.hex() if content else "nothing"
