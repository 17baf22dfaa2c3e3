"""Means and verdicts against values worked out by hand."""

import math

import pytest

from sparsekern.experiments.reproduce.paper import Printed
from sparsekern.experiments.reproduce.statistics import Sample, printed_text, verdict


def test_mean_and_deviation_of_a_sample():
    sample = Sample((1.0, 2.0, 4.0))
    assert sample.mean == pytest.approx(7 / 3)
    assert sample.std == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 3))
    assert sample.text(1) == "2.3 ± 1.2 (3)"


def test_one_value_has_no_spread_and_none_is_not_run():
    assert Sample((98.5,)).text() == "98.50 (1)"
    assert Sample.of([None, 2.0, None]).values == (2.0,)
    assert Sample(()).text() == "not run"
    assert math.isnan(Sample(()).mean)


@pytest.mark.parametrize(
    ("values", "printed", "expected"),
    [
        ((98.0, 98.2), Printed(98.3, 0.1), "agrees"),
        ((98.0, 98.0), Printed(98.3, 0.1), "differs: -0.30"),
        ((98.4,), Printed(98.3, 0.1), "agrees"),
        ((98.409,), Printed(98.3, 0.1), "agrees"),
        ((98.411,), Printed(98.3, 0.1), "differs: +0.11"),
        ((98.62,), Printed(98.3, 0.3), "differs: +0.32"),
        ((11.35, 98.0, 98.0), Printed(80.82, 35), "agrees"),
        ((0.5,), None, ""),
        ((), Printed(1.0, 0.1), ""),
    ],
    ids=[
        "within both",
        "too low",
        "at the edge",
        "within a digit of it",
        "beyond a digit of it",
        "too high",
        "bimodal",
        "nothing printed",
        "nothing run",
    ],
)
def test_verdicts(values, printed, expected):
    assert verdict(Sample(values), printed) == expected


def test_printed_values_with_and_without_a_spread():
    assert printed_text(Printed(62.99, 42)) == "62.99 ± 42"
    assert printed_text(Printed(94.4, 4.0)) == "94.40 ± 4.00"
    assert printed_text(Printed(0.0043), 4) == "0.0043"
    assert printed_text(None) == ""
