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
# Lines of a function, its docstring included.
LONGEST = 80
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
