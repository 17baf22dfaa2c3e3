from itertools import pairwise

from sparsekern.experiments.reproduce.document import Curves, Points, Series, Spectrum
from sparsekern.experiments.reproduce.styles import base_label, style, styles


def lightness(color: str) -> float:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_no_two_looks_are_equal_and_neighbours_differ_in_all():
    looks = [style(index) for index in range(360)]
    assert len(set(looks)) == 360
    for one, other in pairwise(looks):
        assert abs(lightness(one.color) - lightness(other.color)) > 25
        assert one.dashes != other.dashes
        assert one.marker != other.marker


def test_none_is_too_light_for_white_paper():
    assert max(lightness(style(index).color) for index in range(360)) < 175


def test_a_label_looks_the_same_in_all_panels():
    found = styles(
        [
            Curves("", "", "", [Series("a", [], []), Series("b", [], [])]),
            Points("", {"c start": [], "b end": [], "c end": []}),
            Spectrum("", {"d": [], "a": []}),
        ]
    )
    assert found == {label: style(index) for index, label in enumerate("abcd")}


def test_start_and_end_are_one_label():
    assert base_label("RigL start") == base_label("RigL end") == "RigL"
    assert base_label("restart") == "restart"
