import pytest

from sparsekern.experiments.reproduce.document import Report, Section
from sparsekern.experiments.reproduce.markdown import escape, markdown

DOCUMENT = """\
# Gradient flow & \\<sparsity>

What `was` done.

## Results

See `a < b` & \\*c\\*.

| method       | accuracy (%) |      paper | verdict              |
| ------------ | -----------: | ---------: | -------------------- |
| a\\|b \\<i>    |  91.25 ± 0.4 |          – | ✓ agrees             |
| `per_neuron` |            8 | 97.8 ± 0.2 | ✗ differs (p = 0.01) |

- Five seeds & one `mask`.
- All of them.

![Loss \\<test>; Solutions](pictures/figure-1.svg)

All \\<kinds>.

## Results

![Hessian](pictures/figure-2.svg)
"""


def test_the_whole_document(report):
    assert markdown(report, "pictures") == DOCUMENT


def test_a_quick_run_is_said_at_the_top_and_in_captions(quick_report):
    text = markdown(quick_report)
    assert text.splitlines()[2].startswith("**This is a quick run:")
    assert "\n\nQuick run. All \\<kinds>.\n\n" in text
    assert text.endswith("\n\nQuick run.\n")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("per_neuron _a_ __b__", r"per_neuron \_a\_ \_\_b\_\_"),
        ("~2,400 ~~x~~ $5", r"\~2,400 \~\~x\~\~ \$5"),
        ("[a](b) a\\b", r"\[a\](b) a\\b"),
        ("`*a*` *a*", r"`*a*` \*a\*"),
        ("one ` tick &lt; & x", r"one \` tick &amp;lt; & x"),
        ("two\nlines", "two lines"),
    ],
)
def test_prose_is_shown_as_it_is(text, escaped):
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("1. a", r"1\. a"), ("# a", r"\# a"), ("- a", r"\- a"), ("> a", r"\> a"), ("1.5 a", "1.5 a")],
)
def test_a_paragraph_stays_one(text, escaped):
    assert markdown(Report("t", False, [text], [Section("s")])) == f"# t\n\n{escaped}\n\n## s\n"
