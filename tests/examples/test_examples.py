"""The examples run to their end; what they print says that they did what they show."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# What each prints once it has done its work; the numbers are those of a run cut short.
LAST = {
    "swap_layers.py": r"sparse  loss [\d.]+  accuracy [\d.]+ %  [\d,]+ bytes held",
    "rigl.py": r"RigL    loss [\d.]+  accuracy [\d.]+ %  \d+ updates",
    "prune.py": r"the loaded model predicts the same bits",
    "two_four_int8.py": r"int8 2:4 +accuracy [\d.]+ %  [\d,]+ bytes",
}
# What others import; and what needs more than one process, whose tests are in tests/distributed/.
IMPORTED = {"digits.py", "gpt.py"}
TORCHRUN = {"ddp.py", "fsdp2.py"}


@pytest.mark.parametrize("name", LAST)
def test_an_example_runs(name, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, "--steps", "60"])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(LAST[name], lines[-1]), lines[-1]


def test_every_example_is_run_and_in_the_list():
    files = {path.name for path in EXAMPLES.glob("*.py")} - IMPORTED
    assert files == set(LAST) | TORCHRUN
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert set(listed) == files
