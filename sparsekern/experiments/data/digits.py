"""The digits that come with scikit-learn: a data set that needs no download."""

import numpy
import torch
import torch.nn.functional as F

from sparsekern.experiments.data.dataset import InMemoryDataset
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import DataError

_EVERY = 5  # one example of five is for testing


def load_digits() -> InMemoryDataset:
    """1,797 handwritten digits, resized from 8x8 to 28x28 (bilinear), as 1,437 training and 360 test
    examples.

    The split is fixed and stratified: sort by label, keeping the order inside a label, and take every fifth
    example, starting with the first, for testing. Pixels, 0 to 16 in the source, become 0 to 1.

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_bundled_digits
    except ImportError:
        raise DataError("the data set 'digits' comes with scikit-learn: pip install scikit-learn") from None
    bundled = load_bundled_digits()
    order = numpy.argsort(bundled.target, kind="stable")
    small = torch.from_numpy(bundled.images[order]).to(torch.float32).div_(16).unsqueeze(1)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bundled.target[order]).to(torch.int64)
    is_test = torch.arange(len(labels)) % _EVERY == 0
    return InMemoryDataset(
        "digits",
        images[~is_test],
        labels[~is_test],
        images[is_test],
        labels[is_test],
        # The source: enlarged pixels may differ in the last bit from one machine to another.
        fingerprint=digest([torch.from_numpy(bundled.images), labels]),
    )
