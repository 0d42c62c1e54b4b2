"""What math-verify reads in an expression."""

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4096)
def parsed(answer: str) -> list[Any]:
    """What math-verify reads in an expression; no limit of its own, since its signals fail outside a main thread."""
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: the reader of plain expressions ends in eval().
    return parse(f"\\boxed{{{answer}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)
