"""Data sets, in memory or read as training goes, and the order in which training sees them."""

from pathlib import Path

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.data.cifar10 import CIFAR10, CIFAR10_CLASSES, load_cifar10
from sparsekern.experiments.data.dataset import Batches, Dataset, Examples, InMemoryDataset, first_examples
from sparsekern.experiments.data.digits import load_digits
from sparsekern.experiments.data.image_folder import ImageFolder, load_image_folder
from sparsekern.experiments.data.mnist import load_mnist
from sparsekern.experiments.data.text import TOKENS, Text, load_text
from sparsekern.experiments.errors import DataError

#: name -> one line about it
DATASETS = {
    "digits": "scikit-learn's 8x8 digits as 28x28 images: 1,437 + 360 examples, no download",
    "mnist": "MNIST from its IDX files in --data-dir: 60,000 + 10,000 examples",
    "cifar10": "CIFAR-10 from its binary files in --data-dir: 50,000 + 10,000 color images of 32x32",
    "image_folder": "the images of train/CLASS/ and val/CLASS/ in --data-dir, as ImageNet has them",
    "text": "the bytes or characters of --data-dir, a text file or a folder of .txt files",
}


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    *,
    image_size: int = 224,
    num_classes: int | None = None,
    workers: int = 0,
    tokens: str = "bytes",
    context: int = 128,
) -> Dataset:
    """Load one of :data:`DATASETS`.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`.
    data_dir : Path, optional
        The folder that holds the data set's files, or the file of a text; ``digits`` has none.
    image_size, num_classes, workers : int
        Of :func:`load_image_folder`, without effect on other data sets.
    tokens, context : str, int
        Of :func:`load_text`, likewise.

    Raises
    ------
    DataError
        If the name is unknown, the files are missing or damaged, or a folder is given that would not be read.
    """
    if name == "digits":
        if data_dir is not None:
            raise DataError(
                f"--data-dir must be left out for the data set 'digits', which comes with scikit-learn, "
                f"got {data_dir}"
            )
        return load_digits()
    if name == "mnist":
        if data_dir is None:
            raise DataError("the data set 'mnist' needs --data-dir, the folder that holds its four IDX files")
        return load_mnist(data_dir)
    if name == "cifar10":
        if data_dir is None:
            raise DataError("the data set 'cifar10' needs --data-dir, the folder that holds its binary files")
        return load_cifar10(data_dir)
    if name == "image_folder":
        if data_dir is None:
            raise DataError(
                "the data set 'image_folder' needs --data-dir, the folder that holds train/ and val/"
            )
        return load_image_folder(data_dir, image_size, num_classes, workers)
    if name == "text":
        if data_dir is None:
            raise DataError("the data set 'text' needs --data-dir, a text file or a folder of .txt files")
        return load_text(data_dir, tokens, context)
    raise DataError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}")


__all__ = [
    "CIFAR10",
    "CIFAR10_CLASSES",
    "TOKENS",
    "DATASETS",
    "BatchOrder",
    "Batches",
    "Dataset",
    "Examples",
    "ImageFolder",
    "InMemoryDataset",
    "Text",
    "first_examples",
    "load_cifar10",
    "load_dataset",
    "load_digits",
    "load_image_folder",
    "load_mnist",
    "load_text",
]
