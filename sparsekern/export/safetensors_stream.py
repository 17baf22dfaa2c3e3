"""The safetensors format, written and read one tensor at a time.

A file is the length of its header in eight bytes, the header (JSON, padded to a multiple of eight), and the
tensors' bytes without gaps. The package safetensors takes all tensors of a file at once; here the memory of
one is enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
# What is written and hashed at a time, and the longest header that other readers take.
CHUNK, MAX_HEADER = 16 * 2**20, 100 * 10**6


@dataclass(frozen=True)
class Stored:
    """A tensor that a file holds: what it is, and the bytes from `begin` to `end` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def size_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize


def encode_header(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """What a file with these tensors, in this order, begins with."""
    header: dict[str, Any] = {METADATA: metadata}
    begin = 0
    for key, (dtype, shape) in tensors.items():
        end = begin + size_of(dtype, shape)
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(file: BinaryIO, header: bytes, tensors: Iterator[Tensor]) -> tuple[int, str]:
    """Write a whole file and force it to the disk.

    Returns
    -------
    tuple of int and str
        Its bytes, and their SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    count = 0
    for part in _parts(header, tensors):
        for begin in range(0, len(part), CHUNK):
            chunk = part[begin : begin + CHUNK]
            file.write(chunk)
            digest.update(chunk)
        count += len(part)
    file.flush()
    os.fsync(file.fileno())
    return count, digest.hexdigest()


def _parts(header: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors:
        host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if host.numel():
            yield memoryview(host.view(-1).view(torch.uint8).numpy())


def digest_of(file: BinaryIO) -> str:
    """SHA-256 of a whole file, in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    buffer = bytearray(CHUNK)
    while count := file.readinto(buffer):
        digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of an open file and its metadata.

    Raises
    ------
    ValueError
        When it is no safetensors file, or a damaged one: names `path`, and what was expected and found.
    """
    size = os.fstat(file.fileno()).st_size

    def check(good: bool, expected: str, found: Callable[[], Any]) -> None:
        if not good:
            raise ValueError(f"{path}: expected {expected}, found {found()}")

    file.seek(0)
    start = file.read(8)
    check(len(start) == 8, "a safetensors file", lambda: f"one of {size} bytes")
    (length,) = struct.unpack("<Q", start)
    check(
        length <= min(size - 8, MAX_HEADER),
        f"a header within the file's {size} bytes",
        lambda: f"one of {length} bytes",
    )
    try:
        header = json.loads(file.read(length))
        metadata = header.pop(METADATA, None) or {}
        tensors = {key: _stored(entry, 8 + length) for key, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a header of safetensors, found a damaged one ({error})") from None
    end = 8 + length
    for key, stored in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        bytes_of_tensor = size_of(stored.dtype, stored.shape)
        check(
            stored.begin == end and stored.end - stored.begin == bytes_of_tensor,
            f"{bytes_of_tensor} bytes from {end} on for {key!r}",
            lambda stored=stored: f"{stored.begin} to {stored.end}",
        )
        end = stored.end
    check(end == size, f"{end} bytes", lambda: f"{size}")
    return tensors, metadata


def _stored(entry: dict[str, Any], data: int) -> Stored:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape and data_offsets {shape}, {begin}, {end}")
    return Stored(DTYPES[entry["dtype"]], shape, data + begin, data + end)


def read_tensor(path: Path, file: BinaryIO, stored: Stored) -> Tensor:
    """One tensor of an open file, on the CPU."""
    tensor = torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
    if tensor.numel() == 0:
        return tensor
    file.seek(stored.begin)
    target = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    while len(target):
        count = file.readinto(target[:CHUNK])
        if not count:
            raise ValueError(f"{path}: expected {stored.end} bytes, found fewer")
        target = target[count:]
    return tensor
