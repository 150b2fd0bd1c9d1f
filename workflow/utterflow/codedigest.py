"""Digest of the code that a script can reach.

A rule reruns when the code behind it changes. The unit is the top-level definition: a script counts whole,
and of the project's modules only what is reachable from the names that the script uses. So a new record,
metric or pipeline does not rerun the stages that know nothing of it. Taken from the syntax tree: comments,
blank lines, docstrings and the descriptions of config keys do not count. Imports inside functions count.
Imports by computed name escape; the project has none.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent
# Functions that declare a config key, and how many of their positional arguments are more than words for people.
DECLARATIONS = {"key": 1, "required": 0}

Symbol = tuple[Path, str | None]  # a file and one of its top-level names; None stands for the whole file


@dataclass(frozen=True)
class Module:
    """A parsed file: its definitions, its imports, and the statements that run at import."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, set[Symbol]] = field(default_factory=dict)
    always: list[ast.stmt] = field(default_factory=list)


@functools.cache
def code_digest(script: Path) -> str:
    """SHA-256 (hex) of everything that `script` can reach in this project."""
    reached: set[Symbol] = set()
    queue: list[Symbol] = [(script.resolve(), None)]
    while queue:
        symbol = queue.pop()
        if symbol not in reached:
            reached.add(symbol)
            queue.extend(_references(symbol))
    digest = hashlib.sha256()
    for place, path, name in sorted((_place(path), path, name or "") for path, name in reached):
        for statement in _statements(path, name or None):
            digest.update(f"{place}:{name}:{ast.dump(statement)}\n".encode())
    return digest.hexdigest()


def _place(path: Path) -> str:
    """A file's name in the digest: the same wherever the project lies."""
    return path.relative_to(PACKAGE_ROOT).as_posix() if path.is_relative_to(PACKAGE_ROOT) else path.name


def reachable(script: Path) -> set[str]:
    """The definitions behind `script`, as `module file:name`, for people and tests."""
    names: set[str] = set()
    seen: set[Symbol] = set()
    queue: list[Symbol] = [(script.resolve(), None)]
    while queue:
        symbol = queue.pop()
        if symbol in seen:
            continue
        seen.add(symbol)
        names.add(f"{symbol[0].name}:{symbol[1] or '*'}")
        queue.extend(_references(symbol))
    return names


def _references(symbol: Symbol) -> set[Symbol]:
    path, name = symbol
    module = _module(path)
    if name is not None and name in module.imports:
        return set(module.imports[name])
    found: set[Symbol] = set()
    for statement in _statements(path, name):
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update(*_bindings(node, path).values())
            elif isinstance(node, ast.Name):
                if node.id in module.definitions:
                    found.add((path, node.id))
                elif node.id in module.imports:
                    found |= module.imports[node.id]
    return found - {symbol}


def _statements(path: Path, name: str | None) -> list[ast.stmt]:
    module = _module(path)
    if name is None:
        return [*module.always, *(part for parts in module.definitions.values() for part in parts)]
    return [*module.always, *module.definitions.get(name, [])]


@functools.cache
def _module(path: Path) -> Module:
    module = Module()
    for statement in _without_docstrings(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, symbols in _bindings(statement, path).items():
                module.imports.setdefault(name, set()).update(symbols)
        elif names := _defined_names(statement):
            for name in names:
                module.definitions.setdefault(name, []).append(statement)
        else:
            module.always.append(statement)
    return module


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = list(statement.targets)
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return []
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names if all(isinstance(target, ast.Name | ast.Tuple) for target in targets) else []


def _bindings(statement: ast.Import | ast.ImportFrom, path: Path) -> dict[str, set[Symbol]]:
    """Local name -> what it stands for in this project; `import a.b` and `import a.c` both bind `a`."""
    found: dict[str, set[Symbol]] = {}
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if file := _module_file(alias.name):
                found.setdefault(alias.asname or alias.name.split(".")[0], set()).add((file, None))
        return found
    source = _absolute_name(statement, path)
    for alias in statement.names:
        local = alias.asname or alias.name
        if submodule := _module_file(f"{source}.{alias.name}"):
            found[local] = {(submodule, None)}
        elif file := _module_file(source):
            found[local] = {(file, alias.name)}
    return found


def _absolute_name(statement: ast.ImportFrom, path: Path) -> str:
    """The module that `from ... import` names; a relative one is counted from the folder of the file."""
    if not statement.level:
        return statement.module or ""
    folder = path.parents[statement.level - 1]
    if not folder.is_relative_to(PACKAGE_ROOT):
        return ""
    parts = (PACKAGE_ROOT.name, *folder.relative_to(PACKAGE_ROOT).parts, *filter(None, [statement.module]))
    return ".".join(parts)


def _module_file(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != PACKAGE_ROOT.name:
        return None
    base = PACKAGE_ROOT.joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file() and len(parts) > 1:
            return candidate
    return PACKAGE_ROOT / "__init__.py" if len(parts) == 1 else None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DECLARATIONS:
            del node.args[DECLARATIONS[node.func.id] :]
    return tree
