import pytest

from sparsekern.experiments.reproduce.document import Figure, Points, Report, Section, Series, Table


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(["a", "b"], [["1", "2"], ["1"]]), r"rows\[1\]: expected 2 cells, got 1"),
        (lambda: Series("a", [1, 2], [1]), "y: expected 2 values"),
        (lambda: Series("a", [1, 2], [1, 2], [1]), "spread: expected 2 values"),
        (lambda: Points("p", {"a": [(0, 0)]}, [("a", 0, "a", 1)]), "got 1 of 'a'"),
        (lambda: Points("p", {"a": [(0, 0)]}, [("b", 0, "a", 0)]), "got 0 of 'b'"),
        (lambda: Figure("../f", "", []), r"name: expected letters.*got '\.\./f'"),
        (lambda: Report("r", False, [], [Section("s", figures=[Figure("f", "", [])] * 2)]), "got f twice"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_figures_of_a_report_are_those_of_its_sections(report):
    assert [figure.name for figure in report.figures] == ["figure-1", "figure-2"]
