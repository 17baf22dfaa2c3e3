import pytest

from sparsekern.experiments.reproduce.svg import compact


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("M 12.345678 -0.001234 ", "M 12.35 -0.00123"),
        ("M 100.000000 2.500000", "M 100 2.5"),
        ('d="M 0 1 \nL 2 3 \nz\n"', 'd="M 0 1 L 2 3 z "'),
        ("<a>\n  <!-- 1.23456\n -->\n  <b/>\n</a>", "<a>\n<b/>\n</a>"),
        ('translate(0.09 -0.09) "m12.3"', 'translate(0.09 -0.09) "m12.3"'),
    ],
)
def test_text_gets_shorter(text, shorter):
    assert compact(text) == shorter + "\n"
