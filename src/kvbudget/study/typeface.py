"""What titles can be printed with: characters and commands that the paper and its figures have.

LaTeX's fonts and matplotlib's differ; these are in both, or have a like in both, so that a table
and a figure call a method the same.
"""

import re

#: Letters and signs that the fonts of the paper and of its figures have, beside ASCII.
LETTERS = frozenset(
    "¡¢£§¨©ª«¬®°¶·¸º»¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ"
    "ĀāĂăĄąĆćĈĉĊċČčĎďĐđĒēĔĕĖėĘęĚěĜĝĞğĠġĢģĤĥĨĩĪīĬĭĮįİıĴĵĶķĹĺĻļĽľŁłŃńŅņŇňŌōŎŏŐőŒœŔŕŖŗŘřŚśŜŝŞşŠš"
    "ŢţŤťŨũŪūŬŭŮůŰűŲųŴŵŶŷŸŹźŻżŽž–—‘’‚“”„†‡•‹›"
)
#: Characters that LaTeX prints by mathematics, in text and in formulas.
SYMBOLS = {
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "ζ": r"\zeta",
    "η": r"\eta",
    "θ": r"\theta",
    "ι": r"\iota",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "ξ": r"\xi",
    "π": r"\pi",
    "ρ": r"\rho",
    "ς": r"\varsigma",
    "σ": r"\sigma",
    "τ": r"\tau",
    "υ": r"\upsilon",
    "φ": r"\varphi",
    "χ": r"\chi",
    "ψ": r"\psi",
    "ω": r"\omega",
    "Γ": r"\Gamma",
    "Δ": r"\Delta",
    "Θ": r"\Theta",
    "Λ": r"\Lambda",
    "Ξ": r"\Xi",
    "Π": r"\Pi",
    "Σ": r"\Sigma",
    "Υ": r"\Upsilon",
    "Φ": r"\Phi",
    "Ψ": r"\Psi",
    "Ω": r"\Omega",
    "ϕ": r"\phi",
    "ϑ": r"\vartheta",
    "ϵ": r"\epsilon",
    # Capitals that look like Latin ones.
    **{
        greek: rf"\mathrm{{{latin}}}"
        for greek, latin in zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True)
    },
    "ο": "o",
    "µ": r"\mu",
    "±": r"\pm",
    "×": r"\times",
    "÷": r"\div",
    "−": "-",
    "≤": r"\leq",
    "≥": r"\geq",
    "≠": r"\neq",
    "≈": r"\approx",
    "∞": r"\infty",
    "→": r"\rightarrow",
    "←": r"\leftarrow",
    "↔": r"\leftrightarrow",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "∑": r"\sum",
    "∏": r"\prod",
    "∂": r"\partial",
    "∇": r"\nabla",
    "∈": r"\in",
    "ℓ": r"\ell",
    "²": "^2",
    "³": "^3",
    "¹": "^1",
    "…": r"\ldots",
}
#: Commands of a formula that stand alone.
ALONE = frozenset(
    re.findall(
        r"\w+",
        """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu
    xi pi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi
    Pi Sigma Upsilon Phi Psi Omega times cdot pm mp div ast star circ bullet leq geq le ge ne neq
    approx sim simeq equiv propto ll gg in notin subset subseteq supset cup cap to rightarrow
    leftarrow leftrightarrow Rightarrow uparrow downarrow infty partial nabla sum prod int forall
    exists neg wedge vee oplus otimes ell prime dagger ddagger ldots cdots langle rangle lceil
    rceil lfloor rfloor mid parallel log ln exp max min sup inf lim sin cos tan arg det dim quad
    qquad""",
    )
)
#: Escaped characters and spaces.
MARKS = frozenset("%#_{},;!: ")
#: Commands and how many arguments in braces each takes.
ARGUMENTS = {
    **dict.fromkeys(
        ("hat", "bar", "tilde", "vec", "dot", "ddot", "overline", "widehat", "widetilde", "sqrt"), 1
    ),
    **dict.fromkeys(("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathcal", "mathbb"), 1),
    "frac": 2,
}
#: Alphabets that have capitals and nothing else.
CAPITALS = ("mathcal", "mathbb")
#: Commands whose argument is text.
WORDS = ("text", "textrm", "textsc", "textbf", "textit", "textsf", "texttt", "emph")
