"""Step splitters: a solution's text as its steps. The last step is the line with the answer."""

import re

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9$\\(])")
MARKER = re.compile(r"(?m)^\s*(?=Step\s+[0-9]+\s*[:.])")


def lines(text: str) -> list[str]:
    """Each non-empty line is a step."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Each block between empty lines is a step; for solutions with displayed formulas."""
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def sentences(text: str) -> list[str]:
    """Each sentence of each line is a step; for solutions written as running text."""
    return [sentence.strip() for line in lines(text) for sentence in SENTENCE_END.split(line)]


def markers(text: str) -> list[str]:
    """Each `Step k:` up to the next one is a step, lines of one step joined; a line `The answer is` stands alone."""
    blocks = MARKER.split(text)
    parts = [part for block in blocks for part in re.split(r"(?m)^\s*(?=The answer is\b)", block)]
    return [" ".join(part.split()) for part in parts if part.strip()]
