"""Runs a function of `ranks.py` in processes that train, save and load together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    return Processes(Path(__file__).with_name("ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes; tiny layers gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
