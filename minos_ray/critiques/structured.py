"""Critiques as JSON of a given schema (`critique.structured`), turned into the one text form that stage 1 reads."""

import json
import re
from typing import Any

from minos_ray.critiques.prompts import Messages
from minos_ray.steps.own_text import without_thinking

INSTRUCTION = """Answer as JSON. `steps` has one entry for each of these lines: `explanation` holds what the line would
say, without `Step k:` and without the closing sentence, and `correct` the verdict on the step. `final` is true when the
final answer is right."""
_STEP = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "correct": {"type": "boolean"}},
    "required": ["explanation", "correct"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"steps": {"type": "array", "items": _STEP}, "final": {"type": "boolean"}},
    "required": ["steps", "final"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "critique", "strict": True, "schema": SCHEMA},
}
_FENCED = re.compile(r"(?ms)^[ \t]*```(?:json)?[ \t]*\n(.*?)```[ \t]*$")
_OPENING = re.compile(r"^\s*Step\s+\d+\s*:\s*")
_CLOSING = re.compile(r"\s*\bThis step is (in)?correct\b\.?\s*$")


class NotJson(ValueError):
    """The answer is no JSON of the schema."""


def with_instruction(messages: Messages) -> Messages:
    """The messages with the request for JSON after the last one."""
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n{INSTRUCTION}"}]


def canonical(text: str) -> str:
    """`Step 1: ... This step is correct.` for each step, then `The final answer is True.`; NotJson when it is none.

    The JSON may stand behind thinking and in a code fence.
    """
    value = _value(text)
    if not isinstance(value, dict) or not isinstance(value.get("steps"), list):
        raise NotJson("no steps")
    lines = [_line(number, step) for number, step in enumerate(value["steps"], start=1)]
    return "\n".join([*lines, f"The final answer is {_verdict(value, 'final')}."])


def _value(text: str) -> Any:
    """What the JSON says; NotJson when there is none, or several blocks of code could be it."""
    visible = without_thinking(text)
    fenced = _FENCED.findall(visible)
    try:
        return json.loads(fenced[0] if len(fenced) == 1 else visible)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def _line(number: int, step: Any) -> str:
    if not isinstance(step, dict) or not isinstance(step.get("explanation"), str):
        raise NotJson(f"step {number} has no explanation")
    verdict = "correct" if _verdict(step, "correct") else "incorrect"
    explanation = _CLOSING.sub("", _OPENING.sub("", " ".join(step["explanation"].split()))).rstrip(" ,;:")
    # The parser takes a verdict that a sentence runs into for a part of it.
    full_stop = "." if explanation[-1:].isalnum() else ""
    return " ".join(filter(None, [f"Step {number}:", explanation + full_stop, f"This step is {verdict}."]))


def _verdict(value: dict[str, Any], name: str) -> bool:
    if not isinstance(value.get(name), bool):
        raise NotJson(f"'{name}' is neither true nor false")
    return value[name]
