"""Benchmarks and jobs are not run by the tests, so what they import is checked here."""

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for folder in ("benchmarks", "jobs") for path in sorted((ROOT / folder).glob("*.py"))]


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


def test_the_workflow_splits_the_tests_by_folders_that_exist() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    folders = set(re.findall(r"\btests/\w+", workflow))
    assert folders
    assert not [folder for folder in folders if not (ROOT / folder).is_dir()]
