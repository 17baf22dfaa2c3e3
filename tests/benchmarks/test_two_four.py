"""The benchmark of 2:4 weights runs every contender, and leaves out what is wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks import two_four
from sparsekern import cpp

FAST = ["packing", "--size", "128", "--seconds", "0.001"]


def test_prints_a_time_for_every_contender(capsys):
    assert two_four.main(FAST) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Packing 2:4 weights: milliseconds (times a clone)"
    float32, bfloat16 = (next(line for line in lines if f"128x128 {name}" in line) for name in ("f", "b"))
    # Every one but the clone is compared with it; float32 has no layout of CUTLASS's.
    assert (float32.count("("), bfloat16.count("(")) == (5, 7)


def test_wrong_results_are_not_timed(capsys, monkeypatch):
    monkeypatch.setattr(cpp, "gather_two_four", lambda dense, metadata: dense[:, ::2].contiguous())
    assert two_four.main(FAST) == 1
    assert capsys.readouterr().out.count("wrong") == 2


def test_names_the_sections_there_are(capsys):
    with pytest.raises(SystemExit):
        two_four.main(["pack"])
    assert "unknown section 'pack'; there are packing" in capsys.readouterr().err


def test_sets_the_number_of_threads(threads_before):
    two_four.main([*FAST, "--threads", "1"])
    assert torch.get_num_threads() == 1


@pytest.fixture
def threads_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
