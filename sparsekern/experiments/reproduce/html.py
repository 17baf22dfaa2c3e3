"""A report as one page of HTML that needs nothing else: no files, no network, no scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

from sparsekern.experiments.reproduce.document import Figure, Report, Section, Table
from sparsekern.experiments.reproduce.svg import inline
from sparsekern.experiments.reproduce.text import (
    MARKS,
    QUICK_NOTICE,
    alternative,
    caption,
    code_spans,
    number_columns,
    verdict,
)

_STYLE = """\
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #595959; --page: #fff; --line: #d0d0d0;
  --band: #f4f4f2; --link: #0b5394; --agrees: #1a6b38; --differs: #a4320a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --quiet: #a8a8a8; --page: #17181a;
  --line: #45474a; --band: #232528; --link: #8ab8ea; --agrees: #7fcf9a; --differs: #f2a07e; } }
* { box-sizing: border-box; }
html { background: var(--page); color: var(--text); -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; line-height: 1.55;
  font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
h1, h2, nav, table, figcaption, .quick, .notes { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial,
  sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h2 a { color: inherit; text-decoration: none; }
h2 a:hover, h2 a:focus { text-decoration: underline; }
p { max-width: 44rem; margin: 0 0 1rem; overflow-wrap: break-word; }
a { color: var(--link); }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em;
  background: var(--band); padding: .1em .3em; border-radius: .2em; }
.quick { border-left: .3rem solid var(--differs); background: var(--band); padding: .6rem .9rem;
  font-weight: 600; }
nav { background: var(--band); border-radius: .3rem; padding: .75rem 1.25rem; font-size: .92rem;
  max-width: 44rem; }
nav ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.table { overflow-x: auto; margin: 1.25rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--text); border-bottom: 2px solid var(--text); }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: .3rem; }
thead th { border-bottom: 1px solid var(--text); vertical-align: bottom; }
tbody th { font-weight: 400; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
.agrees, .differs { white-space: nowrap; font-weight: 600; }
.agrees { color: var(--agrees); }
.differs { color: var(--differs); }
.notes { font-size: .85rem; color: var(--quiet); margin-bottom: 1.5rem; }
figure { margin: 1.5rem 0 2rem; }
figure svg { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
figcaption { font-size: .88rem; color: var(--quiet); margin-top: .6rem; max-width: 44rem; }
@media print { :root { color-scheme: light; --text: #000; --quiet: #444; --page: #fff; --line: #bbb;
    --band: #fff; --link: #000; --agrees: #000; --differs: #000; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .table { overflow: visible; }
  nav { padding-left: 0; }
  a { text-decoration: none; } }
"""


def html(report: Report, svgs: Mapping[str, str]) -> str:
    """The report as a page.

    Parameters
    ----------
    report : Report
    svgs : mapping of str to str
        The text of each figure's SVG file, by the figure's name.

    Raises
    ------
    ValueError
        If a figure is missing in `svgs`.
    """
    missing = [figure.name for figure in report.figures if figure.name not in svgs]
    if missing:
        raise ValueError(f"svgs: expected one for each figure, got none for {', '.join(missing)}")
    anchors = _anchors([section.title for section in report.sections])
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title>",
        f"<style>\n{_STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{_prose(report.title)}</h1>",
        *([f'<p class="quick">{QUICK_NOTICE}</p>'] if report.quick else []),
        *(f"<p>{_prose(text)}</p>" for text in report.summary),
        "</header>",
        *_contents(report.sections, anchors),
        "<main>",
    ]
    for section, anchor in zip(report.sections, anchors):
        lines += _section(section, anchor, svgs, report.quick)
    lines += ["</main>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def _anchors(titles: list[str]) -> list[str]:
    """Ids of the sections, from their titles; without underscores, which all others have."""
    anchors: list[str] = []
    for title in titles:
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor, count = slug, 1
        while anchor in anchors:
            count += 1
            anchor = f"{slug}-{count}"
        anchors.append(anchor)
    return anchors


def _prose(text: str) -> str:
    """Text with its `code`."""
    return "".join(
        f"<code>{escape(piece)}</code>" if is_code else escape(piece) for is_code, piece in code_spans(text)
    )


def _contents(sections: list[Section], anchors: list[str]) -> list[str]:
    if not sections:
        return []
    entries = [
        f'<li><a href="#{anchor}">{_prose(section.title)}</a></li>'
        for section, anchor in zip(sections, anchors)
    ]
    return ['<nav aria-label="Contents">', "<strong>Contents</strong>", "<ul>", *entries, "</ul>", "</nav>"]


def _section(section: Section, anchor: str, svgs: Mapping[str, str], quick: bool) -> list[str]:
    lines = [f'<section id="{anchor}">', f'<h2><a href="#{anchor}">{_prose(section.title)}</a></h2>']
    lines += [f"<p>{_prose(text)}</p>" for text in section.text]
    for table in section.tables:
        lines += _table(table)
    for figure in section.figures:
        lines += _figure(figure, svgs[figure.name], quick)
    return [*lines, "</section>"]


def _table(table: Table) -> list[str]:
    classes = [' class="number"' if is_number else "" for is_number in number_columns(table)]
    heads = [f'<th scope="col"{kind}>{_prose(cell)}</th>' for cell, kind in zip(table.headers, classes)]
    lines = ['<div class="table"><table>', f"<thead><tr>{''.join(heads)}</tr></thead>", "<tbody>"]
    for row in table.rows:
        cells = [f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row[1:], classes[1:])]
        lines.append(f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(cells)}</tr>')
    lines += ["</tbody>", "</table></div>"]
    if table.notes:
        lines.append(f'<p class="notes">{" ".join(map(_prose, table.notes))}</p>')
    return lines


def _cell(text: str) -> str:
    said = verdict(text)
    if said is None:
        return _prose(text)
    return f'<span class="{said}">{MARKS[said]} {said}</span>{_prose(text.removeprefix(said))}'


def _figure(figure: Figure, svg: str, quick: bool) -> list[str]:
    # Ids of figures begin alike, and are longer than any name alone.
    drawn = inline(svg, f"svg_{figure.name}", escape(alternative(figure)))
    text = _prose(caption(figure, quick))
    return [f'<figure id="figure_{figure.name}">', drawn, f"<figcaption>{text}</figcaption>", "</figure>"]
