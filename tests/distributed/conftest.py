"""Runs a function of `ranks.py` in processes that train, save and load together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import Processes, one_thread

__all__ = ["one_thread", "processes"]  # the first is for all tests of this folder


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    return Processes(Path(__file__).with_name("ranks.py"), tmp_path_factory.mktemp("ranks"))
