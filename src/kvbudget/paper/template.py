"""The template engine of the generated files: Jinja2 in a spelling that leaves LaTeX alone."""

import jinja2

from kvbudget.paper.latex import Latex, escape


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
