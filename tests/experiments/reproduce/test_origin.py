"""Runs of another version or on other data are not taken for these."""

import dataclasses
import json

import pytest

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.origin import ORIGIN, claim


def test_runs_on_other_data_are_not_taken_for_these(digits, tmp_path):
    folder = tmp_path / "runs"
    claim(folder, digits)
    other = dataclasses.replace(digits, name="mnist", fingerprint="a" * 64)
    claim(folder, other)  # another data set may be beside it: recipes name theirs
    before = (folder / ORIGIN).read_bytes()
    written = (folder / ORIGIN).stat().st_mtime_ns
    claim(folder, digits)
    claim(folder, other)
    with pytest.raises(
        ExperimentError, match=r"holds runs on other data: .* mnist .*bbbbbbbbbbbb.*, found aaaa"
    ):
        claim(folder, dataclasses.replace(other, fingerprint="b" * 64))
    assert (folder / ORIGIN).read_bytes() == before
    assert (folder / ORIGIN).stat().st_mtime_ns == written


def test_runs_of_another_version_are_refused(digits, tmp_path):
    claim(tmp_path, digits)
    content = json.loads((tmp_path / ORIGIN).read_text()) | {"sparsekern": "0.0.9"}
    (tmp_path / ORIGIN).write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=r"holds runs of sparsekern 0\.0\.9: expected .*--output"):
        claim(tmp_path, digits)
    assert json.loads((tmp_path / ORIGIN).read_text()) == content


def test_runs_of_an_unknown_version_are_refused(digits, tmp_path):
    (tmp_path / "lenet5-dense-0").mkdir()
    (tmp_path / "lenet5-dense-0" / "recipe.yaml").write_text("")
    with pytest.raises(ExperimentError, match=r"holds runs of an unknown version and data: expected origin"):
        claim(tmp_path, digits)
    assert not (tmp_path / ORIGIN).exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"digits": 3}',
        '{"sparsekern": 1, "data": {}}',
        '{"sparsekern": "1", "data": {"mnist": 3}}',
    ],
    ids=["damaged", "a list", "a number", "no version", "no fingerprint"],
)
def test_a_note_that_cannot_be_read_is_named(content, digits, tmp_path):
    (tmp_path / ORIGIN).write_text(content)
    with pytest.raises(ExperimentError, match=r"origin\.json: expected the version and the data .*; remove"):
        claim(tmp_path, digits)
    assert (tmp_path / ORIGIN).read_text() == content


def test_a_folder_that_cannot_be_made_is_one_error(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"^--output .*file/runs: cannot be written: Not a directory$"):
        claim(tmp_path / "file" / "runs", digits)
