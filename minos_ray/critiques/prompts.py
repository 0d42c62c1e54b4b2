"""Prompts for the critic: label-aware (the paper's, in our own words), answer-guided, blind, and our own critic's;
and the requests that are made of them.

A prompt is a function (case) -> chat messages; `critique.prompt` names it.
When the text changes, raise `critique_prompt` in `minos_ray.graph.specs.VERSIONS`.
A request has a key that names it by its content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from minos_ray.config.load import resolve
from minos_ray.config.schema import Critique
from minos_ray.steps import encoding
from minos_ray.steps.split import without_thinking

Messages = list[dict[str, str]]
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


class Case(NamedTuple):
    """What a prompt may show of a candidate. `steps` ends with the answer line; labels are 1, 0 or -1 (unknown).

    `answer` and `solution` are the problem's own; there may be no solution.
    """

    question: str
    steps: Sequence[str]
    step_labels: Sequence[int]
    correct: bool
    answer: str
    solution: str | None


def case_of(row: Mapping[str, Any], problem: Mapping[str, Any]) -> Case:
    """The case of a labelled solution (a row with `steps`, `step_labels`, `correct`) of a problem."""
    return Case(
        problem["question"], row["steps"], row["step_labels"], row["correct"], problem["answer"], problem["solution"]
    )


# Prompts are tried on it.
EXAMPLE = Case("1 + 1?", ["Step 1: 1 + 1 = 2", "The answer is: 2"], [1, 1], True, "2", None)
MARKED = re.compile(r"Step\s+(\d+)\s*:")
CALCULATION = re.compile(r"<<[^<>]*>>")

GIVEN = (
    "You see a mathematics problem and a solution written step by step, with its final answer in the last line. "
    "Labels say what is right: `Label: True` stands after what is right, `Label: False` after what is wrong. "
    "The labels can be relied on. Your task is to explain them, not to doubt them."
)
GUIDED = (
    "You see a mathematics problem, a reference and a solution written step by step, with its final answer in the "
    "last line. The reference holds the right final answer and, where one is known, a right way to it; it can be "
    "relied on. The solution may take another way, which is no mistake. Your task is to find out which steps are "
    "right and whether the final answer is."
)
UNSEEN = (
    "You see a mathematics problem and a solution written step by step, with its final answer in the last line. "
    "Your task is to find out which steps are right and whether the final answer is. Work out each step yourself "
    "before you judge it."
)
TASK = """Judge the {steps} in order. For each write exactly one line that begins with `Step k:` (k is its number).
Explain briefly why the step is right; if it is wrong, explain what is wrong and what would have been right. A step
that is wrong only because it uses an earlier wrong result is incorrect too; say that this is the reason. End the line
with the sentence `This step is correct.` or with the sentence `This step is incorrect.`, used once and nowhere else.
{secret}After the steps write one last line that judges the final answer. It is exactly `The final answer is True.`
when the answer is right and exactly `The final answer is False.` when it is wrong.
Write these lines as plain text: no headings, no bold type, nothing before them, between them or after them."""
NO_LABELS = "Write as someone who found all this out alone: do not mention that labels exist.\n"
NO_REFERENCE = "Write as someone who found all this out alone: do not mention that there is a reference.\n"


def label_aware(case: Case) -> Messages:
    """Messages that show the label after each step and the final label after the answer line (Math-Minos, figure 3).

    A step whose label is unknown is shown without one.
    """
    labels = [*case.step_labels[:-1], int(case.correct)]
    steps = zip(_numbered(case.steps), labels, strict=True)
    lines = [step if label < 0 else f"{step} Label: {bool(label)}" for step, label in steps]
    return _messages(GIVEN, case.question, lines, secret=NO_LABELS)


def answer_guided(case: Case) -> Messages:
    """The right answer and the reference solution are shown, labels are not (GenRM, 2408.15240: without a reference
    about half of the critiques are right). Only critiques that agree with the labels are used.
    """
    # Without GSM8K's calculator marks, and without blank lines, which separate the blocks of the prompt.
    lines = CALCULATION.sub("", without_thinking(case.solution or "")).splitlines()
    solution = "\n".join(line.strip() for line in lines if line.strip())
    reference = f"Right final answer: {case.answer}" + (f"\nA right solution:\n{solution}" if solution else "")
    return _messages(GUIDED, case.question, _numbered(case.steps), reference, NO_REFERENCE)


def blind(case: Case) -> Messages:
    """Nothing but problem and solution: the critic has to find the errors itself."""
    return _messages(UNSEEN, case.question, _numbered(case.steps))


def plain(case: Case) -> Messages:
    """The very text after which a stage-1 critic of ours writes; blind. Served behind a template that adds nothing."""
    text = encoding.question_text(case.question) + "".join(map(encoding.step_text, case.steps)) + encoding.CRITIQUE
    return [{"role": "user", "content": text}]


def chat(case: Case, system: str | None = None) -> Messages:
    """The turns that a stage-1 critic of ours with encoding `chat` answers; blind. Served behind its own template."""
    return encoding.critic_turns(case.question, "".join(map(encoding.step_text, case.steps)), system)


def _numbered(steps: Sequence[str]) -> list[str]:
    """Each step on one line that begins with its own `Step k:`; the answer line stays as it is."""
    lines = [" ".join(step.split()) for step in steps]
    for k, line in enumerate(lines[:-1], start=1):
        marked = MARKED.match(line)
        # Longer numbers are no step's, and int() refuses thousands of digits.
        if not marked or len(marked[1]) > 5 or int(marked[1]) != k:
            lines[k - 1] = f"Step {k}: {line}"
    return lines


def _messages(
    introduction: str, question: str, lines: list[str], reference: str | None = None, secret: str = ""
) -> Messages:
    steps = "step" if len(lines) == 2 else f"{len(lines) - 1} steps"
    blocks = {
        "Question": question.strip(),
        "Reference": reference,
        "Solution": "\n".join(lines),
        "Task": TASK.format(steps=steps, secret=secret),
    }
    sections = "".join(f"\n\n[{name}]\n{text}" for name, text in blocks.items() if text is not None)
    return [{"role": "user", "content": introduction + sections}]


@dataclass(frozen=True)
class Request:
    """One text to ask for; `key` names its content. `structured` asks for a critique as JSON.

    `expected` is what the reader of the answer needs to know, such as the number of steps.
    """

    key: str
    messages: Messages
    structured: bool = False
    expected: tuple[int, ...] = ()


def build_request(section: Critique, prompt: str, case: Case, expected: tuple[int, ...], sample: int = 0) -> Request:
    """The request that the prompt function named `prompt` makes of a case.

    Further samples of the same content, from 1 on, have keys of their own: each is bought.
    """
    messages = resolve(prompt)(case)
    if section.structured:
        *before, last = messages
        messages = [*before, {**last, "content": f"{last['content']}\n{INSTRUCTION}"}]
    key = key_of(section, messages)
    if sample:
        key = blake2b(f"{key} {sample}".encode(), digest_size=16).hexdigest()
    return Request(key, messages, section.structured, expected)


def body(section: Critique, messages: Messages) -> dict[str, Any]:
    """The body of one chat completion."""
    fields: dict[str, Any] = {"model": section.model, "messages": messages, section.token_limit: section.max_tokens}
    if section.temperature is not None:
        fields["temperature"] = section.temperature
    fields |= optional(section) | section.extra_body
    return {**fields, "response_format": FORMAT} if section.structured else fields


def optional(section: Critique) -> dict[str, Any]:
    """The parameters that are only sent where the config sets them."""
    values = {"top_p": section.top_p, "reasoning_effort": section.reasoning_effort}
    return {name: value for name, value in values.items() if value is not None}


def key_of(section: Critique, messages: Messages) -> str:
    """The name in the cache of what `body` asks for.

    The address and the name of the token limit are not in it: neither changes the text.
    """
    parameters = optional(section) | ({"extra_body": section.extra_body} if section.extra_body else {})
    return content_key(section.model, messages, section.temperature, section.max_tokens, section.structured, parameters)


def content_key(
    critic: str,
    messages: Messages,
    temperature: float | None,
    max_tokens: int,
    structured: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """32 hex digits that name a request by its content; `parameters` are further ones, where there are any."""
    content = [critic, messages, temperature, max_tokens, *(["structured"] if structured else [])]
    content += [json.dumps(parameters, sort_keys=True)] if parameters else []
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
