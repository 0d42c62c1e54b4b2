"""Stage 1 without critiques, to tell what they add: plain text of as many tokens, with the loss on every token of it.

The paper has no such control: its baseline skips stage 1, and so also sees less text.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import cycle
from typing import Any

import pyarrow.compute as pc

from minos_ray.config.training import Sft
from minos_ray.inserted.reading import without_annotations
from minos_ray.problems.split import read_problems, rows_of_problems
from minos_ray.steps.own_text import without_thinking
from minos_ray.store.run import Run
from minos_ray.training.data import Data, Row, train_questions
from minos_ray.training.documents import Document, document_rows

CONTROLS = ("candidates", "solutions")


def plain_text(run: Run, tokenizer: Any, section: Sft, critiques: Data, kept_out: Collection[str] = ()) -> Data:
    """Documents in place of the rows that critiques would give, repeated in a seeded order up to as many tokens.

    The rows held out are the same critiques, so that both trainings are watched on the same text. Documents are shorter
    than critiques: with as many rows a step, plain text takes more steps.
    """
    find = candidates if section.source == "candidates" else solutions
    dropped, documents = Counter[str](), find(run)
    held_out = {row["problem_id"] for row in critiques.held_out}.union(kept_out)
    others = [document for document in documents if document[0] not in held_out]
    if len(others) < len(documents):
        dropped["held_out"] = len(documents) - len(others)
    rows = list(document_rows(tokenizer, others, section.max_length, dropped))
    random.Random(f"plain text {section.seed}").shuffle(rows)
    taken = list(up_to(rows, sum(len(row["ids"]) for row in critiques.train)))
    return Data(taken, critiques.held_out, dropped, {section.source: len(taken)})


def candidates(run: Run) -> list[Document]:
    """Each candidate that has a critique: problem, question, steps."""
    asked = train_questions(run)
    named = run.artefact("critiques").read(["candidate_id"])["candidate_id"]
    labels = rows_of_problems(run.artefact("labels"), ["candidate_id", "problem_id", "steps"], asked.keys())
    found = labels.filter(pc.is_in(labels["candidate_id"], value_set=named.combine_chunks())).sort_by("candidate_id")
    return [(row["problem_id"], asked[row["problem_id"]], row["steps"]) for row in found.to_pylist()]


def solutions(run: Run) -> list[Document]:
    """The train problems' own solutions, where they have one."""
    rows = read_problems(run, "train", ["problem_id", "question", "solution"]).sort_by("problem_id").to_pylist()
    told = [row for row in rows if row["solution"]]
    plain = [without_annotations(without_thinking(row["solution"]))[0] for row in told]
    lines = [[line for line in text.splitlines() if line.strip()] for text in plain]
    return [(row["problem_id"], row["question"], steps) for row, steps in zip(told, lines, strict=True)]


def up_to(rows: Sequence[Row], tokens: int) -> Iterator[Row]:
    """The rows, again and again, until they have so many tokens."""
    for row in cycle(rows):
        if tokens <= 0:
            return
        tokens -= len(row["ids"])
        yield row
