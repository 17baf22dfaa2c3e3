"""What tests of files share: a model that is saved in several, its folder, and what a load may change."""

from __future__ import annotations

import pytest

from sparsekern import export
from tests.export.networks import SHARDS, network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the folder that it is saved in."""
    model, folder = network(), tmp_path_factory.mktemp("saved")
    assert len(export.save_sharded(model, folder, shard_bytes=500)) == SHARDS
    return model, folder
