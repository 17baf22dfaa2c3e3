import numpy
import PIL.Image
import pytest

from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.recipe import load_recipe
from tests.processes import one_thread

__all__ = ["one_thread"]  # for all tests of this folder


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Three classes of small images, of different sizes: 11 to train and 6 to test."""
    root = tmp_path_factory.mktemp("images")
    generator = numpy.random.default_rng(0)
    for part, counts in (("train", (5, 4, 2)), ("val", (1, 2, 3))):
        for name, count in zip(("ant", "bee", "cat"), counts):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40 + number, 44, 3), dtype=numpy.uint8)
                PIL.Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def cifar10_folder(tmp_path, monkeypatch):
    """Six files in CIFAR-10's format, of 20 images each."""
    monkeypatch.setattr("sparsekern.experiments.data.cifar10._RECORDS", 20)
    source = numpy.random.default_rng(0)
    folder = tmp_path / "cifar"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = source.integers(0, 256, (20, 3073), dtype=numpy.uint8)
        records[:, 0] = source.permutation(20) % 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.fixture
def short_recipe():
    """The demo's recipe, cut to a few steps."""
    return load_recipe("lenet5-digits").override(
        {"steps": 12, "log_every": 4, "evaluate_every": 6, "checkpoint_every": 5, "benchmark_steps": 0}
    )
