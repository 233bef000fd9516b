"""The parts of these pages that follow from the code, such as tables of options and columns, and
from the results that are published.

    PYTHONPATH=src python docs/generate.py

writes them anew between `<!-- made: NAME ARGUMENT -->` and `<!-- end -->`. They stand in the pages,
so that they can be read without building the site; a test holds them to the code.
"""

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kvbudget import cli
from kvbudget.analysis import schema as csv
from kvbudget.calibration.options import OPTIONS as CALIBRATION
from kvbudget.options import Option, spoken
from kvbudget.paper.bench import table as bench_table
from kvbudget.policies import registry as methods
from kvbudget.site import costs, markdown, quoted
from kvbudget.study import schema as study
from kvbudget.tasks import registry as tasks

DOCS = Path(__file__).parent
ROOT = DOCS.parent
_BLOCK = re.compile(r"(<!-- made: ([\w-]+) ?([\w.-]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def renew(page: str) -> str:
    """A page with its generated parts made anew."""

    def made(found: re.Match) -> str:
        argument = [found[3]] if found[3] else []
        return f"{found[1]}\n{BLOCKS[found[2]](*argument)}\n\n{found[4]}"

    return _BLOCK.sub(made, page)


def pages() -> list[Path]:
    """All pages of the site, and README."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"

    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


#: A value of a type that has no bounds, in words.
_PLAIN = {
    "object": "a mapping",
    "integer": "an integer",
    "string": "text",
    "boolean": "true, false",
}
#: What parts of the schema that stand in several places are.
_SHARED = {"key": "a name", "keys": "names", "lengths": "tokens", "calibration": "a mapping"}


def _values(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return _SHARED[schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"a list; each {_values(schema['items'])}"
    if kind == ["string", "integer"]:
        return "text or an integer"
    if kind == "number" and "maximum" not in schema:
        return f"a number of {schema['minimum']} or more"
    return _PLAIN[kind] if kind in list(_PLAIN) and "minimum" not in schema else spoken(schema)


def _default(value: Any) -> str:
    if value in (None, "", {}, []):
        return "none" if value is None else "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("'", "")


def _options(options: Mapping[str, Option]) -> str:
    rows = (
        (f"`{name}`", _default(each.default), _values(each.schema), each.about)
        for name, each in options.items()
    )
    return _table(("option", "default", "values", "what it means"), rows)


def _keys(properties: Mapping[str, Any]) -> str:
    rows = (
        (
            f"`{name}`",
            _default(each["default"]) if "default" in each else "",
            _values(each),
            each.get("description", ""),
        )
        for name, each in properties.items()
    )
    return _table(("key", "default", "values", "what it means"), rows)


def _says(module: str) -> str:
    """The first sentence of a module, which is not imported."""
    path = ROOT / "src" / f"{module.replace('.', '/')}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return text.partition("\n\n")[0].replace("\n", " ")


def methods_table() -> str:
    """All methods, a line each."""
    rows = (
        (f"[`{name}`]({name}.md)", _says(methods.module_of(name)), _reads(method))
        for name, method in methods.METHODS.items()
    )
    return _table(("method", "in a sentence", "reads the context"), rows)


def _reads(method: methods.Method) -> str:
    return "twice" if method.rereads else "once"


def options_of(name: str) -> str:
    """What planning knows of a method, and its options."""
    method = methods.method(name)
    defaults = {key: option.default for key, option in method.options.items()}
    watched = [each.partition(":")[2].lower() for each in method.signals(defaults)]
    hidden = method.hidden_map(defaults) is not None
    seen = "what attention is given, by a hook" if hidden else "keys and values"
    again = f", {method.rereads:,} tokens at a time the second time" if method.rereads else ""
    moves = (
        f"move, unless `{method.stays[0]}: {method.stays[1]}`"
        if method.moves_keys(defaults)
        else f"stay, if `{method.stays[0]}: {method.stays[1]}`"
        if method.stays
        else "stay"
    )
    if method.elsewhere:
        return f"Measured in an environment of its own: `make peers`.\n\n{_options(method.options)}"
    facts = [
        ("file", f"`src/{methods.module_of(name).replace('.', '/')}.py`"),
        ("reads the context", _reads(method) + again),
        ("watches while it reads", ", ".join(watched) or f"nothing but {seen}"),
        ("takes a calibration", "yes" if method.calibrated else "no"),
        ("positions of keys", moves),
        ("`bits`", "only where keys stay" if method.moves_keys(defaults) else "yes"),
        ("`prefill_chunk`", "no: it holds the whole context" if method.holds_context else "yes"),
    ]
    own = _options(method.options) if method.options else "It has no options of its own."
    return f"{_table(('fact', 'value'), facts)}\n\n{own}"


def common_options() -> str:
    """What a method of a study takes beside the options of its policy."""
    known = study.generate()["properties"]["methods"]["additionalProperties"]["properties"]
    others = {"policy", "title"}.union(*(method.options for method in methods.METHODS.values()))
    return _keys({name: each for name, each in known.items() if name not in others})


def kinds() -> str:
    """The kinds of tasks with their options."""
    parts = []
    for name in tasks.KINDS:
        options = tasks.options_of(name)
        shown = _options(options) if options else "It has no options."
        parts.append(f"### `{name}`\n\n{_says(tasks.module_of(name))}\n\n{shown}")
    return "\n\n".join(parts)


def calibration_options() -> str:
    """What a calibration can be asked for."""
    return _options(CALIBRATION)


def config_keys() -> str:
    """The top keys of a study."""
    return _keys(study.generate()["properties"])


def experiment_keys() -> str:
    """The keys of an experiment."""
    return _keys(study.generate()["properties"]["experiments"]["items"]["properties"])


def sample_keys(name: str) -> str:
    """The keys of `samples` or `prefills`."""
    return _keys(study.generate()["properties"][name]["properties"])


def columns() -> str:
    """The data dictionary of the CSV files."""
    return csv.dictionary().split("\n\n", 2)[2].strip()


def commands() -> str:
    """The commands of `kvbudget`."""
    rows = ((f"`kvbudget {name}`", what) for name, what in cli.COMMANDS.items())
    return _table(("command", "what it does"), rows)


def targets() -> str:
    """What `make` can be asked for."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z-]+):.*?## (.*)$", text, re.MULTILINE)
    return _table(("target", "what it does"), ((f"`make {name}`", what) for name, what in found))


