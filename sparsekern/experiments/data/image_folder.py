"""Images in folders named after their classes, as ImageNet comes; read as training goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.data.dataset import Batches, Examples
from sparsekern.experiments.data.images import require_pillow
from sparsekern.experiments.data.streaming import ImageStream, StreamedBatches, read_all
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import DataError
from sparsekern.seeds import generator

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder ``train/CLASS/*`` and ``val/CLASS/*``.

    Labels number the classes in the order of their names. The training set is in an order of its own, always
    the same, so that its first examples are of many classes.

    Attributes
    ----------
    train, test : ImageStream
        Where the images are.
    train_labels, test_labels : Tensor
        (examples,) int64, on the CPU.
    fingerprint : str
        Digest of the names and sizes of all files; their content is not read for it.
    device : torch.device
        Where examples are given.
    """

    name: str
    train: ImageStream
    train_labels: Tensor
    test: ImageStream
    test_labels: Tensor
    fingerprint: str
    device: torch.device

    def to(self, device: torch.device | str) -> ImageFolder:
        """The same data set, which gives its examples on ``device``."""
        return replace(self, device=torch.device(device))

    def train_examples(self, which: Tensor | slice) -> Examples:
        """Some training examples: their centers, as in testing."""
        return self._examples(self.train, self.train_labels, which)

    def test_examples(self, which: Tensor | slice) -> Examples:
        """Some test examples."""
        return self._examples(self.test, self.test_labels, which)

    def train_batches(self, order: BatchOrder) -> Batches:
        """Random crops, read ahead by the workers; each a function of the order's seed and its place."""
        return StreamedBatches(self.train, self.train_labels, order, self.device)

    def test_batches(self) -> Iterator[Examples]:
        """The whole test set, in order, read ahead by the workers."""
        begin = 0
        for images in read_all(self.test, range(len(self.test_labels)), self.device):
            yield images, self.test_labels[begin : begin + len(images)].to(self.device)
            begin += len(images)

    def _examples(self, stream: ImageStream, labels: Tensor, which: Tensor | slice) -> Examples:
        chosen = torch.arange(len(labels))[which.cpu() if isinstance(which, Tensor) else which]
        images = list(read_all(stream, chosen.tolist(), self.device))
        return torch.cat(images), labels[chosen].to(self.device)


def load_image_folder(
    folder: Path, image_size: int = 224, num_classes: int | None = None, workers: int = 0
) -> ImageFolder:
    """List the images of ``folder``; none is read yet.

    Parameters
    ----------
    folder : Path
        With the folders ``train`` and ``val``, each with a folder for every class.
    image_size : int
        Pixels of a side that examples are given with.
    num_classes : int, optional
        How many classes there must be; any number from 1 on if None.
    workers : int
        Processes that read images; 0 reads them in this one.

    Raises
    ------
    DataError
        Names the folder, what was expected and what was found; or says that Pillow is not installed.
    """
    folder = Path(folder)
    require_pillow()
    if not folder.is_dir():
        raise DataError(f"--data-dir must be a folder with train/ and val/, got {folder}, which is none")
    classes = _classes(folder / "train")
    if num_classes is not None and len(classes) != num_classes:
        raise DataError(
            f"{folder / 'train'}: expected as many classes as num_classes says, {num_classes:,}, "
            f"found {len(classes):,}"
        )
    _check_same(folder, classes, _classes(folder / "val"))
    train, train_labels, train_sizes = _list(folder / "train", classes)
    test, test_labels, test_sizes = _list(folder / "val", classes)
    order = torch.randperm(len(train), generator=generator(0, "image_folder"))
    return ImageFolder(
        "image_folder",
        ImageStream(folder / "train", train[order.numpy()], image_size, workers),
        train_labels[order],
        ImageStream(folder / "val", test, image_size, workers),
        test_labels,
        fingerprint=digest([train_sizes, test_sizes]),
        device=torch.device("cpu"),
    )


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with a folder of images for every class, found none")
    with _scan(folder) as entries:
        found = sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: expected a folder of images for every class, found no folder")
    return found


def _check_same(folder: Path, train: list[str], test: list[str]) -> None:
    for ours, theirs, having, lacking in ((train, test, "train", "val"), (test, train, "val", "train")):
        if missing := sorted(set(ours) - set(theirs)):
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(
                f"{folder / lacking}: expected the classes of {folder / having}, found no {missing[0]}{more}"
            )


def _list(folder: Path, classes: list[str]) -> tuple[numpy.ndarray, Tensor, str]:
    """Names below ``folder`` in one array of bytes, labels, and a line with name and size for each."""
    names, labels, lines = [], [], []
    for label, name in enumerate(classes):
        with _scan(folder / name) as entries:
            files = sorted(
                (each.name, each.stat().st_size)
                for each in entries
                if each.name.lower().endswith(_SUFFIXES) and not each.name.startswith(".") and each.is_file()
            )
        if not files:
            raise DataError(
                f"{folder / name}: expected images ({', '.join(_SUFFIXES)}), found none of these files"
            )
        names += [os.fsencode(f"{name}/{file}") for file, _ in files]
        labels += [label] * len(files)
        lines += [f"{name}/{file} {size}\n" for file, size in files]
    # Millions of Python objects would be copied to each worker, bit by bit, as their counts change.
    return numpy.array(names), torch.tensor(labels), "".join(lines)


def _scan(folder: Path) -> os.ScandirIterator:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
