"""Damaged saves, each of which is named before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from sparsekern import export
from sparsekern.export import safetensors_stream
from sparsekern.export.shards import INDEX
from tests.export.networks import dense_network, network, on_meta, shard, snapshot


@pytest.fixture
def copy(saved, tmp_path):
    """The folder to damage."""
    shutil.copytree(saved[1], tmp_path / "copy")
    return tmp_path / "copy"


def edited(change):
    """The index with something else in it."""

    def damage(folder):
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def header(**parts):
    return edited(lambda index: index["metadata"]["sparsekern"].update(parts))


def flip(folder):
    content = bytearray(shard(folder, 3).read_bytes())
    content[-5] ^= 1
    shard(folder, 3).write_bytes(content)


def swap(folder):
    shard(folder, 1).rename(folder / "other")
    shard(folder, 4).rename(shard(folder, 1))
    (folder / "other").rename(shard(folder, 4))


def forge(folder):
    """A pattern with other bits, in a file that matches the index again."""
    index = json.loads((folder / INDEX).read_text())
    name = index["weight_map"]["3.pattern"]
    path = folder / name
    with open(path, "rb") as file:
        begin = safetensors_stream.read_header(path, file)[0]["3.pattern"].begin
    content = bytearray(path.read_bytes())
    content[begin : begin + 4] = b"none"
    path.write_bytes(content)
    with open(path, "rb") as file:
        index["metadata"]["sparsekern"]["shards"][name]["sha256"] = safetensors_stream.digest_of(file)
    (folder / INDEX).write_text(json.dumps(index))


def without(*parts):
    def change(index):
        for part in parts[:-1]:
            index = index[part]
        del index[parts[-1]]

    return edited(change)


DAMAGES = {
    "a byte": (flip, ValueError, r"model-00003-of.*: expected SHA-256 \w+, found \w+: it is damaged"),
    "truncated": (
        lambda folder: os.truncate(shard(folder, 2), 700),
        ValueError,
        r"00002-.*: expected \d+ bytes, found 700",
    ),
    "removed": (
        lambda folder: shard(folder, 4).unlink(),
        ValueError,
        rf"model-00004.*: expected the file that {INDEX} names, found none",
    ),
    "swapped": (swap, ValueError, r"model-00001-of.*: expected (\d+ bytes|SHA-256)"),
    "no index": (lambda folder: (folder / INDEX).unlink(), FileNotFoundError, re.escape(INDEX)),
    "no json": (
        lambda folder: (folder / INDEX).write_text("{"),
        ValueError,
        r"index\.json: expected JSON, found",
    ),
    "a list": (
        lambda folder: (folder / INDEX).write_text("[]"),
        ValueError,
        "expected an index of save_sharded, found one without",
    ),
    "of another tool": (
        without("metadata", "sparsekern"),
        ValueError,
        "expected an index of save_sharded, found one without",
    ),
    "of another version": (header(version=2), ValueError, "expected version 1, found 2"),
    "no shards": (
        without("metadata", "sparsekern", "shards"),
        ValueError,
        "found one whose parts do not fit",
    ),
    "no weight map": (without("weight_map"), ValueError, "found one whose parts do not fit"),
    "a file elsewhere": (
        header(shards={"../x.safetensors": {"bytes": 1, "sha256": ""}}),
        ValueError,
        "parts do not fit",
    ),
    "an alias of nothing": (header(aliases={"a": "b"}), ValueError, "parts do not fit"),
    "a tensor less": (
        without("weight_map", "0.bias"),
        ValueError,
        r"expected the tensors that .* names, found another '0\.bias'",
    ),
    "a layer less": (
        without("metadata", "sparsekern", "layers", "3"),
        ValueError,
        r"expected .* for (layer '3'|'3\.weight'), found",
    ),
    "a layer of nonsense": (
        edited(lambda index: index["metadata"]["sparsekern"]["layers"]["3"].update(stored=["?"])),
        ValueError,
        r"expected .* for (layer '3'|'3\.weight'), found",
    ),
    "a forged pattern": (forge, ValueError, r"expected a valid pattern for '3\.pattern': .*magic"),
}


@pytest.mark.parametrize("meta", [False, True], ids=["memory", "meta"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_named_before_anything_is_loaded(damage, meta, copy):
    act, error, message = DAMAGES[damage]
    act(copy)
    model = on_meta(dense_network) if meta else network(seed=1)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        export.load_sharded(model, copy)
    assert snapshot(model) == before
