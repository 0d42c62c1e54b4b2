"""Prompts for the critic: the paper's label-aware prompt in our own words, and the same without labels.

A prompt is a function (case) -> chat messages; `critique.prompt` names it.
When the text changes, raise `critique_prompt` in `minos_ray.stages.VERSIONS`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

Messages = list[dict[str, str]]


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


MARKED = re.compile(r"Step\s+\d+\s*:")

GIVEN = (
    "You see a mathematics problem and a solution written step by step, with its final answer in the last line. "
    "Labels say what is right: `Label: True` stands after what is right, `Label: False` after what is wrong. "
    "The labels can be relied on. Your task is to explain them, not to doubt them."
)
UNSEEN = (
    "You see a mathematics problem and a solution written step by step, with its final answer in the last line. "
    "Your task is to find out which steps are right and whether the final answer is."
)
TASK = """Judge the {steps} in order. For each write exactly one line that begins with `Step k:` (k is its number).
Explain briefly why the step is right; if it is wrong, explain what is wrong and what would have been right. If a
step is wrong only because it uses an earlier wrong result, say so. End the line with the sentence
`This step is correct.` or with the sentence `This step is incorrect.`
Write as someone who found all this out alone: do not mention that labels exist.
After the steps write one last line that judges the final answer. It is exactly `The final answer is True.` when the
answer is right and exactly `The final answer is False.` when it is wrong."""


def label_aware(case: Case) -> Messages:
    """Messages that show the label after each step and the final label after the answer line (Math-Minos, figure 3).

    A step whose label is unknown is shown without one.
    """
    labels = [*case.step_labels[:-1], int(case.correct)]
    lines = [_labelled(step, label) for step, label in zip(_numbered(case.steps), labels, strict=True)]
    return _messages(GIVEN, case.question, lines)


def blind(case: Case) -> Messages:
    """The same without any label: the critic has to find the errors itself."""
    return _messages(UNSEEN, case.question, _numbered(case.steps))


def _numbered(steps: Sequence[str]) -> list[str]:
    """Each step on one line, with `Step k:` before those that have no such mark; the answer line stays as it is."""
    lines = [" ".join(step.split()) for step in steps]
    marked = [line if MARKED.match(line) else f"Step {k}: {line}" for k, line in enumerate(lines[:-1], start=1)]
    return marked + lines[-1:]


def _labelled(line: str, label: int) -> str:
    return line if label < 0 else f"{line} Label: {bool(label)}"


def _messages(given: str, question: str, lines: list[str]) -> Messages:
    steps = "step" if len(lines) == 2 else f"{len(lines) - 1} steps"
    solution = "\n".join(lines)
    text = f"{given}\n\n[Question]\n{question.strip()}\n\n[Solution]\n{solution}\n\n[Task]\n{TASK.format(steps=steps)}"
    return [{"role": "user", "content": text}]
