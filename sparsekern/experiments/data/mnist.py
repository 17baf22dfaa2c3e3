"""MNIST from the user's own copy of its four IDX files."""

from pathlib import Path

import torch

from sparsekern.experiments.data.dataset import InMemoryDataset
from sparsekern.experiments.data.idx import read_idx
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import DataError

_SIDE = 28
_CLASSES = 10


def load_mnist(folder: Path) -> InMemoryDataset:
    """Read MNIST (or a data set in its format, as Fashion-MNIST) from ``folder``; pixels are divided by 255.

    Each file may be compressed with gzip or not, and be spelled ``train-images-idx3-ubyte`` or
    ``train-images.idx3-ubyte``, with ``.gz`` or without.

    Raises
    ------
    DataError
        Names the file, what was expected and what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"--data-dir must be a folder with the MNIST files, got {folder}, which is none")
    train_images, train_labels = _read_part(folder, "train")
    test_images, test_labels = _read_part(folder, "t10k")
    return InMemoryDataset(
        "mnist",
        _scaled(train_images),
        train_labels.to(torch.int64),
        _scaled(test_images),
        test_labels.to(torch.int64),
        fingerprint=digest([train_images, train_labels, test_images, test_labels]),
    )


def _read_part(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (examples, 28, 28) and labels (examples,), both uint8 and checked."""
    images_path = _find(folder, f"{part}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels", "idx1-ubyte")
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if images.shape[1:] != (_SIDE, _SIDE):
        height, width = images.shape[1:]
        raise DataError(
            f"{images_path}: expected images of {_SIDE} x {_SIDE} pixels, found {height} x {width}"
        )
    if not len(images):
        raise DataError(f"{images_path}: expected at least one image, found none")
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, one for each image of {images_path.name}, "
            f"found {len(labels):,}"
        )
    if labels.max() >= _CLASSES:
        raise DataError(
            f"{labels_path}: expected labels from 0 to {_CLASSES - 1}, found {labels.max().item()}"
        )
    return images, labels


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.unsqueeze(1).to(torch.float32).div_(255)


def _find(folder: Path, stem: str, ending: str) -> Path:
    names = [f"{stem}{joint}{ending}{suffix}" for joint in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: expected one of {', '.join(names)}, found none of them")
