"""What was measured and with what."""

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases import standing
from kvbudget.paper.source import Source
from kvbudget.paper.template import render


def text(src: Source) -> str:
    """LaTeX of one table: models, software and machine."""
    models = src.table("models").to_dict("records")
    codes = src.table("code_digests")["code"]
    return render(
        "provenance.tex.j2",
        notes=src.notes(),
        models=[model | {"title": latex.typeset(model["title"])} for model in models],
        items=src.table("provenance").to_dict("records"),
        codes=codes.nunique(),
        cells=len(codes),
        standing=dict(standing.derived(src))["study/standing"],
        wrap=_wrap,
    )


def _wrap(digest: str, width: int) -> Latex:
    """A digest in lines of `width` digits."""
    lines = (digest[start : start + width] for start in range(0, len(digest), width))
    return Latex(r"\newline ".join(lines))
