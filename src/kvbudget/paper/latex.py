"""Text and numbers as LaTeX, and the template engine of the generated files."""

import math
import re
from collections.abc import Iterable

import jinja2

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "…": r"\dots{}",
    "×": r"\(\times\)",
    "α": r"\(\alpha\)",
    "λ": r"\(\lambda\)",
}
DASH = "--"
MEBIBYTE = 2**20


class Latex(str):
    """Text that is LaTeX already and must not be escaped again."""

    __slots__ = ()


def escape(text: object) -> Latex:
    """Any text as LaTeX that prints it, whatever it holds.

    Control characters and line breaks become spaces; characters that pdfLaTeX's T1 fonts lack
    become `?`, since one odd name must not stop the paper. Hyphens lose their ligatures.
    """
    if isinstance(text, Latex):
        return text
    out = []
    for character in re.sub(r"\s+", " ", str(text)):
        if character in _SPECIAL:
            out.append(_SPECIAL[character])
        elif not character.isprintable():
            out.append(" ")
        else:
            out.append(character if ord(character) < 0x180 else "?")
    return Latex(re.sub("-(?=-)", "-{}", "".join(out)))


def key(*parts: object) -> str:
    r"""A key of `\res`: parts joined by slashes, characters special to TeX replaced by `-`."""
    return "/".join(re.sub(r"[^A-Za-z0-9._+-]", "-", str(part)) for part in parts)


def decimal(value: float, digits: int = 2) -> Latex:
    """A number with fixed digits and a real minus sign; a dash for NaN; no negative zero."""
    if value is None or math.isnan(value):
        return Latex(DASH)
    text = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    return Latex(rf"\ensuremath{{-}}{text}" if negative else text)


def signed(value: float, digits: int = 2) -> Latex:
    """A difference, always with its sign."""
    text = decimal(value, digits)
    plain = not text.startswith(r"\ensuremath") and text != DASH and float(text.replace(",", ""))
    return Latex(rf"\ensuremath{{+}}{text}") if plain else text


def metric(name: str, value: float) -> Latex:
    """A metric in the paper's units: bytes as MiB, the rest as it is."""
    if name.endswith("_bytes") or "_bytes_" in name:
        return decimal(value / MEBIBYTE, 1 if value >= 10 * MEBIBYTE else 2)
    return decimal(value, {"prompt_tokens": 0, "decode_ms_per_token": 1}.get(name, 2))


def budget(token: str) -> Latex:
    """A budget token in print: `20%`, `256`, `full`."""
    if token.endswith("p"):
        return Latex(rf"{token[:-1]}\%")
    return Latex(f"{int(token):,}") if token.isdigit() else escape(token)


def listing(items: Iterable[str]) -> Latex:
    """`a`, `a and b`, `a, b and c`; items are escaped."""
    items = [escape(item) for item in items]
    if len(items) < 2:
        return Latex("".join(items))
    return Latex(", ".join(items[:-1]) + " and " + items[-1])


def render(template: str, **values: object) -> str:
    r"""Fill a template of `templates/`. `\VAR{x}` is escaped unless `x` is `Latex`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvbudget.paper"),
        block_start_string=r"\BLOCK{",
        block_end_string="}",
        variable_start_string=r"\VAR{",
        variable_end_string="}",
        comment_start_string=r"\#{",
        comment_end_string="}",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape,
        keep_trailing_newline=True,
    )
    environment.filters["raw"] = Latex
    return environment.get_template(template).render(**values)
