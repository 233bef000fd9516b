"""The package is laid out as it says: no cycles, a word in each folder, a module a command."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import kvbudget
from kvbudget import cli

ROOT = Path(kvbudget.__file__).parent


def test_no_module_imports_another_in_a_circle():
    """Types included: the graph has every import, wherever it stands."""
    graph = grimp.build_graph("kvbudget")
    above = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(above).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", [path.parent for path in sorted(ROOT.rglob("__init__.py"))])
def test_each_folder_says_what_may_live_there(package):
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))


@pytest.mark.parametrize("command", [*cli.COMMANDS, *cli.JOBS])
def test_each_command_is_a_module_that_declares_what_it_takes(command):
    module = importlib.import_module(f"kvbudget.cli.{command.replace('-', '_')}")
    assert module.__doc__ and callable(module.arguments) and callable(module.run)


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from kvbudget.cli import main; main(['--help']);"
        "sys.exit(bool({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {command}" in done.stdout for command in cli.COMMANDS | cli.JOBS)


def test_a_command_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pln"])
    error = capsys.readouterr().err
    assert error.startswith("error: there is no command 'pln', did you mean 'plan'")
    assert error.count("\n") == 1
