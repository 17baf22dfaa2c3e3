"""CIFAR-10 from the user's own copy of its binary version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.data.dataset import Batches, Examples
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import DataError
from sparsekern.seeds import generator

#: Classes of CIFAR-10.
CIFAR10_CLASSES = 10

_SIDE = 32
_SHAPE = (3, _SIDE, _SIDE)
_RECORD = 1 + 3 * _SIDE * _SIDE
_RECORDS = 10_000
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)
_SUBFOLDER = "cifar-10-batches-bin"

# Of the training pixels in [0, 1], for each channel.
_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2470, 0.2435, 0.2616)
_PADDING = 4
_TEST_BATCH = 1000


@dataclass(frozen=True)
class CIFAR10:
    """Images (examples, 3, 32, 32) uint8 and labels (examples,) int64, to train and to test.

    Examples are given normalized: ``(pixels / 255 - mean) / deviation`` in float32, for each channel.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    fingerprint: str

    def to(self, device: torch.device | str) -> CIFAR10:
        """The same data set on ``device``."""
        tensors = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def train_examples(self, which: Tensor | slice) -> Examples:
        """Some training examples, not augmented."""
        return _normalized(self.train_images[which]), self.train_labels[which]

    def test_examples(self, which: Tensor | slice) -> Examples:
        """Some test examples."""
        return _normalized(self.test_images[which]), self.test_labels[which]

    def train_batches(self, order: BatchOrder) -> Batches:
        """Augmented batches; see :func:`augmented`."""
        return _AugmentedBatches(self, order)

    def test_batches(self) -> Iterator[Examples]:
        """The whole test set, in order."""
        for begin in range(0, len(self.test_labels), _TEST_BATCH):
            yield self.test_examples(slice(begin, begin + _TEST_BATCH))


def load_cifar10(folder: Path) -> CIFAR10:
    """Read ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` from ``folder``, or from its
    folder ``cifar-10-batches-bin``.

    Each file has 10,000 records: a byte with the label, and three planes of 32 x 32 bytes.

    Raises
    ------
    DataError
        Names the file, what was expected and what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"--data-dir must be a folder with the CIFAR-10 files, got {folder}, which is none")
    folder = _folder_of_files(folder)
    train_images, train_labels = _read_part(folder, _TRAIN)
    test_images, test_labels = _read_part(folder, _TEST)
    return CIFAR10(
        "cifar10",
        train_images,
        train_labels.to(torch.int64),
        test_images,
        test_labels.to(torch.int64),
        fingerprint=digest([train_images, train_labels, test_images, test_labels]),
    )


def augmented(images: Tensor, draws: Tensor) -> Tensor:
    """Random crops of images with a border of four zeros, mirrored half of the time.

    Parameters
    ----------
    images : Tensor
        (batch, channels, height, width), normalized, so that the border has the mean's color.
    draws : Tensor
        (batch, 3) int64 on the same device: the crop's first row and column in the padded image, 0 to 8, and
        1 where the crop is mirrored.

    References
    ----------
    He et al. (2016), *Deep Residual Learning for Image Recognition*, Section 4.2.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, [_PADDING] * 4)
    top, left, mirrored = draws.unsqueeze(-1).unbind(1)
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(mirrored.bool(), width - 1 - columns, columns)
    examples = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=images.device).view(-1, 1, 1)
    return padded[examples, planes, rows.view(batch, 1, -1, 1), columns.view(batch, 1, 1, -1)]


class _AugmentedBatches:
    """An epoch's draws depend on the seed and the epoch: those of a place in the stream on no other place."""

    def __init__(self, dataset: CIFAR10, order: BatchOrder) -> None:
        self._dataset = dataset
        self._order = order
        self._epoch = -1
        self._draws = torch.empty(0, 3, dtype=torch.int64)

    def __call__(self, step: int) -> Examples:
        device = self._dataset.train_labels.device
        images, labels = self._dataset.train_examples(self._order.indices(step).to(device))
        return augmented(images, self._draws_at(step).to(device)), labels

    def close(self) -> None:
        pass

    def _draws_at(self, step: int) -> Tensor:
        batch, examples = self._order.batch_size, self._order.num_examples
        parts, place, end = [], step * batch, (step + 1) * batch
        while place < end:
            epoch, offset = divmod(place, examples)
            parts.append(self._draws_of(epoch)[offset : offset + end - place])
            place += len(parts[-1])
        return torch.cat(parts)

    def _draws_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            source, count = generator(self._order.seed, "augment", epoch), self._order.num_examples
            crops = torch.randint(2 * _PADDING + 1, (count, 2), generator=source)
            mirrored = torch.randint(2, (count, 1), generator=source)
            self._draws, self._epoch = torch.cat([crops, mirrored], 1), epoch
        return self._draws


def _normalized(pixels: Tensor) -> Tensor:
    mean = torch.tensor(_MEAN, device=pixels.device).view(3, 1, 1)
    deviation = torch.tensor(_DEVIATION, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(deviation)


def _folder_of_files(folder: Path) -> Path:
    for each in (folder, folder / _SUBFOLDER):
        if any((each / name).exists() for name in _TRAIN + _TEST):
            return each
    hint = ""
    if any((each / "data_batch_1").exists() for each in (folder, folder / "cifar-10-batches-py")):
        hint = ": these are of the version for Python; this reads the binary one, cifar-10-binary.tar.gz"
    raise DataError(
        f"{folder}: expected {_TRAIN[0]} to {_TRAIN[-1]} and {_TEST[0]}, here or in {_SUBFOLDER}/, found "
        f"none of them{hint}"
    )


def _read_part(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Images (examples, 3, 32, 32) and labels (examples,), both uint8 and checked."""
    records = torch.cat([_read(folder / name) for name in names])
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0].contiguous()


def _read(path: Path) -> Tensor:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    expected = _RECORDS * _RECORD
    if len(content) != expected:
        raise DataError(
            f"{path}: expected {expected:,} bytes, {_RECORDS:,} images of {_RECORD:,}, found {len(content):,}"
        )
    # A copy: torch wants memory that may be written to.
    records = torch.from_numpy(numpy.frombuffer(content, numpy.uint8).reshape(-1, _RECORD).copy())
    wrong = (records[:, 0] >= CIFAR10_CLASSES).nonzero()
    if len(wrong):
        place = wrong[0].item()
        raise DataError(
            f"{path}: expected labels from 0 to {CIFAR10_CLASSES - 1}, found {records[place, 0].item()} in "
            f"image {place:,}"
        )
    return records
