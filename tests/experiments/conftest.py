import pytest
import torch

from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.recipe import load_recipe


@pytest.fixture(autouse=True)
def one_thread():
    """One thread for every test here, and the number that was set before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture
def short_recipe():
    """The demo's recipe, cut to a few steps."""
    return load_recipe("lenet5-digits").override(
        {"steps": 12, "log_every": 4, "evaluate_every": 6, "checkpoint_every": 5, "benchmark_steps": 0}
    )
