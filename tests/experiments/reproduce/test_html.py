import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sparsekern.experiments.reproduce.document import Report, Section
from sparsekern.experiments.reproduce.html import html

SVG = """\
<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">
<defs><path id="glyph" d="M 0 0"/><clipPath id="clip"/></defs>
<g clip-path="url(#clip)"><use xlink:href="#glyph"/></g>
</svg>
"""
SVGS = {"figure-1": SVG, "figure-2": SVG}
# Elements of HTML that have no end.
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what they say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self._collect(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._collect(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _collect(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        for value in found.values():
            self.references += re.findall(r"url\((.*?)\)", value or "")
        if "href" in found:
            self.references.append(found["href"])


def test_every_id_is_there_once_and_every_reference_leads_to_one(report):
    page = Page(html(report, SVGS))
    assert len(set(page.ids)) == len(page.ids)
    assert {"results", "results-2", "figure_figure-1", "svg_figure-1_glyph", "svg_figure-2_glyph"} <= set(
        page.ids
    )
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert all(reference.startswith("#") for reference in page.references)
    assert {"#svg_figure-2_glyph", "#svg_figure-2_clip", "#results-2"} <= set(page.references)


def test_the_page_needs_nothing_else(report):
    text = html(report, SVGS)
    assert not re.search(r"https?:|src=|@import|<script|<link|<!DOCTYPE svg|<\?xml", text)
    assert not any(name.startswith("on") for _, attributes in Page(text).elements for name in attributes)


def test_text_is_escaped_and_code_is_code(report):
    text = html(report, SVGS)
    assert "<title>Gradient flow &amp; &lt;sparsity&gt;</title>" in text
    assert "<h1>Gradient flow &amp; &lt;sparsity&gt;</h1>" in text
    assert "<p>See <code>a &lt; b</code> &amp; *c*.</p>" in text
    assert '<th scope="row">a|b &lt;i&gt;</th>' in text
    assert '<p class="notes">Five seeds &amp; one <code>mask</code>.<br>All of them.</p>' in text
    assert "<figcaption>All &lt;kinds&gt;.</figcaption>" in text
    assert 'aria-label="Loss &lt;test&gt;; Solutions"' in text
    hostile = '"><script>x</script>&'
    section = Section(hostile, [hostile], [replace(report.sections[0].tables[0], notes=[hostile])])
    page = html(Report(hostile, False, [hostile], [section]), {})
    assert "<script" not in page
    Page(page)


def test_numbers_are_at_the_right_and_verdicts_have_a_mark_and_a_word(report):
    text = html(report, SVGS)
    assert '<th scope="col" class="number">accuracy (%)</th>' in text
    assert '<td class="number">91.25 ± 0.4</td>' in text
    assert '<td><span class="agrees">✓ agrees</span></td>' in text
    assert '<td><span class="differs">✗ differs</span> (p = 0.01)</td>' in text


def test_a_quick_run_is_said_at_the_top_and_in_captions(report, quick_report):
    text = html(quick_report, SVGS)
    assert text.index('<p class="quick">') < text.index("What <code>was</code> done")
    assert "<figcaption>Quick run. All &lt;kinds&gt;.</figcaption>" in text
    assert "<figcaption>Quick run.</figcaption>" in text
    assert "uick run" not in html(report, SVGS)


def test_a_missing_picture_is_an_error(report):
    with pytest.raises(ValueError, match="svgs: expected one for each figure, got none for figure-2"):
        html(report, {"figure-1": SVG})


def test_what_is_no_picture_is_an_error(report):
    with pytest.raises(ValueError, match="expected an <svg> element, got 'nothing'"):
        html(report, {**SVGS, "figure-2": "nothing"})
