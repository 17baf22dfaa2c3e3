"""The text of SVG pictures: made smaller, and made to stand next to others in one page."""

from __future__ import annotations

import re


def compact(svg: str) -> str:
    """The same picture, to a hundredth of a point, in less text.

    Comments, the reference to a document type, indentation and needless decimals go.
    """
    svg = re.sub(r"<!--.*?-->|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"-?\d+\.\d{3,}", _rounded, svg)
    lines = (line.strip() for line in svg.splitlines())
    return re.sub(r" ?\n(?=[\"A-Za-z])", " ", "\n".join(line for line in lines if line)) + "\n"


def _rounded(match: re.Match[str]) -> str:
    # Not .2g: a scale of 0.00123 would lose its digits, so small numbers keep three.
    number = float(match[0])
    text = f"{number:.2f}" if abs(number) >= 1 else f"{number:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def inline(svg: str, name: str, description: str) -> str:
    """The ``<svg>`` element alone, for a page of HTML.

    Its ids, which pictures of one origin share, begin with ``name``; so do the references to them.

    Parameters
    ----------
    svg : str
    name : str
        Unlike that of any other picture of the page.
    description : str
        What stands for the picture where it cannot be seen; escaped already.

    Raises
    ------
    ValueError
        If there is no such element.
    """
    found = re.search(r"<svg\b.*</svg>", svg, flags=re.DOTALL)
    if not found:
        raise ValueError(f"svg: expected an <svg> element, got {svg[:40]!r}")
    # HTML knows the namespaces itself.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", found[0]).replace(" xlink:href=", " href=")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|\shref="#|url\(#)', rf"\g<1>{name}_", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
