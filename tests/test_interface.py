"""What users write and read, frozen in `golden/interface.txt`: commands, config keys, columns, formats."""

import argparse
import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from minos_ray import cli, exports, imports
from minos_ray.config.load import resolve, shipped
from minos_ray.config.schema import AGGREGATIONS, Config
from minos_ray.store.columns import KEYS, NULLABLE, SCHEMAS

GOLDEN = Path(__file__).parent / "golden" / "interface.txt"
WRITE = "MINOS_WRITE_INTERFACE"
# Keys of JSON Schema that bound a value, in the order in which they are printed.
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "minItems", "pattern")


def test_the_interface_is_the_committed_one() -> None:
    lines = list(interface())
    if os.environ.get(WRITE):
        GOLDEN.write_text("\n".join(lines) + "\n")
    changes = list(difflib.unified_diff(GOLDEN.read_text().splitlines(), lines, "golden", "code", lineterm="", n=0))
    assert not changes, "\n".join(
        [
            "commands, config keys, columns or formats changed:",
            *changes[2:],
            f"If users shall see this change: {WRITE}=1 pytest {Path(__file__).name}, and add a line to CHANGELOG.md.",
        ]
    )


def test_choices_of_commands_are_those_of_the_config() -> None:
    """The command line spells them out: importing the config takes longer than `--help` may."""
    options = {action.dest: action.choices for action in subcommands(cli.parser())["rank"]._actions}
    assert options["aggregation"] == AGGREGATIONS


def interface() -> Iterator[str]:
    """One line for each part of the interface."""
    yield "# Commands"
    for name, command in subcommands(cli.parser()).items():
        yield " ".join(["minos", name, *map(argument, arguments(command))])
    yield from re.findall(r"Exit codes: .*", cli.__doc__ or "")
    yield f"shipped configs: {', '.join(shipped())}"

    yield from ("", "# Config keys: type = default")
    schema = Config.model_json_schema()
    yield from sorted(keys(schema, schema["$defs"], "", {}))

    yield from ("", "# Columns of artefacts")
    for artefact, columns in SCHEMAS.items():
        for column in columns:
            notes = " (key)" * (column.name == KEYS[artefact]) + " (may be null)" * (column.name in NULLABLE[artefact])
            yield f"{artefact}.{column.name}: {column.type}{notes}"

    yield from ("", "# Formats, with their options")
    for verb, formats in (("import", imports.FORMATS), ("export", exports.FORMATS)):
        for name, function in formats.items():
            yield " ".join(["minos", verb, name, *options(resolve(function))])


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name."""
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """All arguments of a command but `--help`."""
    return [action for action in command._actions if not isinstance(action, argparse._HelpAction)]


def argument(action: argparse.Action) -> str:
    """`CONFIG`, `[key=value ...]`, `--gold COL`, `[--style gsm8k|math = gsm8k]`."""
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest)
    value += {"*": " ...", "+": " ...", None: ""}.get(action.nargs, f" nargs={action.nargs}")
    text = " ".join([*action.option_strings, value])
    text += f" = {action.default}" if action.default not in (None, []) else ""
    return text if action.required else f"[{text}]"


def keys(section: dict[str, Any], definitions: dict[str, Any], prefix: str, defaults: dict[str, Any]) -> Iterator[str]:
    """`sample.top_p: number > 0 = 1.0` for each key of a section; NAME stands for a name that users choose.

    Args:
        section: the JSON schema of a pydantic model.
        defaults: what the sections above set for this one, which goes before the model's own defaults.
    """
    for name, field in section["properties"].items():
        default = defaults.get(name, field.get("default", ...))
        if name in section.get("required", ()):
            note = " (required)"
        else:  # the default of a section stands in its keys, and one that a factory makes is not in the schema
            note = "" if default is ... or (default and isinstance(default, dict)) else f" = {json.dumps(default)}"
        yield f"{prefix}{name}: {kind(field)}{note}"
        for path, reference in references(field):
            below = definitions[reference.rpartition("/")[2]]
            further = default if isinstance(default, dict) and not path else {}
            yield from keys(below, definitions, f"{prefix}{name}.{path}", further)


def references(field: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The sections in a field, with `NAME.` for one in a mapping by name."""
    for part in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in part:
            yield "", part["$ref"]
        for named in (part.get("additionalProperties"), *part.get("patternProperties", {}).values()):
            if isinstance(named, dict) and "$ref" in named:
                yield "NAME.", named["$ref"]


def kind(field: dict[str, Any]) -> str:
    """The type that a JSON schema describes, with its bounds."""
    if "anyOf" in field:
        return " | ".join(kind(part) for part in field["anyOf"])
    if "$ref" in field or "allOf" in field:
        return "section"
    if "const" in field or "enum" in field:
        return " | ".join(map(repr, field.get("enum") or [field["const"]]))
    inner = f"[{kind(field['items'])}]" if field.get("items") else ""
    bounds = "".join(f" {bound}={field[bound]}" for bound in BOUNDS if bound in field)
    return f"{field.get('type', 'any')}{inner}{bounds}"


def options(function: Callable[..., Any]) -> Iterator[str]:
    """`[split: string = train]` for each keyword-only parameter of a format's function."""
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            described = f"{name}: {kind(TypeAdapter(parameter.annotation).json_schema())}"
            needed = parameter.default is parameter.empty
            yield described if needed else f"[{described} = {parameter.default}]"
