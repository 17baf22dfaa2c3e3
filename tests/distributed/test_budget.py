"""The computed budget: what training really holds and sends, and the tables of the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsekern.distributed import budget_table, memory_budget

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_what_training_holds_and_sends(processes, strategy):
    expected = memory_budget(2 * 256 * 256, 0.9, 2, strategy, sent_bytes=4)
    for result in processes(2, "accounted", strategy=strategy):
        for part, found in result["held"].items():
            # Patterns have headers, and nonzeros are not a multiple of processes.
            assert found == pytest.approx(getattr(expected, part), rel=0.02), part
        assert result["step"] == pytest.approx(expected.sent_each_step, rel=0.002)
        # Flags and checksums are sent too.
        assert result["update"] == pytest.approx(expected.sent_each_update, rel=0.002)


def tables(text):
    """Every expression in the document that makes a table, with the table below it."""
    return re.findall(r"^<!-- (budget_table\(.*\)) -->\n\n((?:\|.*\n)+)", text, re.MULTILINE)


def test_tables_of_the_document_are_those_of_the_function():
    text = DOCUMENT.read_text(encoding="utf-8")
    found = tables(text)
    assert len(found) == text.count("<!--") == 7
    for expression, table in found:
        assert table.rstrip("\n") == eval(expression), expression


@pytest.mark.parametrize(
    ("sparsity", "dynamic", "gpus"),
    [(0.5, True, 29), (0.9, True, 51), (0.99, True, 56), (0.5, False, 50), (0.9, False, 90)],
)
def test_from_how_many_gpus_on_dense_is_smaller(sparsity, dynamic, gpus):
    """As the document says."""
    positions = 10**12
    for n, smaller in ((gpus - 1, False), (gpus, True)):
        dense = memory_budget(positions, None, n).total
        assert (dense < memory_budget(positions, sparsity, n, dynamic=dynamic).total) is smaller
    number = (
        f"{gpus} GPUs at {100 * sparsity:g} %"
        if not dynamic and sparsity == 0.5
        else f"{gpus} at {100 * sparsity:g} %"
    )
    assert number in " ".join(DOCUMENT.read_text(encoding="utf-8").split())


def test_figures_in_the_text():
    text = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    large, small = memory_budget(70_000_000_000, 0.9, 1024), memory_budget(8_000_000_000, 0.9, 8, "ddp")
    assert f"patterns alone are {large.patterns / 1e9:.1f} GB" in text
    assert f"explored positions {large.explored / 1e9:.2f} GB" in text
    assert (
        f"in {small.total / 1e9:.1f} GB instead of {memory_budget(8_000_000_000, None).total / 1e9:.0f}"
        in text
    )
    for sparsity in (0.9, 0.99):
        many = memory_budget(8_000_000_000, sparsity, 1024)
        share, step = many.sent_each_update / 100e9, many.sent_each_step / 1e9
        assert re.search(rf"\({share:.2f}( GB a step)? to {step:.2f}\)", text)


def test_one_gpu_sends_nothing_and_a_dense_model_has_no_patterns():
    alone = memory_budget(1000, 0.9)
    assert (alone.sent_each_step, alone.sent_each_update) == (0, 0)
    assert (alone.values, alone.gradients, alone.optimizer) == (400, 400, 800)
    assert (alone.patterns, alone.explored) == (161, 125)
    assert alone.total == 1886
    dense = memory_budget(1000, None, 4, "ddp")
    assert (dense.total, dense.patterns, dense.explored, dense.sent_each_update) == (16_000, 0, 0, 0)
    assert dense.sent_each_step == 2 * 3 * 1000 * 2 / 4
    assert memory_budget(1000, 0.0).total > memory_budget(1000, None).total


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"positions": 0}, ValueError, "positions must be at least 1, got 0"),
        ({"positions": 1e9}, TypeError, r"positions must be an integer, got 1000000000.0 \(float\)"),
        ({"sparsity": 90}, ValueError, r"sparsity must be in \[0, 1\) .* got 90"),
        ({"sparsity": "0.9"}, TypeError, "sparsity must be a number"),
        ({"gpus": 0}, ValueError, "gpus must be at least 1, got 0"),
        ({"strategy": "fsdp"}, ValueError, "strategy must be 'ddp' or 'fsdp2', got 'fsdp'"),
        ({"value_bytes": 0}, ValueError, "value_bytes must be a positive finite number, got 0"),
        ({"sent_bytes": None}, TypeError, "sent_bytes must be a positive finite number, got None"),
        ({"dynamic": 1}, TypeError, "dynamic must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        memory_budget(**{"positions": 1000, "sparsity": 0.9, **arguments})


def test_bad_tables():
    with pytest.raises(ValueError, match="quantity must be 'memory' or 'step' or 'update', got 'time'"):
        budget_table(1000, quantity="time")
