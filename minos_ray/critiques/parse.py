"""Reading a critique strictly: one verdict per step, one final verdict, or a status that says what is wrong with it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "empty", "no_verdict", "wrong_step_count", "unclear_step"]

STEP = re.compile(r"[\s*#_]*Step\s+(\d+)\s*:")
VERDICT = re.compile(r"\bThis step is (correct|incorrect)\b")
FINAL = re.compile(r"The final answer is (True|False)\.?")
EMPHASIS = " \t\r*_`"


@dataclass(frozen=True)
class Parsed:
    """What a critique says: 1, 0 or -1 (unclear) per step, the answer line last, whose verdict is the final one.

    `step_verdicts` is empty unless every step was found; `final_verdict` is None when there is none.
    """

    step_verdicts: list[int]
    final_verdict: bool | None
    status: Status


def parse_critique(text: str, num_steps: int) -> Parsed:
    """The verdicts in `text` on a solution of `num_steps` steps, the answer line included. Never raises.

    The answer line may have a `Step k:` line of its own; its verdict must then be the final one.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return Parsed([], None, "empty")
    final = _final_verdict(lines[-1])
    if final is None:
        return Parsed([], None, "no_verdict")
    blocks = _blocks(lines[:-1])
    numbers = [number for number, _ in blocks]
    if numbers not in (list(range(1, num_steps)), list(range(1, num_steps + 1))):
        return Parsed([], final, "wrong_step_count")
    verdicts = [_step_verdict(block) for _, block in blocks]
    contradicts = len(verdicts) == num_steps and verdicts[-1] != int(final)
    unclear = -1 in verdicts or contradicts
    return Parsed([*verdicts[: num_steps - 1], int(final)], final, "unclear_step" if unclear else "ok")


def agrees(parsed: Parsed, step_labels: Sequence[int], correct: bool) -> bool:
    """Whether a critique read as `ok` says what the labels say; unknown step labels (-1) are not compared.

    The answer line is judged by the final verdict, so it is compared with `correct`.
    """
    if parsed.status != "ok" or len(parsed.step_verdicts) != len(step_labels) or parsed.final_verdict != correct:
        return False
    pairs = zip(parsed.step_verdicts[:-1], step_labels[:-1], strict=True)
    return all(verdict == label for verdict, label in pairs if label != -1)


def _final_verdict(line: str) -> bool | None:
    found = FINAL.fullmatch(line.strip(EMPHASIS))
    return found[1] == "True" if found else None


def _blocks(lines: list[str]) -> list[tuple[int, str]]:
    """Step number and text of each step: its `Step k:` line and the lines up to the next one."""
    blocks: list[tuple[int, list[str]]] = []
    for line in lines:
        start = STEP.match(line)
        if start:
            blocks.append((_number(start[1]), [line]))
        elif blocks:
            blocks[-1][1].append(line)
    return [(number, "\n".join(block)) for number, block in blocks]


def _number(digits: str) -> int:
    """The number, -1 for one so long that it is no step's (int() refuses thousands of digits)."""
    return int(digits) if len(digits) < 6 else -1


def _step_verdict(block: str) -> int:
    """1 or 0 when the block holds one verdict and ends with it, else -1."""
    found = list(VERDICT.finditer(block))
    if len(found) != 1 or block[found[0].end() :].strip(EMPHASIS + ".\n"):
        return -1
    return int(found[0][1] == "correct")
