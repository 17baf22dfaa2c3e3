"""What a loader returns."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Dataset:
    """Images (examples, 1, 28, 28) float32 in [0, 1] and labels (examples,) int64, to train and to test.

    ``fingerprint`` is the digest of the source they were made of, the same on every machine.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    fingerprint: str

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set on ``device``."""
        return Dataset(
            self.name,
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.fingerprint,
        )
