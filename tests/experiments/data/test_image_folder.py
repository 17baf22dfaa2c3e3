import builtins
import os
import re
import shutil

import pytest
import torch

from sparsekern.experiments.data import BatchOrder, load_dataset
from sparsekern.experiments.data.images import normalize, read_image, testing_pixels, training_pixels
from sparsekern.experiments.errors import DataError

# pytest would take the imported function for a test.
testing_pixels.__test__ = False


def load(folder, workers=0, **options):
    return load_dataset("image_folder", folder, image_size=32, workers=workers, **options)


@pytest.fixture
def copy(image_folder, tmp_path):
    return shutil.copytree(image_folder, tmp_path / "copy")


def path_of(stream, index):
    return stream.folder / stream.names[index].decode()


def test_labels_are_the_places_of_the_classes(image_folder):
    data = load(image_folder)
    for stream, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        names = [path_of(stream, index).parent.name for index in range(len(labels))]
        assert [["ant", "bee", "cat"].index(name) for name in names] == labels.tolist()
    assert data.train_labels.bincount().tolist() == [5, 4, 2]
    assert data.test_labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert sorted(path_of(data.train, i) for i in range(11)) == sorted(image_folder.glob("train/*/*.png"))


def test_the_training_set_is_mixed_and_always_the_same(image_folder, copy):
    data = load(image_folder)
    assert data.train_labels.tolist() != sorted(data.train_labels.tolist())
    assert data.train.names.tolist() == load(copy).train.names.tolist()


def test_examples_are_the_centers_of_the_images(image_folder):
    data = load(image_folder)
    for examples, stream, labels in (
        (data.train_examples, data.train, data.train_labels),
        (data.test_examples, data.test, data.test_labels),
    ):
        for which in (slice(4), torch.tensor([3, 0, 3])):
            chosen = torch.arange(len(labels))[which]
            images, found = examples(which)
            expected = [testing_pixels(read_image(path_of(stream, i)), 32) for i in chosen]
            assert torch.equal(images, normalize(torch.stack(expected)))
            assert torch.equal(found, labels[chosen])


@pytest.mark.parametrize("workers", [0, 2])
def test_test_batches_are_the_whole_test_set_in_order(image_folder, workers, monkeypatch):
    monkeypatch.setattr("sparsekern.experiments.data.streaming._CHUNK", 4)
    data = load(image_folder, workers)
    batches = list(data.test_batches())
    assert [len(images) for images, _ in batches] == [4, 2]
    images, labels = (torch.cat(part) for part in zip(*batches))
    expected, _ = data.test_examples(slice(None))
    assert torch.equal(images, expected)
    assert torch.equal(labels, data.test_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_can_be_asked_for_and_is_a_function_of_the_step(image_folder, workers, monkeypatch):
    monkeypatch.setattr("sparsekern.experiments.data.streaming._CHUNK", 3)
    data, order = load(image_folder, workers), BatchOrder(11, 4, seed=5)
    state = torch.get_rng_state()
    batches = data.train_batches(order)
    for step in (0, 1, 2, 7, 8, 2):
        images, labels = batches(step)
        indices = order.indices(step)
        pixels = [
            training_pixels(read_image(path_of(data.train, index)), 32, 5, place)
            for place, index in enumerate(indices, 4 * step)
        ]
        assert torch.equal(images, normalize(torch.stack(pixels)))
        assert torch.equal(labels, data.train_labels[indices])
    batches.close()
    batches.close()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_from_any_process(copy, workers):
    (copy / "train" / "bee" / "1.png").write_bytes(b"nothing")
    batches = load(copy, workers).train_batches(BatchOrder(11, 11, seed=0))
    with pytest.raises(DataError, match=re.escape(f"{copy}/train/bee/1.png: expected an image")) as caught:
        batches(0)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.multiprocessing.get_start_method() != "fork", reason="patches the workers")
def test_a_worker_that_dies_is_one_line(image_folder, monkeypatch):
    monkeypatch.setattr("sparsekern.experiments.data.streaming.read_image", lambda path: os._exit(3))
    batches = load(image_folder, 1).train_batches(BatchOrder(11, 4, seed=0))
    with pytest.raises(DataError, match="a process that reads images died; fewer --workers") as caught:
        batches(0)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_of_names_and_sizes(image_folder, copy):
    expected = load(image_folder).fingerprint
    assert load(copy).fingerprint == expected
    path = copy / "train" / "ant" / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert load(copy).fingerprint == expected
    path.write_bytes(content + b"x")
    larger = load(copy).fingerprint
    path.write_bytes(content)
    path.rename(path.with_name("9.png"))
    assert len({expected, larger, load(copy).fingerprint}) == 3


def test_other_files_are_passed_over(copy):
    expected = load(copy).fingerprint
    (copy / "train" / "ant" / "notes.txt").touch()
    (copy / "train" / "ant" / ".hidden.png").touch()
    (copy / "train" / ".cache").mkdir()
    (copy / "train" / "list.csv").touch()
    assert load(copy).fingerprint == expected
    (copy / "train" / "ant" / "0.png").rename(copy / "train" / "ant" / "0.JPEG")
    assert len(load(copy).train_labels) == 11


def without_val(folder):
    shutil.rmtree(folder / "val")


def without_classes(folder):
    for each in list((folder / "train").iterdir()):
        shutil.rmtree(each)


def with_a_class_less(folder):
    shutil.rmtree(folder / "val" / "bee")


def with_classes_more(folder):
    (folder / "val" / "dog").mkdir()
    (folder / "val" / "eel").mkdir()


def with_an_empty_class(folder):
    for each in (folder / "train" / "cat").iterdir():
        each.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_val, "{}/val: expected a folder with a folder of images for every class, found none"),
        (without_classes, "{}/train: expected a folder of images for every class, found no folder"),
        (with_a_class_less, "{0}/val: expected the classes of {0}/train, found no bee"),
        (with_classes_more, "{0}/train: expected the classes of {0}/val, found no dog and 1 more"),
        (with_an_empty_class, "{}/train/cat: expected images (.bmp, .jpeg, "),
    ],
)
def test_a_folder_that_is_not_one_is_one_line(copy, change, message):
    change(copy)
    with pytest.raises(DataError, match=re.escape(message.format(copy))) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_another_number_of_classes_is_refused(image_folder):
    assert load(image_folder, num_classes=3).train_labels.max() == 2
    message = f"{image_folder}/train: expected as many classes as num_classes says, 1,000, found 3"
    with pytest.raises(DataError, match=re.escape(message)):
        load(image_folder, num_classes=1000)


def test_without_pillow_the_error_says_what_to_install(image_folder, monkeypatch):
    original = builtins.__import__

    def without_pillow(name, *arguments, **keywords):
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(DataError, match=re.escape("pip install 'sparsekern[images]'")):
        load(image_folder)
