import builtins
import math

import matplotlib as mpl
import numpy as np
import pytest

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Curves, Figure, Points, Series, Spectrum
from sparsekern.experiments.reproduce.plots import draw, write_figure


def axes_of(*panels):
    return draw(Figure("f", "", list(panels))).axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curves(*series, **options):
    return Curves("title", "step", "loss (nats)", list(series), **options)


def test_values_that_are_not_finite_leave_gaps():
    axes = axes_of(curves(Series("a", [0, 1, 2, 3], [1, math.nan, 2, math.inf], [0.1, 0.1, math.nan, 1])))[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, np.nan, 2, np.nan])
    assert axes.get_ylim()[1] < 3
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "loss (nats)"


def test_what_is_not_positive_has_no_place_on_a_logarithmic_axis():
    panel = curves(Series("a", [0, 1, 10], [1, 0, 100], [2, 0, 0]), log_y=True)
    axes = axes_of(panel)[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, np.nan, 100])
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] > 0


def test_sparsities_are_spaced_by_the_logarithm_of_what_is_left():
    panel = curves(Series("a", [0, 0.9, 0.99, 1.0], [1, 2, 3, 4]), sparsity_x=True)
    axes = axes_of(panel)[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 0.9, 0.99, np.nan])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.9", "0.99"]
    positions = axes.transData.transform([(x, 1) for x in (0, 0.9, 0.99)])[:, 0]
    np.testing.assert_allclose(positions[1] - positions[0], positions[2] - positions[1], rtol=1e-6)
    left, right = axes.bbox.x0, axes.bbox.x1
    assert left < positions[0] < left + 0.1 * (right - left)
    assert right - 0.1 * (right - left) < positions[2] < right


def test_a_long_curve_has_few_markers_and_a_lonely_point_has_one():
    y = [float(i) for i in range(1000)]
    y[500] = y[502] = math.nan
    axes = axes_of(curves(Series("a", list(range(1000)), y), Series("b", list(range(1000)), y)))[0]
    first, second = (line.get_markevery() for line in axes.lines)
    assert 5 <= len(first) <= 10
    assert 501 in first
    assert set(first) & set(second) == {501}


def test_a_band_is_one_spread_to_either_side():
    axes = axes_of(curves(Series("a", [0, 1], [10, 20], [1, 2])), curves(Series("b", [0], [0])))
    corners = axes[0].collections[0].get_paths()[0].vertices
    assert {(0, 9), (0, 11), (1, 18), (1, 22)} <= {tuple(map(float, corner)) for corner in corners}
    assert axes[0].collections[0].get_alpha() < 0.3
    assert not axes[1].collections


def test_the_zero_line():
    without, with_line, logarithmic = axes_of(
        *(
            curves(Series("a", [0, 1], [1, 2]), **o)
            for o in ({}, {"zero_line": True}, {"zero_line": True, "log_y": True})
        )
    )
    assert [len(axes.lines) for axes in (without, with_line, logarithmic)] == [1, 2, 1]


@pytest.mark.parametrize(
    "panel",
    [
        curves(),
        curves(Series("a", [], [])),
        curves(Series("a", [1], [math.nan]), log_y=True),
        Points("p", {}),
        Points("p", {"a": [(math.nan, 0.0)]}),
        Spectrum("s", {}),
        Spectrum("s", {"a": [math.nan]}),
    ],
)
def test_a_panel_without_data_says_so(panel):
    assert texts(axes_of(panel)[0]) == ["no data"]


def test_the_legend_has_each_label_once_and_says_what_is_missing():
    figure = draw(
        Figure(
            "f",
            "",
            [
                curves(Series("a$b$", [0], [1]), Series("gone", [0], [math.nan])),
                Spectrum("s", {"a$b$": [1.0], "c": [2.0]}),
                Points("p", {"c start": [(0, 0)], "c end": [(1, 1)]}),
            ],
        )
    )
    assert legend(figure) == [r"a\$b\$", "gone (no data)", "c", "start", "end"]


def test_the_legend_is_outside_of_the_axes():
    figure = draw(Figure("f", "", [curves(*(Series(f"series {i}", [0, 1], [0, i]) for i in range(9)))] * 2))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    for axes in figure.axes:
        assert not box.overlaps(axes.get_tightbbox())


def test_starts_are_open_ends_are_filled_and_arrows_lead_from_one_to_the_other():
    paths = [("a start", 0, "a end", 1), ("a start", 1, "a end", 0)]
    panel = Points("p", {"a start": [(0, 0), (math.nan, 0)], "a end": [(5, 5), (3, 4)]}, paths)
    axes = axes_of(panel)[0]
    start, end = axes.lines
    assert start.get_color() == end.get_color() == end.get_markerfacecolor()
    assert start.get_markerfacecolor() == "white"
    assert start.get_marker() == end.get_marker()
    # The other arrow would begin nowhere.
    (arrow,) = axes.texts
    assert (tuple(arrow.xyann), tuple(arrow.xy)) == ((0, 0), (3, 4))
    assert axes.get_aspect() == 1


def test_a_spectrum_counts_every_eigenvalue_and_marks_the_extremes():
    values = [*([1e-9] * 700), *([-1e-9] * 300), -0.5, 3.0, 80.0, math.nan]
    axes = axes_of(Spectrum("s", {"a": values}))[0]
    counts, edges, _ = axes.patches[0].get_data()
    assert counts[counts >= 1].sum() == 1003
    # Both signs of almost nothing are in the bin around 0.
    middle = counts.argmax()
    assert counts[middle] == 1000
    assert edges[middle] == -edges[middle + 1]
    # 80 takes five decades to 1e-3: 1 + log10(80 / 1e-3) from the middle.
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [-(1 + math.log10(500)), 1 + math.log10(8e4)])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 1])
    assert axes.get_yscale() == "log"
    places = dict(zip(axes.get_xticks(), (label.get_text() for label in axes.get_xticklabels())))
    assert places[0] == "0"
    assert places[2] == "$10^{-2}$"
    assert places[-2] == "$-10^{-2}$"


def test_a_spectrum_of_zeros():
    axes = axes_of(Spectrum("s", {"a": [0.0, 0.0]}))[0]
    assert axes.patches[0].get_data()[0].max() == 2


def test_only_a_quick_run_is_stamped():
    figure = Figure("f", "", [curves(Series("a", [0], [1]))])
    assert [text.get_text() for text in draw(figure, quick=True).texts] == ["quick run"]
    assert draw(figure, quick=False).texts == []


def test_files_are_the_same_each_time_whatever_the_users_settings(tmp_path, report):
    before = dict(mpl.rcParams)
    figure = report.figures[0]
    one = write_figure(figure, tmp_path)
    assert dict(mpl.rcParams) == before
    first = [path.read_bytes() for path in one]
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": None}):
        second = [path.read_bytes() for path in write_figure(figure, tmp_path)]
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure-1.png", "figure-1.svg"]
    assert b"<metadata" not in first[0]
    assert b"Software" not in first[1]
    # Letters are outlines.
    assert b"<text" not in first[0]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, report):
    imported = builtins.__import__

    def missing(name, *arguments):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ExperimentError, match=r"package matplotlib, of the extra \[paper\]: pip install"):
        draw(report.figures[0])
