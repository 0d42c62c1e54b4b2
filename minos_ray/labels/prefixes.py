"""Prefixes of a solution, one after each step, and the token ids with which a completer continues them."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from minos_ray.steps.encoding import token_ids

# The last tokens of the prompt that are decoded, to see how the first word of the solution reads behind them.
CONTEXT = 8


def prefixes(text: str, steps: Sequence[str]) -> tuple[list[str], bool]:
    """The text up to the end of each step but the last, and whether the steps are parts of the text.

    A prefix ends behind the step and the line breaks that follow it, where the author began the next step. When the
    splitter rewrote more of the text than its white space, the flag is False and the steps are joined anew, one a
    line.
    """
    ends = step_ends(text, steps)
    if ends is None:
        return ["".join(f"{step}\n" for step in steps[:k]) for k in range(1, len(steps))], False
    return [text[:end] for end in ends[:-1]], True


def step_ends(text: str, steps: Sequence[str]) -> list[int] | None:
    """Where each step ends in the text; None when the steps are not its words in their order."""
    ends, end = [], 0
    for step in steps:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        end = start + len(step)
        if not text.startswith(step, start):  # white space may differ
            match = re.compile(r"\s+".join(map(re.escape, step.split()))).match(text, start)
            if match is None:
                return None
            end = match.end()
        # Behind the last line break that follows. A space is left to the completer, whose tokens mostly begin with it.
        gap = len(text[end:]) - len(text[end:].lstrip())
        ends.append(max(end, text.rfind("\n", end, end + gap) + 1))
    return ends


def prefix_id(problem_id: str, prefix: str) -> str:
    """A name for a prefix: the same for the same text of the same problem."""
    return blake2b(f"{problem_id}\0{prefix}".encode(), digest_size=12).hexdigest()


def ids_after(tokenizer: Any, prompt: Sequence[int], texts: Sequence[str]) -> list[tuple[list[int], bool]]:
    """For each text its token ids behind the prompt, and whether prompt and ids then read exactly as prompt and text.

    SentencePiece puts a space before a text that stands alone; behind a line break it does not, so the text is also
    tokenised behind one.
    """
    tokenised = []
    for text, ids in zip(texts, token_ids(tokenizer, texts), strict=True):
        exact = decodes_to(tokenizer, prompt, ids, text)
        if not exact:
            line_break, both = token_ids(tokenizer, ["\n", f"\n{text}"])
            behind = both[len(line_break) :]
            exact = decodes_to(tokenizer, prompt, behind, text)
            ids = behind if exact else ids
        tokenised.append((ids, exact))
    return tokenised


def decodes_to(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], text: str) -> bool:
    """Whether ids behind the prompt decode to the text."""
    context = list(prompt[-CONTEXT:])
    before, after = (
        tokenizer.decode(tokens, clean_up_tokenization_spaces=False) for tokens in (context, [*context, *ids])
    )
    return after == before + text