def studies() -> str:
    """The studies, and what each says of itself."""
    overlays = sorted((ROOT / "workflow/studies").glob("*.yaml"))
    known = {"default": ROOT / "config.yaml"} | {file.stem: file for file in overlays}
    return _table(("study", "what it is"), ((f"`{n}`", _opening(f)) for n, f in known.items()))


def _opening(file: Path) -> str:
    """The first paragraph of the comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return " ".join(line[2:] for line in itertools.takewhile(lambda x: x.startswith("# "), lines))


def models() -> dict[str, dict[str, Any]]:
    """The models that studies name."""
    files = (ROOT / "config.yaml", ROOT / "workflow/studies/full.yaml")
    read = [yaml.safe_load(file.read_text(encoding="utf-8"))["models"] for file in files]
    return {name: entry for each in read for name, entry in each.items()}


def model_shapes() -> str:
    """Sizes of models, a line each."""
    head = ("key", "parameters", "layers", "query heads", "KV heads", "dimension", "context")
    return _table(head, (_shape(name, entry) for name, entry in models().items()))


def _shape(name: str, entry: Mapping[str, Any]) -> tuple:
    size = entry["size"]
    heads = (size[key] for key in ("layers", "query_heads", "kv_heads", "head_dim"))
    return f"`{name}`", f"{size['parameters'] / 1e6:,.0f} M", *heads, f"{entry['context']:,}"


def model_origins() -> str:
    """Where models come from."""

    def origin(entry: Mapping[str, Any]) -> str:
        if "repo" in entry:
            return f"{entry['repo']} on the hub, commit `{entry['revision']}`"
        return f"{', '.join(entry['packages'])}; sha256 `{entry['sha256']}`"

    return "\n".join(f"- `{name}`: {origin(entry)}" for name, entry in models().items())


def results() -> str:
    """All results that are published."""
    return markdown.of_all(ROOT)


def findings(name: str) -> str:
    """What is said of published results, with their numbers: a template of findings/."""
    return quoted.fill(DOCS / f"findings/{name}.md.j2", ROOT)


def results_of(name: str) -> str:
    """The published table of `study.experiment`."""
    return markdown.of_experiment(*name.split("."), ROOT)


def orders_of(name: str) -> str:
    """Whether the orders of `study.experiment` hold in what is published."""
    return markdown.of_orders(*name.split("."), ROOT)


def costs_of(name: str) -> str:
    """What methods cost in `study.experiment`, where times were taken."""
    return costs.of_experiment(*name.split("."), ROOT)


def bench(model: str) -> str:
    """What `make bench` measured: steps, prefill, bytes and peaks, and the parts of a step.

    The JSON file that it leaves in results/bench/ belongs into docs/bench/.
    """
    file = DOCS / f"bench/{model}.json"
    if not file.exists():
        return f"Not measured with this version yet: `make bench MODEL={model}`."
    return bench_table.report(json.loads(file.read_text(encoding="utf-8")))


BLOCKS: dict[str, Callable[..., str]] = {
    "methods": methods_table,
    "options": options_of,
    "common-options": common_options,
    "kinds": kinds,
    "calibration-options": calibration_options,
    "config": config_keys,
    "experiment": experiment_keys,
    "keys-of": sample_keys,
    "columns": columns,
    "commands": commands,
    "targets": targets,
    "studies": studies,
    "models": model_shapes,
    "origins": model_origins,
    "results": results,
    "findings": findings,
    "results-of": results_of,
    "orders-of": orders_of,
    "costs-of": costs_of,
    "bench": bench,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(renew(page.read_text(encoding="utf-8")), encoding="utf-8")
