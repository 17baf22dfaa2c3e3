"""What a loader returns: examples in memory, or examples that are read as training goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.errors import RecipeError

#: Images (examples, channels, height, width) float32 and labels (examples,) int64; or tokens (examples,
#: context) int64 and, as labels, the tokens that follow, of the same shape.
Examples = tuple[Tensor, Tensor]

_TEST_BATCH = 1000


class Batches(Protocol):
    """The batches of a training run, each a function of its step alone."""

    def __call__(self, step: int) -> Examples:
        """The batch of training step ``step``, counted from 0; one step after another is the fast way."""

    def close(self) -> None:
        """Let go of what reads ahead."""


class Dataset(Protocol):
    """Examples to train and to test.

    Attributes
    ----------
    name : str
    fingerprint : str
        The digest of the source, the same on every machine.
    train_labels, test_labels : Tensor
        (examples,) int64; of text (examples, context), of a type that may be smaller.
    """

    name: str
    fingerprint: str

    @property
    def train_labels(self) -> Tensor: ...

    @property
    def test_labels(self) -> Tensor: ...

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set, which gives its examples on ``device``."""

    def train_examples(self, which: Tensor | slice) -> Examples:
        """Some training examples by their places, never augmented."""

    def test_examples(self, which: Tensor | slice) -> Examples:
        """Some test examples by their places."""

    def train_batches(self, order: BatchOrder) -> Batches:
        """The batches of a training run, augmented where the data set is."""

    def test_batches(self) -> Iterator[Examples]:
        """The whole test set, in order."""


def first_examples(dataset: Dataset, size: int, key: str, start: int = 0) -> Examples:
    """The first ``size`` training examples after ``start``, as many as the recipe key ``key`` says.

    Raises
    ------
    RecipeError
        If there are fewer.
    """
    examples = len(dataset.train_labels)
    if start + size > examples:
        before = f" and {start:,} before them" if start else ""
        raise RecipeError(
            f"{key} must be at most the number of training examples, {examples:,}, got {size:,}{before}"
        )
    return dataset.train_examples(slice(start, start + size))


@dataclass(frozen=True)
class InMemoryDataset:
    """Images (examples, 1, 28, 28) float32 in [0, 1] and labels (examples,) int64, to train and to test."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    fingerprint: str

    def to(self, device: torch.device | str) -> InMemoryDataset:
        """The same data set on ``device``."""
        return InMemoryDataset(
            self.name,
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.fingerprint,
        )

    def train_examples(self, which: Tensor | slice) -> Examples:
        """Some training examples; a slice copies nothing."""
        return self.train_images[which], self.train_labels[which]

    def test_examples(self, which: Tensor | slice) -> Examples:
        """Some test examples; a slice copies nothing."""
        return self.test_images[which], self.test_labels[which]

    def train_batches(self, order: BatchOrder) -> Batches:
        """The batches of a training run."""
        return _IndexedBatches(self, order)

    def test_batches(self) -> Iterator[Examples]:
        """The whole test set, in order."""
        return zip(self.test_images.split(_TEST_BATCH), self.test_labels.split(_TEST_BATCH), strict=True)


class _IndexedBatches:
    def __init__(self, dataset: InMemoryDataset, order: BatchOrder) -> None:
        self._dataset = dataset
        self._order = order

    def __call__(self, step: int) -> Examples:
        return self._dataset.train_examples(self._order.indices(step).to(self._dataset.train_labels.device))

    def close(self) -> None:
        pass
