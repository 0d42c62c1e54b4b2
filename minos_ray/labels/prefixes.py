"""Where a solution's text can be cut after each step, and the token ids with which a completer goes on from there."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from minos_ray.steps.encoding import token_ids

# So many of the prompt's last tokens are decoded to see how the first word of the solution reads behind them.
CONTEXT = 8


def prefixes(text: str, steps: Sequence[str]) -> tuple[list[str], bool]:
    """The text up to the end of each step but the last, and whether it could be cut.

    A cut stands behind the step and the line breaks that follow it: there the author went on with the next step. Where
    the splitter rewrote the text more than its white space, the steps are joined anew, one a line, and the flag is
    False.
    """
    ends = step_ends(text, steps)
    if ends is None:
        return ["".join(f"{step}\n" for step in steps[:k]) for k in range(1, len(steps))], False
    return [text[:end] for end in ends[:-1]], True


def step_ends(text: str, steps: Sequence[str]) -> list[int] | None:
    """Where each step ends in the text; None when the steps are not its words in their order."""
    ends, at = [], 0
    for step in steps:
        at += len(text[at:]) - len(text[at:].lstrip())
        at = end_of(step, text, at)
        if at is None:
            return None
        ends.append(behind_line_breaks(text, at))
    return ends


def end_of(step: str, text: str, at: int) -> int | None:
    """Where the step ends that begins at `at`; white space may differ."""
    if text.startswith(step, at):
        return at + len(step)
    found = re.compile(r"\s+".join(map(re.escape, step.split()))).match(text, at)
    return found.end() if found else None


def behind_line_breaks(text: str, at: int) -> int:
    """Behind the last line break of the white space at `at`; `at` when there is none, as between sentences.

    A space is left to the completer, whose tokens mostly begin with it.
    """
    gap = len(text[at:]) - len(text[at:].lstrip())
    return max(at, text.rfind("\n", at, at + gap) + 1)


def prefix_id(problem_id: str, prefix: str) -> str:
    """A name for a prefix: the same for the same text of the same problem."""
    return blake2b(f"{problem_id}\0{prefix}".encode(), digest_size=12).hexdigest()


def ids_after(tokenizer: Any, prompt: Sequence[int], texts: Sequence[str]) -> list[tuple[list[int], bool]]:
    """For each text its token ids behind the prompt, and whether prompt and ids then read exactly as prompt and text.

    SentencePiece puts a space before a text that stands alone; behind a line break it does not, so the text is also
    tokenised behind one.
    """
    plain = token_ids(tokenizer, texts)
    made = []
    for text, ids in zip(texts, plain, strict=True):
        ways = (ids, behind_line_break(tokenizer, text)) if not reads(tokenizer, prompt, ids, text) else (ids,)
        exact = next((way for way in ways if reads(tokenizer, prompt, way, text)), None)
        made.append((ids, False) if exact is None else (exact, True))
    return made


def behind_line_break(tokenizer: Any, text: str) -> list[int]:
    """The ids of the text in a text where a line break stands before it."""
    line_break, both = token_ids(tokenizer, ["\n", f"\n{text}"])
    return both[len(line_break) :]


def reads(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], text: str) -> bool:
    """Whether ids behind the prompt decode to the text."""
    before = list(prompt[-CONTEXT:])
    return decode(tokenizer, [*before, *ids]) == decode(tokenizer, before) + text


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids as it is."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
