"""Hard2Verify (2510.13744): proofs and solutions of frontier models whose every step people called right or wrong.

Columns: unique_id, question, model_response_by_step, human_labels (1 or 0; a step that rests on an error is wrong),
human_labels_first_error_idx (0-based, -1: none), canary. Against leaking into training data the public file has the
four columns of text and labels encrypted, each with the row's own canary; rows that somebody has decrypted are read as
well.
"""

import base64
import json
from hashlib import sha256
from itertools import cycle
from typing import Any

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.grouping import Collection, Policy, Solution, usable
from minos_ray.imports.prmbench import steps_of
from minos_ray.imports.write import Row
from minos_ray.problems.rows import text_of
from minos_ray.store.run import Manifest, Run

ENCRYPTED = ("question", "model_response_by_step", "human_labels", "human_labels_first_error_idx")
ELSEWHERE = "first error elsewhere than 'human_labels_first_error_idx'"


def import_hard2verify(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels, all in split test; as in its own evaluation a solution is right when every step
    is. There are no gold answers."""
    collection = Collection("hard2verify", after_first_error)
    for solution, first in usable("hard2verify", src, collection.dropped, parse):
        if collection.add(solution):
            labels = solution.step_labels
            collection.notes[ELSEWHERE] += first is not None and first != (labels.index(0) if 0 in labels else -1)
    return collection.write(run, "hard2verify", src, {"after_first_error": after_first_error})


def parse(record: Row) -> tuple[Solution, int | None]:
    """One solution, and its first wrong step as the row has it."""
    row = decrypted(record) if isinstance(record.get("model_response_by_step"), str) else record
    steps, labels = steps_of(row, "model_response_by_step"), row.get("human_labels")
    if not isinstance(labels, list) or len(labels) != len(steps) or not all(label in (0, 1) for label in labels):
        raise BadRow("'human_labels' has not 0 or 1 for each step")
    labels, answer = list(map(int, labels)), extract_latex("\n".join(steps), fallback=False)
    facts = (text_of(row, "question"), "hard2verify", steps, labels, 0 not in labels, answer)
    return Solution(*facts, split="test", stated=True), row.get("human_labels_first_error_idx")


def decrypted(record: Row) -> dict[str, Any]:
    """The row with its encrypted columns as they were: base64 of bytes, xor the repeated SHA-256 of the canary; lists
    and numbers are JSON."""
    key, row = sha256(text_of(record, "canary").encode()).digest(), dict(record)
    try:
        for name in ENCRYPTED:
            if isinstance(row.get(name), str):
                data = base64.b64decode(row[name], validate=True)
                row[name] = bytes(a ^ b for a, b in zip(data, cycle(key))).decode()
        for name in ENCRYPTED[1:]:
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
    except ValueError as error:
        raise BadRow("a column cannot be decrypted with the row's canary") from error
    return row
