"""The guides say what is so: links lead somewhere, examples run, tables are those of the code."""

import ast
import importlib
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import rendering
import torch
import yaml
from tiny import tiny_calibration
from transformers import AutoModelForCausalLM

import kvbudget
from kvbudget import attach, cli
from kvbudget.options import filled
from kvbudget.paper import registry as paper
from kvbudget.policies import registry as methods
from kvbudget.sources.download import download
from kvbudget.sources.random import byte_tokenizer
from kvbudget.sources.registry import parse
from kvbudget.study.config import read
from kvbudget.study.expand import expand
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Request

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: What is read without being built, too.
TEXTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: str, language: str = "python", title: str = "") -> list[str]:
    """The blocks of a page in a language and under a title."""
    found = _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [text for *kind, text in found if kind == [language, title]]


def module(name: str, path: Path) -> ModuleType:
    """A module from a file outside of the package."""
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def prose(text: str) -> str:
    """A page without what stands in fences and in code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, which mkdocs and GitHub make alike of these."""
    lines = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.*)$", lines, re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[-\s]+", "-", each) for each in words}


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_links_lead_somewhere(page):
    text = prose(page.read_text(encoding="utf-8"))
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
        # The site holds no file from outside of its folder.
        if page in PAGES and DOCS not in file.parents:
            wrong.append(target)
    assert wrong == []


