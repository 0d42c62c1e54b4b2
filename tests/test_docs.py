"""README and docs say what is there: commands parse, configs load, links lead somewhere, names resolve."""

import ast
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from minos_ray import load_config
from minos_ray.cli import parser
from tests.test_import_graph import LAYERS

ROOT = Path(__file__).parents[1]
TREE = ROOT / "docs" / "tree.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {TREE})]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    .*\n)+", re.M)
COMMANDS = next(action.choices for action in parser()._actions if action.dest == "command")
PLACEHOLDERS = {"key=value", "[key=value]", "...", "[key=value", "...]"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(text) if found == language]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", text)


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of every line of a shell block that calls `minos`, its comment cut off."""
    for block in [*blocks(text, "bash"), *INDENTED.findall(prose(text))]:
        for line in block.replace("\\\n", " ").splitlines():
            called = re.match(r"\s*(?:submit -- )?(?:\.venv/bin/)?(?:python -m minos_ray|minos) (.*)", line)
            if called and not called[1].startswith("--help"):
                yield shlex.split(re.sub(r"\[--(\w+) [^]]*\]", "", called[1]), comments=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one_that_minos_takes(name: str, tmp_path: Path) -> None:
    for words in command_lines(text_of(name)):
        words = [word for word in words if word not in PLACEHOLDERS]
        if words[0] == "STAGE":
            continue
        arguments = parser().parse_args(words)
        if "config" in arguments:
            overrides = [override.replace("=[RUN]", "=[]") for override in arguments.overrides]
            config = arguments.config
            own = config.isupper() or config.endswith(".yaml")
            load_config(complete(tmp_path, {}) if own else config, overrides)


def complete(folder: Path, values: dict[str, object]) -> Path:
    """A config file with `values` and what every config must hold."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"run": "runs/my", "base": {"model": "none"}, **values}))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_the_prose_is_there(name: str) -> None:
    text = prose(text_of(name))
    for word in re.findall(r"`minos ([a-z][a-z-]*)", text):
        assert word in COMMANDS, word
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", text_of("Makefile"), re.M)
    for words in re.findall(r"`make ([a-z][a-z -]*)", text):
        assert words.split()[0] in " ".join(targets).split(), words


@pytest.mark.parametrize("name", NAMES)
def test_every_config_loads(name: str, tmp_path: Path) -> None:
    for block in blocks(text_of(name), "yaml"):
        load_config(complete(tmp_path, yaml.safe_load(block)))


@pytest.mark.parametrize("name", NAMES)
def test_every_dotted_name_resolves(name: str) -> None:
    for module, attribute in re.findall(r"\b(minos_ray(?:\.\w+)+):(\w+)", text_of(name)):
        assert hasattr(importlib.import_module(module), attribute), f"{module}:{attribute}"


@pytest.mark.parametrize("name", NAMES)
def test_every_config_key_in_the_prose_is_there(name: str) -> None:
    from minos_ray.config.schema import Config

    for key in re.findall(r"`([a-z]\w*(?:\.[a-z]\w*)+)(?:=[^`]*|: [^`]*)?`", prose(text_of(name))):
        section, *rest = key.split(".")
        if section in SECTIONS and not key.endswith(FILES) and key not in COLUMNS:
            assert holds(Config, [section, *rest]), key


def holds(model: type[BaseModel], keys: list[str]) -> bool:
    """Whether a section has the nested key; what a user names freely (`dict`) may hold anything."""
    for depth, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None:
            return False
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return depth == len(keys) - 1 or "dict" in str(field.annotation)
        model = sections[0]
    return True


SECTIONS = {
    *("run", "seed", "problems", "generator", "base", "pretrain", "sample", "label", "inserted", "critique"),
    *("error_analysis", "sft", "reward", "score", "evaluate", "meta", "sweep", "study", "report", "resources"),
}
FILES = (".json", ".html", ".md", ".py", ".yaml", ".parquet", ".jsonl")
COLUMNS = {"inserted.error_step"}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(name))):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text()), target


def anchors(text: str) -> set[str]:
    """The names that a public host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_is_there(name: str) -> None:
    pattern = r"\b(?:minos_ray|tests|benchmarks|jobs|docs|kuberay)/[\w./-]+\.(?:py|md|ya?ml|jsonl|svg|png)\b"
    for path in re.findall(pattern, prose(text_of(name))):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


# Files that hold no sentence about themselves.
UNCOMMENTED = {
    "browser.css": "Styles of the candidate browser.",
    "browser.html.j2": "Elements of the candidate browser.",
    "parts.html.j2": "Macros of the page: figures, tables, candidates.",
    "style.css": "Styles of the page.",
    "template.html.j2": "The page.",
    "terms.html.j2": "The glossary.",
}
LISTED = {".py", ".yaml", ".js", ".css", ".j2"}
WRITE_TREE = "MINOS_WRITE_DOCS=1 python -m pytest tests/test_docs.py -k tree"
TREE_HEAD = f"""# Source tree

What every file of the package is for, in the words of its docstring. Folders stand from the top down: each imports only
from those below it. To regenerate this page: `{WRITE_TREE}`.
"""


def test_the_tree_is_up_to_date() -> None:
    if os.environ.get("MINOS_WRITE_DOCS"):
        TREE.write_text(tree())
    assert TREE.read_text() == tree(), f"docs/tree.md is out of date; regenerate it: {WRITE_TREE}"


def tree() -> str:
    """The page: the modules of the top level, then a table for each folder."""
    package = ROOT / "minos_ray"
    layers = [package, *(package / name for name in reversed(LAYERS) if (package / name).is_dir())]
    return "\n".join([TREE_HEAD, *(section(folder) for folder in layers)])


def section(folder: Path) -> str:
    """A folder's purpose and a row for each of its files."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in LISTED and path.name != "__init__.py"]
    rows = [f"| [{path.name}](../{path.relative_to(ROOT)}) | {purpose(path)} |" for path in files]
    title = f"## {folder.relative_to(ROOT)}/\n\n{purpose(folder / '__init__.py')}\n"
    return "\n".join([title, "| file | purpose |", "|---|---|", *rows, ""])


def purpose(path: Path) -> str:
    """The first lines of a module's docstring, or of the comment at the head of another file, up to the end of a
    sentence."""
    text = path.read_text()
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    elif path.name in UNCOMMENTED:
        lines = [UNCOMMENTED[path.name]]
    else:
        lines = [line.lstrip("#/ ") for line in text.splitlines() if re.match("#|//", line)]
    ends = (number for number, line in enumerate(lines, 1) if line.endswith((".", "?", "!")))
    head = " ".join(lines[: next(ends, 0)])
    assert head, f"{path.relative_to(ROOT)} has no docstring or comment at its head that ends in a full stop"
    return head.replace("|", "\\|")
