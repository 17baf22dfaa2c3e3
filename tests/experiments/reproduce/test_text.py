import pytest

from sparsekern.experiments.reproduce.document import Table
from sparsekern.experiments.reproduce.text import code_spans, number_columns, verdict


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "-2.5", "−3e-4", "1,024"],
        ["91.2 ± 0.3", "–"],
        ["98 %", "98.5% ± 0.1%"],
        ["1 to 3", "12 ms", "< 0.01", "3.5×"],
        ["5 (of 5)", "diverged", "4 (of 5)"],
    ],
)
def test_numbers_make_a_column_of_numbers(cells):
    table = Table(["", "x"], [["1", cell] for cell in cells])
    assert number_columns(table) == [False, True]


@pytest.mark.parametrize("cells", [["dense", "per-layer"], ["agrees"], ["v1.2", "3x3 kernels"], ["1", "a"]])
def test_words_do_not(cells):
    # Half of the cells are not most of them.
    table = Table(["", "x"], [["1", cell] for cell in cells])
    assert number_columns(table) == [False, False]


def test_a_verdict_is_a_cell_that_begins_with_the_word():
    assert verdict("agrees") == "agrees"
    assert verdict("differs (p = 0.01)") == "differs"
    assert verdict("disagrees") is None
    assert verdict("agreeable") is None


def test_code_is_what_is_between_two_backticks():
    assert list(code_spans("a `b` c`d")) == [(False, "a "), (True, "b"), (False, " c`d")]
