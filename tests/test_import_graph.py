"""Imports of the package point one way: from a folder to the folders below it, and never in a circle.

Imports inside functions count: they keep torch and ray out of `minos --help`, and must not hide a circle.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the lowest up: a folder, or a module of the top level, imports only what stands before it.
LAYERS = [
    "minos_ray",
    "errors",
    "config",
    "store",
    "graph",
    "observe",
    "files",
    "cluster",
    "steps",
    "miniature",
    "units",
    "grading",
    "problems",
    "candidates",
    "imports",
    "labels",
    "critiques",
    "training",
    "scoring",
    "evaluation",
    "exports",
    "pipeline",
    "report",
    "search",
    "meta",
    "serving",
    "rewards",
    "study",
    "rounds",
    "cli",
    "__main__",
]

Graph = Mapping[str, Iterable[str]]


def test_no_circle_among_modules() -> None:
    assert circle(imports()) is None


def test_no_circle_among_folders() -> None:
    assert circle(folders()) is None


def test_imports_point_downward() -> None:
    assert set(LAYERS) == set(folders()), "LAYERS names each folder and each module of the top level"
    upward = [
        f"{importer} imports {module}"
        for importer, modules in imports().items()
        for module in modules
        if LAYERS.index(folder(module)) > LAYERS.index(folder(importer))
    ]
    assert not upward, "\n".join(["imports that run upward (LAYERS is ordered from the lowest):", *sorted(upward)])


def circle(graph: Graph) -> list[str] | None:
    """The nodes of one circle, the first one again at the end; None where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@cache
def imports() -> dict[str, set[str]]:
    """Modules of the package and which of its modules each one imports."""
    paths = {dotted(path): path for path in (ROOT / "minos_ray").rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_text())
        graph[module] = {name for node in ast.walk(tree) for name in imported(node, paths)} - {module}
    return graph


def imported(node: ast.AST, modules: Iterable[str]) -> list[str]:
    """The modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in modules]
    if isinstance(node, ast.ImportFrom) and node.module in modules:
        # A name is a module of that package, or something that the module defines.
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in modules else node.module for name in names]
    return []


def folders() -> dict[str, set[str]]:
    """Folders, and modules of the top level, and which others each one imports."""
    graph: dict[str, set[str]] = defaultdict(set)
    for importer, modules in imports().items():
        graph[folder(importer)] |= {folder(module) for module in modules} - {folder(importer)}
    return graph


def folder(module: str) -> str:
    """`training` of `minos_ray.training.loop`; `minos_ray` of the package's own module."""
    return module.split(".")[1] if "." in module else module


def dotted(path: Path) -> str:
    """`minos_ray.training.loop` of its file; a package's name of its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
