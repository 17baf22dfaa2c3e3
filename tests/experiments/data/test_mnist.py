import gzip
import re
from pathlib import Path

import pytest
import torch

from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import DataError

REAL_MNIST = Path(__file__).parents[4] / "shared" / "data" / "mnist"


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
def test_every_spelling_is_found(mnist_folder, joint, compressed):
    data = load_dataset("mnist", mnist_folder(joint, compressed))
    assert data.train_images.shape == (20, 1, 28, 28)
    assert data.test_images.shape == (10, 1, 28, 28)
    assert data.train_labels.tolist() == [*range(10), *range(10)]


def test_pixels_are_divided_by_255(mnist_folder, idx_bytes):
    folder = mnist_folder(compressed=False)
    pixels = torch.arange(20 * 28 * 28).view(20, 28, 28) % 256
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
    data = load_dataset("mnist", folder)
    assert data.train_images.dtype == torch.float32
    assert torch.equal(data.train_images, pixels.unsqueeze(1).to(torch.float32) / 255)


def test_without_a_folder_the_option_is_named():
    with pytest.raises(DataError, match="needs --data-dir"):
        load_dataset("mnist")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    folder = tmp_path / "nothing"
    message = f"--data-dir must be a folder with the MNIST files, got {folder}"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("mnist", folder)


def test_the_fingerprint_depends_on_pixels_and_labels_only(mnist_folder, idx_bytes):
    folder = mnist_folder()
    first = load_dataset("mnist", folder).fingerprint
    for file in list(folder.iterdir()):
        file.unlink()
    assert load_dataset("mnist", mnist_folder(".", compressed=False)).fingerprint == first
    seen = {first}
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (file,) = folder.glob(f"{name}.*")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        seen.add(load_dataset("mnist", folder).fingerprint)
    assert len(seen) == 5


def test_a_missing_file_is_named_in_all_spellings(mnist_folder):
    folder = mnist_folder()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte, .*t10k-labels\.idx1-ubyte\.gz, found none"):
        load_dataset("mnist", folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("train-images-idx3-ubyte", torch.zeros(20, 32, 32), "images of 28 x 28 pixels, found 32 x 32"),
        ("train-images-idx3-ubyte", torch.zeros(0, 28, 28), "at least one image, found none"),
        ("train-labels-idx1-ubyte", torch.zeros(19), "20 labels, one for each image .*, found 19"),
        ("t10k-labels-idx1-ubyte", torch.arange(10) + 1, "labels from 0 to 9, found 10"),
    ],
    ids=["image size", "no images", "fewer labels", "label 10"],
)
def test_contents_that_do_not_fit_are_refused(mnist_folder, idx_bytes, name, tensor, message):
    folder = mnist_folder()
    path = folder / f"{name}.gz"
    path.write_bytes(gzip.compress(idx_bytes(tensor)))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: expected {message}"):
        load_dataset("mnist", folder)


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason=f"needs the MNIST files in {REAL_MNIST}")
def test_the_real_files():
    data = load_dataset("mnist", REAL_MNIST)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert data.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train_images.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert data.train_images.std().item() == pytest.approx(0.3081, abs=1e-4)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(
        DataError, match="the data set must be one of digits, mnist, cifar10, image_folder, text, got 'mnits'"
    ):
        load_dataset("mnits")
