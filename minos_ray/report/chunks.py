"""The candidates of one problem packed for the page: columns, every text once, identical candidates once, gzip."""

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

MARKS = {1: "+", 0: "-", -1: "."}


@dataclass(frozen=True)
class Critique:
    """What a critic wrote about a candidate."""

    critic: str
    agrees: bool
    status: str
    text: str


@dataclass(frozen=True)
class Content:
    """All of a candidate but its index. `scores` by verifier, `step_scores` (thousandths) by each that scores steps.

    None stands for a score that is no number.
    """

    answer: str | None
    cluster: int
    correct: bool
    status: str
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    errors: tuple[str, ...]
    scores: tuple[float | None, ...]
    step_scores: tuple[tuple[int | None, ...], ...]
    critiques: tuple[Critique, ...] = ()


class Texts:
    """A table of strings: equal ones have one place."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def at(self, text: str | None) -> int:
        """The place of a text, -1 for none."""
        return -1 if text is None else self.places.setdefault(text, len(self.places))


def columns(candidates: Iterable[tuple[int | str, Content]]) -> dict[str, Any]:
    """Columns over the distinct contents; `indices` names the candidates that have each."""
    indices: dict[Content, list[int | str]] = defaultdict(list)
    for index, content in candidates:
        indices[content].append(index)
    texts, found = Texts(), list(indices)
    made = {
        "indices": list(indices.values()),
        "answers": [texts.at(c.answer) for c in found],
        "clusters": [c.cluster for c in found],
        "correct": [int(c.correct) for c in found],
        "statuses": [texts.at(c.status) for c in found],
        "steps": [[texts.at(step) for step in c.steps] for c in found],
        "labels": ["".join(MARKS[label] for label in c.labels) for c in found],
        "errors": [[texts.at(kind) for kind in c.errors] for c in found],
        "scores": [[shortest(s) for s in column] for column in zip(*(c.scores for c in found), strict=True)],
        "step_scores": [list(column) for column in zip(*(c.step_scores for c in found), strict=True)],
        "critiques": {
            str(row): [[texts.at(k.critic), int(k.agrees), texts.at(k.status), texts.at(k.text)] for k in c.critiques]
            for row, c in enumerate(found)
            if c.critiques
        },
    }
    return {"texts": list(texts.places), **made}


def finite(score: float | None) -> float | None:
    """The score, None where it is no number."""
    return score if score is not None and math.isfinite(score) else None


def shortest(score: float | None) -> float | None:
    """The shortest number that is the same float32, so that sorting on the page is exact; None for no number."""
    return None if finite(score) is None else float(str(np.float32(score)))


def pack(made: dict[str, Any]) -> str:
    """Base64 of gzip of JSON; the same columns always give the same text."""
    text = json.dumps(made, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
