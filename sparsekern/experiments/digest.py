"""A digest of nested content: tells apart what differs in any bit, type or structure."""

import hashlib
from typing import Any

import torch


def digest(content: Any) -> str:
    """SHA-256 of ``content``, the same in every process and on every machine.

    Parameters
    ----------
    content : Any
        Dictionaries, lists and tuples of tensors, numbers, text, None, nested in any way. Lists and tuples
        count as one type; the order of a dictionary's items counts.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    _update(sha, content)
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    """Feed ``value`` to ``sha`` so that different contents, types and structures give different bytes."""
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _update(sha, key)
            _update(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"list {len(value)} ".encode())
        for item in value:
            _update(sha, item)
    else:
        sha.update(f"{type(value).__name__} {value!r} ".encode())
