import json
import math
from dataclasses import replace

import numpy as np

from sparsekern.experiments.reproduce.document import Curves, Figure, Points, Report, Section, Series
from sparsekern.experiments.reproduce.serialize import as_data, from_data


def test_a_report_comes_back(report):
    data = json.loads(json.dumps(as_data(report), allow_nan=False))
    back = from_data(data)
    assert as_data(back) == data
    assert type(back.figures[1].panels[0]) is type(report.figures[1].panels[0])
    assert back.figures[0].panels[1] == report.figures[0].panels[1]
    assert back.sections[0].tables == report.sections[0].tables
    assert replace(back, sections=[]) == replace(report, sections=[])


def test_numbers_have_six_digits_and_are_none_if_not_finite(report):
    figures = [figure for section in as_data(report)["sections"] for figure in section["figures"]]
    assert figures[1]["panels"][0]["eigenvalues"]["before"] == [-0.5, 0.0, 1e-9, 2.0, 123.457]
    assert figures[0]["panels"][0]["series"][0]["y"] == [1.0, None, 0.5, None]
    series = from_data(as_data(report)).figures[0].panels[0].series[0]
    assert [math.isnan(y) for y in series.y] == [False, True, False, True]


def test_numbers_of_numpy_are_numbers():
    series = Series("a", [np.int64(3)], [np.float32(0.1)])
    points = Points("p", {"g": [(np.float64(1 / 3), 0)]}, [("g", np.int64(0), "g", 0)])
    figure = Figure("f", "", [Curves("c", "", "", [series], log_y=True), points])
    data = as_data(Report("r", False, [], [Section("s", figures=[figure])]))
    curves, spread = data["sections"][0]["figures"][0]["panels"]
    assert curves["series"] == [{"label": "a", "x": [3], "y": [0.1], "spread": []}]
    assert curves["log_y"] is True
    assert spread["groups"] == {"g": [[0.333333, 0]]}
    assert spread["paths"] == [["g", 0, "g", 0]]
