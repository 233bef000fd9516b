"""Which code a result depends on, as a digest. Reads source files, imports none of them.

Snakemake re-runs a job when a string in its `params:` changes, but does not see that a module
behind `python -m` was edited. So each job carries a digest of the syntax trees of exactly the
modules of this package that its entry modules can reach by static imports. Comments, docstrings,
layout and modules that are not reached do not count, nor do the tables of names from which
packages import lazily: a method that joins the table changes nothing for the others.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvbudget.errors import UserError

PACKAGE = "kvbudget"
_ROOT = Path(__file__).resolve().parents[1]
#: Names of the tables of methods, kinds of tasks and protocols: what a cell takes of them is in
#: its spec and its identity.
_TABLES = frozenset({"METHODS", "KINDS", "PROTOCOLS"})
#: Nodes whose first statement may be a docstring.
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_digest(entry_modules: Iterable[str], *versions: str, root: Path = _ROOT) -> str:
    """Digest the modules of this package that `entry_modules` reach.

    Args:
        entry_modules: dotted names, such as `kvbudget.run.cell`.
        versions: further strings to fold in, such as `library_versions("torch")`.
        root: directory of the package.

    Returns:
        sha256 as 64 hex digits. It does not depend on where the package lies, on the order of
        `entry_modules`, nor on the minor version of Python.

    Raises:
        UserError: an entry module does not exist or a file is not valid Python.
    """
    digest = hashlib.sha256()
    for module in sorted(reachable(entry_modules, root=root)):
        digest.update(f"{module}\0{_module_digest(module, root)}\0".encode())
    for version in versions:
        digest.update(f"{version}\0".encode())
    return digest.hexdigest()


def code_parts(entry_modules: Iterable[str], *versions: str, root: Path = _ROOT) -> dict[str, str]:
    """What `code_digest` digests, one by one: sha256 by module, version by library."""
    modules = {
        module: _module_digest(module, root)
        for module in sorted(reachable(entry_modules, root=root))
    }
    return modules | dict(version.split("==") for version in versions)


def library_versions(*names: str) -> list[str]:
    """Installed versions as `name==version`, read from metadata without importing.

    The local label (`+cpu`, `+cu128`) is left out: it names a build, not the library's code, and
    cells computed on a GPU must still count as current on a reader's laptop.
    """
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]


def reachable(entry_modules: Iterable[str], root: Path = _ROOT) -> set[str]:
    """Names of the modules that importing `entry_modules` runs, as far as imports are static."""
    seen: set[str] = set()
    waiting = list(entry_modules)
    for module in waiting:
        if module_file(module, root) is None:
            raise UserError(f"there is no module {module} in the package; check its name")
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if "." in module:  # importing a.b.c runs a/__init__.py and a/b/__init__.py too
            waiting.append(module.rpartition(".")[0])
        waiting.extend(_imports(module, root))
    return seen


def module_file(module: str, root: Path) -> Path | None:
    """Where a module of this package lies, or None if there is no such module."""
    package, _, rest = module.partition(".")
    if package != PACKAGE:
        return None
    base = root.joinpath(*rest.split(".")) if rest else root
    for file in (base.with_suffix(".py") if rest else None, base / "__init__.py"):
        if file is not None and file.is_file():
            return file
    # A directory without __init__.py is a package without code.
    return base if base.is_dir() else None


def _imports(module: str, root: Path) -> Iterator[str]:
    """Modules of this package that the source of `module` imports, at any depth of its code."""
    file = module_file(module, root)
    if file.is_dir():
        return
    is_package = file.name == "__init__.py"
    for node in _import_statements(file, file.stat().st_mtime_ns):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = node.level - 1 if is_package else node.level
                base = ".".join([*parts[: len(parts) - above], *filter(None, [node.module])])
            # `from a import b`: b may be a module, a name inside a, or one that a imports lazily.
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            names += _lazy_imports(base, {alias.name for alias in node.names}, root)
        for name in names:
            if module_file(name, root) is not None:
                yield name


def _lazy_imports(package: str, names: set[str], root: Path) -> list[str]:
    """Modules that a package's `__getattr__` imports, if any of `names` must come from there."""
    file = module_file(package, root)
    if file is None or file.name != "__init__.py":
        return []
    tree = _parse(file, file.stat().st_mtime_ns)
    if not any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body):
        return []
    bound = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    bound |= {n.asname or n.name for n in ast.walk(tree) if isinstance(n, ast.alias)}
    if all(name in bound or module_file(f"{package}.{name}", root) for name in names):
        return []
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    return sorted(s for s in strings if isinstance(s, str) and s.startswith(f"{PACKAGE}."))


@functools.cache
def _import_statements(file: Path, mtime_ns: int) -> list[ast.Import | ast.ImportFrom]:
    """Those of a file, wherever they stand. Kept, as a study asks for the digests of many jobs."""
    nodes = ast.walk(_parse(file, mtime_ns))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


@functools.cache
def _parse(file: Path, _mtime_ns: int) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: not valid Python: {error.msg}") from None


def _module_digest(module: str, root: Path) -> str:
    file = module_file(module, root)
    return "" if file.is_dir() else _file_digest(file, file.stat().st_mtime_ns)


@functools.cache
def _file_digest(file: Path, mtime_ns: int) -> str:
    plain = json.dumps(_plain(_parse(file, mtime_ns)), separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def _plain(node: ast.AST | list | object) -> object:
    """The tree as lists, without docstrings, positions and empty fields.

    `ast.dump` would do, but what it prints for empty fields differs between Python versions.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if isinstance(node, ast.Constant):
        return ["Constant", repr(node.value)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _Documented):
        body = node.body[_has_docstring(node) :]
        fields["body"] = [each for each in body if not _is_table(each)]
    kept = ((name, value) for name, value in fields.items() if value is not None and value != [])
    return [type(node).__name__, [[name, _plain(value)] for name, value in kept]]


def _has_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> bool:
    return bool(
        node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
        and isinstance(node.body[0].value.value, str)
    )


def _is_table(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id in _TABLES for target in targets)
