"""Titles as people write them: printed alike in tables, figures and numbers, or refused early."""

import random
import re
import string
import subprocess
import sys

import pytest
from matplotlib import rc_context
from matplotlib.cbook import is_math_text
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.mathtext import MathTextParser
from rendering import PAPER

from kvbudget.errors import UserError
from kvbudget.paper import latex
from kvbudget.paper.plots import mathtext
from kvbudget.study import titles, typeface

#: What people write, and how it stands in LaTeX and in matplotlib.
PRINTED = [
    (r"$\textsc{Ours}$", r"\(\textsc{Ours}\)", r"$\mathrm{Ours}$"),
    ("H_2O", r"H\_2O", "H_2O"),
    ("50% & more", r"50\% \& more", "50% & more"),
    ("#1", r"\#1", "#1"),
    ("λ-Budgets", r"\(\lambda\)-Budgets", "λ-Budgets"),
    (r"$\lambda$-Budgets", r"\(\lambda\)-Budgets", r"$\lambda$-Budgets"),
    ("Ünïcodé ß", "Ünïcodé ß", "Ünïcodé ß"),
    ("e\u0301", "é", "é"),
    ("costs $5", r"costs \$5", r"costs \$5"),
    ("$5 or $10", r"\$5 or \$10", r"\$5 or \$10"),
    (r"\$x\$", r"\$x\$", r"\$x\$"),
    (r"$O(n^2)$ in \par", r"\(O(n^2)\) in \textbackslash{}par", r"$O(n^2)$ in \par"),
    ("_x", r"\_x", r"$\_$x"),
    (r"$\emph{a b}_{\beta}$", r"\(\emph{a b}_{\beta}\)", r"$\mathit{a\ b}_{\beta}$"),
    (r"$x \le α$", r"\(x \le \alpha \)", r"$x \leq α$"),
    (r"$\texttt{50\%}$", r"\(\texttt{50\%}\)", r"$\mathtt{50\%}$"),
    ("two\n  lines", "two lines", "two lines"),
    ("a -- b", "a -{}- b", "a -- b"),
]

REFUSED = [
    ("", "blank"),
    (" \n", "blank"),
    ("x" * 121, "at most 120"),
    ("漢字", "U+6F22"),
    ("go 🚀", "U+1F680"),
    ("Жар", "U+0416"),
    ("a\u200bb", "U+200B"),
    (r"$\foo$", r"\foo is not known"),
    (r"$\lamda$", r"did you mean 'lambda'"),
    (r"$\input{x}$", r"\input is not known"),
    (r"$\frac12$", r"needs its argument in braces"),
    (r"$\hat{}$", "is empty"),
    (r"$\mathbb{r}$", "capital letters only"),
    ("${x$", "not closed"),
    ("$x}$", "closes nothing"),
    ("$x^2^3$", "stands twice"),
    ("$^2$", "nothing before"),
    ("$x_{}^$", "nothing after"),
    ("$a & b$", "cannot stand in mathematics"),
    ("$é$", r"\text{...}"),
    (r"$\text{a{b}}$", "plain text in braces"),
    (r"$\text{漢}$", "U+6F22"),
    (r"$a\\b$", "is not known"),
]


@pytest.mark.parametrize(("title", "tex", "drawn"), PRINTED)
def test_a_title_is_printed_as_given(title, tex, drawn):
    titles.check("here", title)
    assert latex.typeset(title) == tex
    assert mathtext.typeset(title, 80) == drawn


@pytest.mark.parametrize(("title", "reason"), REFUSED)
def test_what_cannot_be_printed_is_refused_in_one_line(title, reason):
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        titles.check("methods: h2o: title", title)
    assert str(error.value).startswith("methods: h2o: title: ")
    assert "\n" not in str(error.value)


def test_a_plan_is_checked_without_torch_and_matplotlib():
    code = (
        "import sys; from kvbudget.study import titles; titles.check('t', r'$\\alpha$');"
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_long_titles_are_broken():
    title = r"Budgets by attention-output curves of $\mathcal{M}_{\mathrm{large}}$ " + "x" * 50
    lines = mathtext.typeset(title, 30).split("\n")
    assert len(lines) > 3 and all(len(re.sub(r"\$.*?\$", "", line)) <= 30 for line in lines)
    assert r"$\mathcal{M}_{\mathrm{large}}$" in " ".join(lines)
    assert latex.typeset(title).count(r"\allowbreak{}") == 49


def everything():
    """A title for each character and command that titles may have."""
    for character in [*string.printable.strip(), *typeface.LETTERS, *typeface.SYMBOLS]:
        yield f"a{character}b"
        yield rf"$\text{{a{character}b}}$"
        yield f"$a{character}b$"
    for command in typeface.ALONE:
        yield rf"$a\{command} b^{{\{command}}}$"
    for command in typeface.MARKS:
        yield rf"$a\{command}b$"
    for command, arguments in typeface.ARGUMENTS.items():
        yield rf"$\{command}{'{AB}' * arguments} x_{{\{command}{'{A}' * arguments}}}$"
    for command in typeface.WORDS:
        yield rf"$\{command}{{What it is: 50\% (a\_b)}}^2$"
    yield from (title for title, *_ in PRINTED)


def at_random(count):
    """Formulas put together at random, most of which are wrong."""
    random.seed(1)
    atoms = [*"ab1+-=(),^_^_{}{} ", r"\alpha", r"\sum", r"\hat{a}", r"\frac{a}{b}", r"\sqrt{", "λ"]
    atoms += [r"\text{it is}", r"\mathrm{", r"\{", r"\}", "^{", "_{", "²", r"\prime", r"\,", "'"]
    for _ in range(count):
        yield f"${''.join(random.choices(atoms, k=random.randint(1, 7)))}$"


@pytest.fixture(scope="module")
def accepted():
    """All of these that are not refused."""

    def fine(title):
        try:
            titles.check("here", title)
        except UserError:
            return False
        return True

    kept = [title for title in [*everything(), *at_random(4000)] if fine(title)]
    assert len(kept) > 1000
    return kept


def test_latex_prints_whatever_is_accepted(accepted, tmp_path):
    preamble = (PAPER / "main.tex").read_text().split(r"\newtheorem")[0]
    body = "\n".join(
        f"\\typeout{{@@{number}}}\\mbox{{{latex.typeset(title)}}}\\par"
        for number, title in enumerate(accepted)
    )
    (tmp_path / "t.tex").write_text(f"{preamble}\\begin{{document}}{body}\\end{{document}}")
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    log = (tmp_path / "t.log").read_text(encoding="latin-1")
    parts = re.split(r"^@@(\d+)$", log, flags=re.MULTILINE)
    wrong = [
        (accepted[int(number)], text)
        for number, text in zip(parts[1::2], parts[2::2], strict=True)
        if re.search("^!|Missing char|LaTeX Font Warning|invalid in math", text, re.MULTILINE)
    ]
    assert wrong == []
    assert len(parts) == 2 * len(accepted) + 1
    assert ".pk" not in log  # no font is made as a bitmap


def test_figures_print_whatever_is_accepted(accepted):
    fonts = {"font.family": "STIXGeneral", "mathtext.fontset": "stix"}
    parser = MathTextParser("path")
    with rc_context(fonts):
        glyphs = get_font(findfont(FontProperties(family="STIXGeneral"))).get_charmap()
        for title in accepted:
            for line in mathtext.typeset(title, 30).split("\n"):
                if is_math_text(line):
                    parser.parse(line)
                else:
                    assert {ord(character) for character in line} <= glyphs.keys()
