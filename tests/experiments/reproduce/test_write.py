import builtins
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Curves, Series
from sparsekern.experiments.reproduce.write import read_report, write_report

FILES = [
    "results.json",
    "figures/figure-1.svg",
    "figures/figure-1.png",
    "figures/figure-2.svg",
    "figures/figure-2.png",
    "report.md",
    "report.html",
]


def files_under(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_report_is_written_and_what_is_read_back_writes_the_same(tmp_path, quick_report):
    # Six digits are not enough for this curve, so its picture shows whether it is of what the data say.
    curve = Curves("c", "", "", [Series("a", [0, 1], [1000000.25, 1000001.75])])
    section, last = quick_report.sections
    last = replace(last, figures=[replace(last.figures[0], panels=[curve])])
    quick_report = replace(quick_report, sections=[section, last])
    first = write_report(quick_report, tmp_path / "first")
    assert list(first) == FILES
    assert files_under(tmp_path / "first") == sorted(FILES)
    second = write_report(read_report(first["results.json"]), tmp_path / "new" / "second")
    for name in FILES:
        assert first[name].read_bytes() == second[name].read_bytes(), name
    page = first["report.html"].read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "http" not in page
    assert "(figures/figure-2.svg)" in first["report.md"].read_text(encoding="utf-8")
    json.loads(first["results.json"].read_bytes(), parse_constant=pytest.fail)


def test_pictures_of_the_report_before_are_gone_and_others_are_kept(tmp_path, report):
    write_report(report, tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"a user's")
    first, last = report.sections
    write_report(replace(report, sections=[replace(first, figures=[]), last]), tmp_path)
    assert files_under(tmp_path / "figures") == ["figure-2.png", "figure-2.svg", "mine.png"]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, report):
    (tmp_path / "results.json").write_text("old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_report(report, tmp_path)
    assert files_under(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_without_matplotlib_nothing_is_written(tmp_path, monkeypatch, report):
    imported = builtins.__import__

    def missing(name, *arguments):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ExperimentError, match="matplotlib"):
        write_report(report, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_when_it_is_needed():
    code = "import sys, sparsekern.experiments.reproduce.write; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"title": 1, "sections": [{}]}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ExperimentError, match=r"results\.json: expected the results\.json of a report"):
        read_report(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ExperimentError, match="cannot be read: No such file"):
        read_report(tmp_path / "results.json")
