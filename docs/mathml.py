"""Formulas as MathML, which browsers draw by themselves: a page needs no script and no network."""

import re
from html import unescape

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the content of each page."""
    return _FORMULA.sub(_drawn, html)


def _drawn(found: re.Match) -> str:
    if found[2] == "(":
        return convert(unescape(found[3]), display="inline")
    # What is wider than a phone is moved sideways within the page.
    return f'<div class="formula">{convert(unescape(found[3]), display="block")}</div>'
