"""Benchmarks and jobs are not run by the tests, and many tests only where there is a GPU or much time: what they import
and name of the package is checked here."""

import ast
import importlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = [path for folder in ("benchmarks", "jobs") for path in sorted((ROOT / folder).glob("*.py"))]
PROGRAM = re.compile(r"\bfrom (minos_ray[\w.]*|tests[\w.]*) import ([\w, ]+)")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_name_that_a_script_imports_from_the_package_exists(script: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    missing = [
        f"{node.module}.{alias.name}"
        for node in imports
        if (node.module or "").split(".")[0] in ("minos_ray", "tests")
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
        and find_spec(f"{node.module}.{alias.name}") is None
    ]
    assert not missing


def test_every_name_that_tests_and_scripts_take_from_the_package_exists() -> None:
    names = [f"{path.relative_to(ROOT)}: {name}" for path in [*TESTS, *SCRIPTS] for name in undefined(path)]
    assert not names


def undefined(path: Path) -> list[str]:
    """What a file imports from the package or from the tests, or reads from such a module, that is not there."""
    text = path.read_text()
    tree = ast.parse(text)
    # Programs in strings, for processes of their own, import as well.
    listed = [(module, part.split()) for module, parts in PROGRAM.findall(text) for part in parts.split(",")]
    names = [f"{module}.{words[0]}" for module, words in listed if words]
    modules: dict[str, str] = {}  # by the name under which the file knows each
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("minos_ray", "tests"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    local = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    modules = {name: module for name, module in modules.items() if name not in local and file_of(module)}
    for node in ast.walk(tree):
        read = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if read and node.value.id in modules:
            names.append(f"{modules[node.value.id]}.{node.attr}")
    return [name for name in dict.fromkeys(names) if not file_of(name) and not defines(*name.rsplit(".", 1))]


def file_of(module: str) -> Path | None:
    """Where a module is; None for anything else."""
    stem = ROOT.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


@cache
def names_in(module: str) -> set[str]:
    """What a module binds outside of its functions and classes, and by `global`; the module is not run."""
    path = file_of(module)
    nodes: list[ast.AST] = [ast.parse(path.read_text())] if path else []
    names = {"__file__", "__name__", "__doc__", "__path__"}
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {name for inner in ast.walk(node) if isinstance(inner, ast.Global) for name in inner.names}
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return names


def defines(module: str, name: str) -> bool:
    """Whether a module has a name, or makes names when it is asked for them (`__getattr__`)."""
    return name in names_in(module) or name == "*" or "__getattr__" in names_in(module)


def test_the_workflow_splits_the_tests_by_folders_that_exist() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    folders = set(re.findall(r"\btests/\w+", workflow))
    assert folders
    assert not [folder for folder in folders if not (ROOT / folder).is_dir()]
