"""Small files as others publish them, and reading back what was imported."""

import json
from pathlib import Path
from typing import Any

from minos_ray.steps.split import own_solution, paragraphs_or_lines
from minos_ray.store import columns
from minos_ray.store.run import Run

TAG = "\u043a\u0438"


def jsonl(path: Path, *rows: Any) -> str:
    """A file with one row per line; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def stored(run: Run, name: str) -> list[dict[str, Any]]:
    """The rows of an artefact, its columns and ids checked."""
    return columns.validate(name, run.artefact(name).read()).to_pylist()


def shepherd_row(question: str, signs: str, tag: str = TAG) -> dict[str, str]:
    """A row of Math-Shepherd with two steps; the answer is how many of them are right."""
    steps = ["Step 1: 2 - 1 = <<2-1=1>>1 + 0 {}\n", f"Step 2: 1 + 1 = 2. The answer is: {signs.count('+')} {{}}"]
    text = f"{question} " + "".join(steps)
    return {"input": text.format(tag, tag), "label": text.format(*signs), "task": "GSM8K"}


def found_again(run: Run) -> float:
    """The share of solutions of several steps in whose text stage `label` finds the imported steps."""
    texts = {row["candidate_id"]: row["text"] for row in stored(run, "candidates")}
    labels = [row for row in stored(run, "labels") if len(row["steps"]) > 1]
    same = [paragraphs_or_lines(own_solution(texts[row["candidate_id"]])) for row in labels]
    pairs = zip(same, labels, strict=True)
    return sum([s.split() for s in steps] == [s.split() for s in row["steps"]] for steps, row in pairs) / len(labels)
