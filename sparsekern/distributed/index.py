"""The index of `torch.distributed.checkpoint`, a pickle: read after a look at what it would call."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsekern.distributed.agreement import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader

__all__ = ["checked_reader"]

NAME = ".metadata"
# All that PyTorch itself puts into an index, beside the dtypes: classes that hold values, and two functions
# that make a layout and a memory format of a string and a number.
KNOWN = frozenset(
    {
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
    }
)


class _Unpickler(pickle.Unpickler):
    """Finds what is known, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def checked_reader(folder: Path) -> FileSystemReader:
    """PyTorch's reader of a folder whose index holds values alone, so that reading it runs no other code.

    Raises
    ------
    CheckpointError
        For an index that asks for anything else, or is none.
    """
    from torch.distributed.checkpoint import FileSystemReader

    path = folder / NAME
    try:
        with open(path, "rb") as file:
            _Unpickler(file).load()
    # A damaged pickle fails in more ways than are documented.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} must be the index of a checkpoint, with values alone: {reason}"
        ) from None
    return FileSystemReader(folder)
