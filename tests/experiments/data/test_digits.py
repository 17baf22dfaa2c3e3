import builtins
import re
import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits as load_bundled_digits

from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_sizes_types_and_range(digits):
    assert digits.train_images.shape == (1437, 1, 28, 28)
    assert digits.test_images.shape == (360, 1, 28, 28)
    assert digits.train_labels.shape == (1437,)
    assert digits.test_labels.shape == (360,)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1


def test_split_is_stratified_to_within_one_example(digits):
    train, test = digits.train_labels.bincount(), digits.test_labels.bincount()
    assert len(train) == 10
    assert ((train + test) / 5 - test).abs().max() < 1


def test_split_uses_every_example_once(digits):
    bundled = load_bundled_digits()
    expected = sorted(torch.from_numpy(bundled.target).tolist())
    assert sorted(digits.train_labels.tolist() + digits.test_labels.tolist()) == expected
    brightness = torch.cat([digits.train_images, digits.test_images]).double().mean((1, 2, 3))
    pixels = torch.from_numpy(bundled.images / 16).mean((1, 2))
    # Bilinear enlarging weighs pixels at the border differently, so the mean of an image moves a little.
    torch.testing.assert_close(brightness.sort().values, pixels.sort().values, atol=0.03, rtol=0)


def test_loading_twice_gives_the_same_tensors(digits):
    again = load_dataset("digits")
    assert torch.equal(digits.train_images, again.train_images)
    assert torch.equal(digits.test_labels, again.test_labels)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *arguments, **keywords):
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_dataset("digits")


def test_the_fingerprint_is_the_same_in_every_process():
    program = (
        "from sparsekern.experiments.data import load_dataset; print(load_dataset('digits').fingerprint)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == load_dataset("digits").fingerprint + "\n"


def test_a_folder_would_not_be_read_and_is_refused(tmp_path):
    message = f"--data-dir must be left out for the data set 'digits', .* got {re.escape(str(tmp_path))}"
    with pytest.raises(DataError, match=message):
        load_dataset("digits", tmp_path)
