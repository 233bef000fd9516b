"""The digest sees every change of code that a result depends on, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvbudget.errors import UserError
from kvbudget.policies import registry as methods
from kvbudget.run.protocols import PROTOCOLS
from kvbudget.study import provenance
from kvbudget.tasks import registry as tasks

FILES = {
    "__init__.py": "",
    "errors.py": "class UserError(Exception):\n    pass\n",
    "cell.py": "from kvbudget import plan\nfrom kvbudget.policies import make\n",
    "plan.py": '"""Doc."""\n\n\ndef budget(n: int) -> int:\n    """Doc."""\n    return n // 2\n',
    "paper.py": "from . import plan\n",
    "policies/__init__.py": "import importlib\nMETHODS = {'h2o': 'h2o:H2O'}\n"
    "def make(name):\n    return importlib.import_module(METHODS[name])\n",
    "policies/h2o.py": "from ..errors import UserError\nKEEP = 0.5\n",
    "policies/other.py": "def late():\n    import kvbudget.paper\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def digest(package: Path, *modules: str, versions: tuple[str, ...] = ()) -> str:
    modules = modules or ("kvbudget.cell", "kvbudget.policies.h2o")
    return provenance.code_digest(modules, *versions, root=package)


def edit(package: Path, name: str, text: str) -> None:
    (package / name).write_text(text)


def test_reaches_static_imports_and_the_packages_above_them(package):
    reached = provenance.reachable(["kvbudget.cell"], root=package)
    assert reached == {"kvbudget", "kvbudget.cell", "kvbudget.plan", "kvbudget.policies"}


def test_reaches_relative_imports_and_imports_inside_functions(package):
    assert "kvbudget.errors" in provenance.reachable(["kvbudget.policies.h2o"], root=package)
    assert "kvbudget.plan" in provenance.reachable(["kvbudget.policies.other"], root=package)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.py", "# comment\ndef budget(n: int) -> int:\n\n    return (n // 2)  # half\n"),
        (
            "plan.py",
            '"""Another."""\ndef budget(n: int) -> int:\n    """Words."""\n    return n//2\n',
        ),
        ("policies/other.py", "x = 1\n"),
        ("paper.py", "y = 2\n"),
        ("policies/__init__.py", FILES["policies/__init__.py"].replace("{", "{'new': 'new:New', ")),
    ],
    ids=["comment and layout", "docstrings", "another policy", "paper", "a new name in the table"],
)
def test_does_not_change_with(package, name, text):
    before = digest(package)
    edit(package, name, text)
    assert digest(package) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.py", FILES["plan.py"].replace("2", "3")),
        ("plan.py", FILES["plan.py"].replace("budget", "budgets")),
        ("policies/h2o.py", FILES["policies/h2o.py"] + "EXTRA = 1\n"),
        ("policies/__init__.py", FILES["policies/__init__.py"] + "OTHER = {}\n"),
        ("plan.py", FILES["plan.py"] + "text = '''a string, no docstring'''\n"),
    ],
    ids=["constant", "name", "policy", "code beside the table", "string"],
)
def test_changes_with(package, name, text):
    before = digest(package)
    edit(package, name, text)
    assert digest(package) != before


def test_depends_on_versions_and_entries_but_not_on_order_or_place(package, tmp_path_factory):
    assert digest(package) != digest(package, versions=("torch==2",))
    assert digest(package) != digest(package, "kvbudget.cell")
    assert digest(package) == digest(package, "kvbudget.policies.h2o", "kvbudget.cell")
    elsewhere = package.rename(tmp_path_factory.mktemp("elsewhere") / "kvbudget")
    assert digest(elsewhere) == provenance.code_digest(
        ["kvbudget.cell", "kvbudget.policies.h2o"], root=elsewhere
    )


def test_reaches_what_a_package_imports_lazily_where_it_is_asked_for(package):
    lazy = "def __getattr__(name):\n    return importlib.import_module('kvbudget.plan').budget\n"
    edit(package, "__init__.py", "import importlib\nX = 1\n" + lazy)
    edit(package, "paper.py", "from kvbudget import X, errors\n")
    edit(package, "cell.py", "from kvbudget import budget\n")
    assert "kvbudget.plan" not in provenance.reachable(["kvbudget.paper"], root=package)
    assert "kvbudget.plan" in provenance.reachable(["kvbudget.cell"], root=package)


def test_constants_of_equal_value_and_other_type_differ(package):
    edit(package, "plan.py", "x = 1\n")
    one = digest(package)
    edit(package, "plan.py", "x = True\n")
    assert digest(package) != one


def test_names_a_missing_module_and_a_syntax_error(package):
    with pytest.raises(UserError, match=r"kvbudget\.nothing"):
        digest(package, "kvbudget.nothing")
    edit(package, "plan.py", "def broken(:\n")
    with pytest.raises(UserError, match=r"plan\.py:1"):
        digest(package)


def test_tables_name_modules_that_exist():
    modules = [methods.module_of(name) for name in methods.METHODS]
    modules += [tasks.module_of(name) for name in tasks.KINDS]
    modules += PROTOCOLS.values()
    for module in modules:
        assert module in provenance.reachable([module])


def test_versions_leave_out_the_build():
    torch, snakemake = provenance.library_versions("torch", "snakemake")
    assert torch.startswith("torch==")
    assert "+" not in torch
    assert snakemake.startswith("snakemake==")


@pytest.mark.parametrize(
    "module", ["kvbudget.study.expand", "kvbudget.study.provenance", "kvbudget.cli.plan"]
)
def test_what_the_snakefile_imports_is_free_of_torch(module):
    check = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_policy_is_part_of_its_own_cells_alone():
    root = ["kvbudget.run.cell", "kvbudget.run.questions", "kvbudget.tasks.niah"]
    h2o = provenance.reachable([*root, "kvbudget.policies.h2o"])
    assert "kvbudget.policies.h2o" in h2o
    assert "kvbudget.policies.streaming_llm" not in h2o
    assert "kvbudget.policies.head_aware" not in h2o
    assert "kvbudget.tasks.perplexity" not in h2o
    above = ("kvbudget.paper", "kvbudget.analysis", "kvbudget.study", "kvbudget.cli")
    assert not any(name.startswith(above) for name in h2o)
    assert not {"kvbudget.sources.download", "kvbudget.run.translation"} & h2o
