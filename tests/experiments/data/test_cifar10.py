import re

import numpy
import pytest
import torch

from sparsekern.experiments.data import BatchOrder, cifar10, load_dataset
from sparsekern.experiments.data.cifar10 import augmented
from sparsekern.experiments.errors import DataError

FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
MEAN = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64).view(3, 1, 1)
DEVIATION = torch.tensor([0.2470, 0.2435, 0.2616], dtype=torch.float64).view(3, 1, 1)


@pytest.fixture
def data(cifar10_folder):
    return load_dataset("cifar10", cifar10_folder)


def records(folder, name):
    return numpy.frombuffer((folder / name).read_bytes(), numpy.uint8).reshape(-1, 3073)


def test_the_files_are_read_in_order(cifar10_folder, data):
    train = numpy.concatenate([records(cifar10_folder, name) for name in FILES[:5]])
    for part, expected in (("train", train), ("test", records(cifar10_folder, FILES[5]))):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        assert labels.tolist() == expected[:, 0].tolist()
        assert labels.dtype == torch.int64
        pixels = torch.from_numpy(expected[:, 1:].reshape(-1, 3, 32, 32).copy())
        assert torch.equal(images, pixels)
        given, _ = getattr(data, f"{part}_examples")(slice(3, 9))
        wanted = (pixels[3:9].double() / 255 - MEAN) / DEVIATION
        torch.testing.assert_close(given.double(), wanted, rtol=0, atol=1e-6)
    batches = list(data.test_batches())
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.test_labels)
    assert torch.equal(torch.cat([images for images, _ in batches]), data.test_examples(slice(None))[0])


def test_the_subfolder_of_the_archive_is_found(cifar10_folder, data):
    inner = cifar10_folder / "cifar-10-batches-bin"
    inner.mkdir()
    for name in FILES:
        (cifar10_folder / name).rename(inner / name)
    assert load_dataset("cifar10", cifar10_folder).fingerprint == data.fingerprint


def test_the_fingerprint_depends_on_every_file(cifar10_folder, data):
    seen = {data.fingerprint}
    for name in FILES:
        content = bytearray((cifar10_folder / name).read_bytes())
        content[-1] ^= 1
        (cifar10_folder / name).write_bytes(content)
        seen.add(load_dataset("cifar10", cifar10_folder).fingerprint)
    assert len(seen) == 7


def cropped_one_by_one(images, draws):
    """Padding, cropping and mirroring as one would do it by hand."""
    result = []
    for image, (top, left, mirrored) in zip(images, draws.tolist()):
        canvas = torch.zeros(image.shape[0], image.shape[1] + 8, image.shape[2] + 8)
        canvas[:, 4:-4, 4:-4] = image
        crop = canvas[:, top : top + image.shape[1], left : left + image.shape[2]]
        result.append(crop.flip(2) if mirrored else crop)
    return torch.stack(result)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 5, 9)])
def test_augmentation_is_that_of_one_image_at_a_time(shape):
    source = torch.Generator().manual_seed(0)
    images = torch.randn(162, *shape, generator=source)
    # Every crop, mirrored and not.
    draws = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    assert torch.equal(augmented(images, draws), cropped_one_by_one(images, draws))


def test_a_batch_depends_on_the_seed_and_its_places_only(data):
    order = BatchOrder(100, 30, seed=5)
    batches = data.train_batches(order)
    stream = [batches(step) for step in range(10)]
    # Other batch sizes cut the same stream; any step may come first.
    images = torch.cat([images for images, _ in stream])
    for size in (100, 20, 15):
        again = data.train_batches(BatchOrder(100, size, seed=5))
        for step in reversed(range(300 // size)):
            assert torch.equal(again(step)[0], images[step * size : (step + 1) * size])
    for step, (given, labels) in enumerate(stream):
        which = order.indices(step)
        assert torch.equal(labels, data.train_labels[which])
        plain, _ = data.train_examples(which)
        for image, original in zip(given[:5], plain):
            draws = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
            crops = augmented(original.expand(162, -1, -1, -1), draws)
            assert (crops == image).flatten(1).all(1).any()
    other = data.train_batches(BatchOrder(100, 30, seed=6))(0)[0]
    assert not torch.equal(other, stream[0][0])


def test_all_crops_come_about_as_often(data):
    batches = data.train_batches(BatchOrder(100, 100, seed=0))
    draws = torch.cat([batches._draws_at(step) for step in range(200)])
    for column, values in ((0, 9), (1, 9), (2, 2)):
        counts = draws[:, column].bincount(minlength=values)
        assert len(counts) == values
        expected = 20_000 / values
        assert (counts - expected).abs().max() < 4.5 * (expected * (1 - 1 / values)) ** 0.5


def test_without_a_folder_the_option_is_named(tmp_path):
    with pytest.raises(DataError, match="'cifar10' needs --data-dir"):
        load_dataset("cifar10")
    folder = tmp_path / "nothing"
    message = f"--data-dir must be a folder with the CIFAR-10 files, got {folder}"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("cifar10", folder)


def test_files_that_are_not_there_are_named(cifar10_folder, tmp_path):
    (cifar10_folder / FILES[2]).unlink()
    with pytest.raises(DataError, match=r"/data_batch_3\.bin: cannot be read: No such file"):
        load_dataset("cifar10", cifar10_folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    message = r"expected data_batch_1\.bin to data_batch_5\.bin and test_batch\.bin, here or in "
    with pytest.raises(DataError, match=message + "cifar-10-batches-bin/, found none of them$"):
        load_dataset("cifar10", empty)
    (empty / "data_batch_1").write_bytes(b"pickled")
    with pytest.raises(
        DataError, match="found none of them: these are of the version for Python; this reads"
    ):
        load_dataset("cifar10", empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "expected 61,460 bytes, 20 images of 3,073, found 61,459"),
        (lambda content: content[:-3073], "expected 61,460 bytes, 20 images of 3,073, found 58,387"),
        (lambda content: content + b"\0", "expected 61,460 bytes, 20 images of 3,073, found 61,461"),
        (lambda content: b"", "expected 61,460 bytes, 20 images of 3,073, found 0"),
        (
            lambda content: content[: 7 * 3073] + b"\x0a" + content[7 * 3073 + 1 :],
            "expected labels from 0 to 9, found 10 in image 7",
        ),
    ],
    ids=["cut", "an image less", "a byte more", "empty", "label 10"],
)
@pytest.mark.parametrize("name", ["data_batch_5.bin", "test_batch.bin"])
def test_damaged_files_are_refused(cifar10_folder, name, change, message):
    path = cifar10_folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: {message}$"):
        load_dataset("cifar10", cifar10_folder)


def test_real_files_have_10_000_images():
    assert (cifar10._RECORDS, cifar10._RECORD) == (10_000, 3073)
