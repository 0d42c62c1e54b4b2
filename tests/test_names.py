"""What a reader feels first: names that name the thing, one verb for what raises, functions short enough to read."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "minos_ray"
VAGUE = re.compile(
    "found|made|some|told|said|there|left|its|known|wanted|given|whole|one|here|these|those|each|kept|shown|named|about"
    "|own|has|of|where|at|begun|odd|fine|sure|hard|old|new|more|rest|back"
)
# The largest fraction of assigned names that may be vague: 3 in 1,000 (`left` and `right` are such names).
VAGUE_FRACTION = 0.003
# Whose uses of a function count, and how configs name one.
FOLDERS = ("minos_ray", "tests", "benchmarks", "jobs")
DOTTED = re.compile(r"\b(minos_ray[\w.]*):(\w+)")
# Lines of a function, its docstring included.
LONGEST = 80
# Lines of a body, its docstring not counted, that are read where they are used when only one function uses them.
ONE_USE = 3
# Functions that raise are named `require_*` or `check_*`, never by one of these.
OTHER_VERBS = re.compile(r"_*(refuse\w*|told|said|stated)")


def test_few_assigned_names_are_vague() -> None:
    names = Counter(node.id for _, node in assigned())
    vague = Counter({name: count for name, count in names.items() if VAGUE.fullmatch(name)})
    fraction = vague.total() / names.total()
    places = [f"{file}:{node.lineno} {node.id}" for file, node in assigned() if VAGUE.fullmatch(node.id)]
    assert fraction <= VAGUE_FRACTION, (
        f"{fraction:.2%} of {names.total()} assigned names are vague; at most {VAGUE_FRACTION:.2%} may be. "
        f"Name the thing: `labels`, `rows`, `chunks`. Most frequent: {vague.most_common(10)}; "
        f"places: {', '.join(places[:10])}"
    )


def test_functions_are_short_enough_to_read() -> None:
    long = [f"{file}:{f.lineno} {f.name} has {length(f)} lines" for file, f in functions() if length(f) > LONGEST]
    assert not long, "\n".join([f"longer than {LONGEST} lines:", *long])


def test_functions_that_raise_are_named_require_or_check() -> None:
    others = [f"{file}:{f.lineno} {f.name}" for file, f in functions() if OTHER_VERBS.fullmatch(f.name)]
    assert not others, "\n".join(["name what raises `require_*` or `check_*`:", *others])


def test_what_is_used_once_and_is_short_stands_where_it_is_used() -> None:
    """A module's function of three lines or fewer whose only use is one call in the same module is no function.

    It stays when something else needs its name: another module or a test, a decorator, a config or table of dotted
    names (`minos_ray.steps.split:lines`), code that it is handed to (`key=length`, `map(length, rows)`), or itself.
    """
    elsewhere, helpers = named_elsewhere(), []
    for file, tree in trees():
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for f in tree.body:
            if not isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) or f.decorator_list:
                continue
            body = f.body[ast.get_docstring(f) is not None :] or f.body
            uses = [node for node in names if node.id == f.name]
            recursive = any(f.lineno <= node.lineno <= (f.end_lineno or 0) for node in uses)
            short = (body[-1].end_lineno or 0) - body[0].lineno < ONE_USE
            module = file.removesuffix(".py").replace("/", ".")
            if short and len(uses) == 1 and id(uses[0]) in called and not recursive:
                helpers += [] if (module, f.name) in elsewhere else [f"{file}:{f.lineno} {f.name}"]
    assert not helpers, "\n".join(["used once and short enough to stand there:", *helpers])


def named_elsewhere() -> set[tuple[str, str]]:
    """(module, name) of what other modules of the package, tests, benchmarks and jobs use, and of dotted names."""
    uses: set[tuple[str, str]] = set()
    for path in (path for folder in FOLDERS for path in (ROOT.parent / folder).rglob("*.py")):
        modules: dict[str, str] = {}
        nodes = list(ast.walk(ast.parse(path.read_text())))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                uses |= {(node.module or "", alias.name) for alias in node.names}
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                modules |= {alias.asname: alias.name for alias in node.names if alias.asname}
        for node in nodes:
            if isinstance(node, ast.Attribute):
                module = ast.unparse(node.value)
                uses.add((modules.get(module, module), node.attr))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                uses |= set(DOTTED.findall(node.value))
    return uses | {pair for path in ROOT.rglob("*.yaml") for pair in DOTTED.findall(path.read_text())}


@cache
def trees() -> list[tuple[str, ast.Module]]:
    """Every module of the package with its path."""
    return [(str(path.relative_to(ROOT.parent)), ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def assigned() -> Iterator[tuple[str, ast.Name]]:
    """Names that something is assigned to: statements, loops, `with`, comprehensions, `:=`."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield file, node


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods, nested ones too."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1