def test_the_site_lists_every_page():
    def files(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from files(value) if isinstance(value, list) else [value]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(files(site["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_follows_from_the_code_is_as_the_code_has_it(page):
    text = page.read_text(encoding="utf-8")
    renewed = module("generate", DOCS / "generate.py").renew(text)
    assert renewed == text, "run PYTHONPATH=src python docs/generate.py"


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_has_a_page(method):
    text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert f"<!-- made: options {method} -->" in text
    assert "**Cost.**" in text


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_commands_and_studies_are_there(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    commands = set(re.findall(r"(?:`|bin/|^    )kvbudget ([a-z][a-z-]*)", text, re.MULTILINE))
    assert commands <= {*cli.COMMANDS, *cli.JOBS}
    studies = {path.stem for path in (ROOT / "workflow/studies").glob("*.yaml")}
    assert set(re.findall(r"STUDY=([a-z]+)\b(?!\.yaml)", text)) <= studies
    there = re.sub("^.*, whole:$", "", text, flags=re.MULTILINE)  # those are to be written
    for path in re.findall(r"`((?:src|workflow|tests|profiles|docs)/[\w./-]+)`", there):
        assert (ROOT / path).exists(), path


def said() -> str:
    """All that the code says, each message in one piece."""

    def spoken(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(spoken, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"

    texts = [(ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n\t", "")]
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                texts.append(spoken(node))
    texts.append((ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8"))
    return "\n".join(texts)


def test_errors_of_the_faq_are_those_of_the_code():
    headings = re.findall(r"^### (.*)$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.M)
    quoted = [quote for heading in headings for quote in re.findall("`([^`]+)`", heading)]
    everything = said()
    pieces = [each.strip(" :;") for quote in quoted for each in re.split("…|'x'|'20%'", quote)]
    assert len(pieces) > 20
    assert [each for each in pieces if each not in everything] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split("\n")) <= 121


def test_each_extra_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    assert set(project["optional-dependencies"]) <= set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder like a clone in which a study was run: a model where studies put it, and a text."""
    root = tmp_path_factory.mktemp("clone")
    spec = {"source": "random", "architecture": "llama", "context": 2048}
    download("smollm2-135m", parse("smollm2-135m", spec), root / "results/models/smollm2-135m")
    (root / "LICENSE").write_text((ROOT / "LICENSE").read_text()[:600])
    return root


def run(page: str, names: dict, at: Path, monkeypatch, title: str = "") -> dict:
    """Run the examples of a page as they stand, one after the other; returns what they leave."""
    monkeypatch.chdir(at)
    for text in blocks(page, title=title):
        exec(compile(text, page, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:there is no calibration")
@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_examples_run(page, clone, monkeypatch, capsys):
    ids = torch.randint(10, 90, (1, 200), generator=torch.Generator().manual_seed(0))
    names = {"torch": torch, "ids": ids, "document": ids, "questions": [ids[:, :9], ids[:, :7]]}
    cache = run(page, names, clone, monkeypatch)["cache"]
    assert int(capsys.readouterr().out) > 0
    assert cache.allocated_bytes() > 0


def test_a_calibration_is_used_as_the_guide_says(clone, monkeypatch):
    model = attach(AutoModelForCausalLM.from_pretrained(clone / "results/models/smollm2-135m"))
    config = model.config
    made = tiny_calibration(config.num_hidden_layers, config.num_key_value_heads, 4)
    (clone / "heads.json").write_text(json.dumps(made))
    names = {"json": json, "Path": Path, "model": model, "make_cache": kvbudget.make_cache}
    assert run("docs/use.md", names, clone, monkeypatch, title="calibrated")["cache"]


def test_a_pipeline_of_transformers_asks_of_a_compressed_context(clone, monkeypatch):
    page = "docs/kvpress.md"
    names = run(page, {}, clone, monkeypatch)
    pipe, cache, context = (names[name] for name in ("pipe", "cache", "context"))

    def generated(text: str, **options) -> str:
        """What `generate` writes after a text, by the restored cache."""
        cache.restore(names["state"])
        ids = pipe.tokenizer(text, return_tensors="pt", **options).input_ids
        made = pipe.model.generate(ids, past_key_values=cache, max_new_tokens=20, do_sample=False)
        return pipe.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    questions = names["questions"]
    assert [each["generated_text"] for each in names["answers"]] == [
        generated(context + question) for question in questions
    ]
    budget = round(0.2 * names["tokens"])
    assert {len(head) for layer in (0, 1) for head in cache.kept_positions(layer)} == {budget}

    # With a chat template: what is read first begins what is read with the question.
    pipe.tokenizer.chat_template = "[{% for m in messages %}{{ m.content }}{% endfor %}]"
    run(page, names, clone, monkeypatch, title="chat")
    head, tail, asking = (names[name] for name in ("head", "tail", "asking"))
    assert (head, tail) == (f"[{context}", "]")
    tokens = len(pipe.tokenizer(head, add_special_tokens=False).input_ids)
    cache = kvbudget.make_cache(
        pipe.model, "snapkv", "20%", bounded="context", prompt_tokens=tokens
    )
    asking["past_key_values"] = cache
    pipe(head, max_new_tokens=1, **asking)
    names["state"] = cache.snapshot()
    (answer,) = pipe(head + questions[0] + tail, max_new_tokens=20, **asking)
    assert answer["generated_text"] == generated(
        head + questions[0] + tail, add_special_tokens=False
    )


def added(page: str, package: str, registry: ModuleType, table: str, monkeypatch) -> str:
    """Add what a guide adds: its file, and its entry in a registry. Returns the entry's name."""
    path = f"src/{registry.__name__.replace('.', '/')}.py"
    (entry,) = blocks(page, title=path)
    entries = eval(f"{{{entry}}}", vars(registry))
    ((name, declared),) = entries.items()
    module_name = declared.module.partition(":")[0].rpartition(".")[2]
    full = f"{package}.{module_name}"
    made = ModuleType(full)
    monkeypatch.setitem(sys.modules, full, made)
    monkeypatch.setattr(importlib.import_module(package), module_name, made, raising=False)
    exec(compile(blocks(page)[0], page, "exec"), vars(made))
    monkeypatch.setitem(getattr(registry, table), name, declared)
    return name


@pytest.mark.parametrize("page", ["docs/extend/method.md", "docs/extend/signal.md"])
def test_a_method_is_added_as_the_guide_says(page, clone, monkeypatch):
    name = added(page, "kvbudget.policies", methods, "METHODS", monkeypatch)
    model = attach(AutoModelForCausalLM.from_pretrained(clone / "results/models/smollm2-135m"))
    ids = torch.randint(10, 90, (1, 200), generator=torch.Generator().manual_seed(0))
    cache = kvbudget.make_cache(model, name, 32, stride=1)
    model.generate(ids, past_key_values=cache, max_new_tokens=5)
    kept = [head.tolist() for layer in (0, 1) for head in cache.kept_positions(layer)]
    assert {len(head) for head in kept} == {32}
    assert all(head[:4] == [0, 1, 2, 3] and head[-1] == 203 for head in kept)
    assert any(head != kept[0] for head in kept)


def test_what_is_tried_in_the_guide_of_methods_runs(clone, monkeypatch, capsys):
    page = "docs/extend/method.md"
    added(page, "kvbudget.policies", methods, "METHODS", monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(clone / "results/models/smollm2-135m")
    exec(blocks(page)[1], {"model": model, "ids": torch.arange(10, 90)[None]})
    assert "tensor" in capsys.readouterr().out


def test_a_task_is_added_as_the_guide_says(monkeypatch):
    name = added("docs/extend/task.md", "kvbudget.tasks", tasks, "KINDS", monkeypatch)
    tokenizer, kind = byte_tokenizer(), tasks.load(name)
    passages = [f"In year {number} the {number}th king was born." for number in range(2000)]
    request = Request(tokenizer, passages, 800, contexts=3, questions=2, seed=1, split="test")
    options = kind.Options(**filled(name, {}, tasks.options_of(name)))
    contexts = kind.make(request, options)
    assert [context.id for context in contexts] == request.identities(name)
    for context in contexts:
        (question,) = context.questions
        assert abs(len(context.ids) + len(question.ids) - 800) <= 8
        (words,) = question.references
        assert words in tokenizer.decode(context.ids) and len(words.split()) == 5
        assert kind.score(f"They are {words.upper()}.", question.references) == 1
        assert kind.score("no idea", question.references) == 0


def test_a_figure_is_added_as_the_guide_says(rendered, monkeypatch):
    name = added("docs/extend/figure.md", "kvbudget.paper.plots", paper, "FIGURES", monkeypatch)
    made, src = paper.figure(name), rendered[0]
    own = rendering.source.load(rendering.plan_of(src), src.directory, made.csv)
    figure = importlib.import_module(made.module).draw(own)
    assert figure.axes[0].lines


def test_the_study_of_the_guide_is_planned(tmp_path):
    (study,) = (each for each in blocks("docs/extend/study.md", "yaml") if "study:" in each)
    (tmp_path / "mine.yaml").write_text(study)
    planned = expand(read(str(tmp_path / "mine.yaml"), ROOT), ROOT)
    assert len(planned.cells) == 5


@pytest.mark.parametrize("page", ["method", "task", "model", "text"])
def test_entries_of_the_guides_fit_a_study(page, tmp_path, monkeypatch):
    """Keys and values; what they name need not be there."""
    for number, text in enumerate(blocks(f"docs/extend/{page}.md", "yaml")):
        study = {"study": "mine", **yaml.safe_load(text)}
        for method in study.get("methods", {}).values():
            method["policy"] = "keydiff"
        for task in study.get("tasks", {}).values():
            task.clear()
            task.update(kind="niah")
        (tmp_path / f"{number}.yaml").write_text(yaml.dump(study))
        checked = read(str(tmp_path / f"{number}.yaml"), ROOT)
        for key in study.get("models", {}):
            parse(key, checked["models"][key])
