"""Scores of solutions that lie outside of a run, by any verifier: trained here, or published."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.config.load import resolve
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Aggregation, ForeignModel, Model
from minos_ray.errors import UserError
from minos_ray.files import is_nothing, written
from minos_ray.grading.graders import STYLES
from minos_ray.scoring.verifier import LOWEST_SCORE, aggregate, kind_of
from minos_ray.steps.split import own_solution
from minos_ray.store.model_files import absolute, locate
from minos_ray.store.run import Run
from minos_ray.units.file_slices import Reader, Slice

Scores = list[list[float]]
SPLITTER = "minos_ray.steps.split:paragraphs_or_lines"
# Keys of a critic that `minos rank` has options for.
CRITIC_OPTIONS = ("base_url", "api_key_env", "prompt", "samples", "temperature", "max_usd", "concurrency")
RESULT = pa.schema([("score", pa.float64()), ("step_scores", pa.list_(pa.float64())), ("answer", pa.string())])


@dataclass(frozen=True)
class Task:
    """What is scored, by what. `text` names a column of texts, which are split into steps, of lists of steps, or of
    chats, whose assistant's turns are taken; `question` one of texts, or of chats, whose last user turn is taken.
    """

    verifier: ForeignModel
    question: str
    text: str
    style: str
    splitter: str = SPLITTER
    aggregation: Aggregation = "min"
    resources: Scoring = field(default_factory=Scoring)


def verifier_of(model: str, kind: str | None = None, separator: str | None = None) -> ForeignModel:
    """The verifier with its kind; UserError for a model that is none, or is of another kind.

    By its config.json alone where it was trained here: to import transformers takes longer than to find that the rows
    are not there.
    """
    path = Path(locate(Model(model=model), Run(".")))
    config = json.loads((path / "config.json").read_text())
    if "step_encoding" not in config and kind in (None, "minos"):
        raise UserError(
            f"verifier '{model}' was not trained by minos_ray; its kind (--kind) must be given: sequence, tokens, "
            "shepherd or qwen (docs/meta.md)"
        )
    options = {"separator": separator} if separator else {}
    verifier = ForeignModel.model_validate({"model": model, "kind": kind or "minos", **options})
    if verifier.kind == "minos":
        labels = len(config.get("id2label") or "..")
        kind_of(SimpleNamespace(**{"architectures": None, **config, "num_labels": labels}), model)
    else:
        from minos_ray.meta.foreign import check_model

        check_model(verifier, str(path))
    return absolute(verifier)


class SolutionScorer:
    """Scores solutions with one verifier, loaded with the first of them; several threads may share it."""

    def __init__(self, task: Task) -> None:
        self.task, self.lock = task, Lock()
        self.scorer: Any = None

    def __call__(self, questions: Sequence[str], solutions: Sequence[Any]) -> tuple[list[float | None], Scores]:
        """A score in 0..1 of each solution (a text, or a list of steps) and those of its steps, where there are any;
        None for one without steps or too long."""
        return self.scored(questions, solutions)[:2]

    def scored(
        self, questions: Sequence[str], solutions: Sequence[Any]
    ) -> tuple[list[float | None], Scores, dict[str, float]]:
        """Scores, step scores, and the counts of `Verifier.score`."""
        splitter = self.task.splitter
        pairs = [(q, steps_of(solution, splitter)) for q, solution in zip(questions, solutions, strict=True)]
        with self.lock:
            self.scorer = self.scorer or load_scorer(self.task.verifier, self.task.resources)
            step_scores, counts = self.scorer.score(pairs)
        return [self.total(scores) for scores in step_scores], step_scores, counts

    def reason(self, question: str, solution: Any) -> str:
        """Why a solution has no score, as it is counted: `no_steps`, `over_max_length`, ..."""
        counts = self.scored([question], [solution])[2]
        return next((key.removeprefix("refused_") for key in counts if key.startswith("refused_")), "not_finite")

    def by_step(self) -> bool:
        """Whether the verifier, once it is loaded, has a score for every step."""
        return bool(getattr(self.scorer, "every_step", False))

    def total(self, scores: Sequence[float]) -> float | None:
        """The score of a solution from those of its steps, as in a run; an ORM's is its last one."""
        if not scores:
            return None
        name = "last" if getattr(self.scorer, "kind", "") == "orm" else self.task.aggregation
        return max(float(aggregate(np.array(scores), np.array([len(scores)]), name)[0]), LOWEST_SCORE)

    def __getstate__(self) -> dict[str, Any]:
        """The task alone, so that it can be sent before it has loaded anything."""
        return {"task": self.task}

    def __setstate__(self, sent: dict[str, Any]) -> None:
        self.__init__(sent["task"])  # type: ignore[misc]


class SliceScorer:
    """Scores slices of a file, here or in an actor."""

    def __init__(self, task: Task) -> None:
        self.task, self.score = task, SolutionScorer(task)
        self.read = Reader([task.question, task.text])

    def __call__(self, part: Slice) -> pa.Table:
        """A row of `RESULT` for each row of the slice; the score is null where a solution has none."""
        rows = self.read(part)
        questions, solutions = cells_of(rows, self.task.question), cells_of(rows, self.task.text)
        scores, step_scores = self.score([as_text(question, "user") for question in questions], solutions)
        answers = [answer_of(solution, self.task.style) for solution in solutions]
        return pa.table([scores, step_scores, answers], schema=RESULT)


def load_scorer(verifier: ForeignModel, resources: Scoring) -> Any:
    """What scores (question, steps) with a verifier."""
    path = locate(verifier, Run("."))
    if verifier.kind == "minos":
        from minos_ray.scoring.verifier import load

        return load(path, verifier.trust_remote_code, resources)
    from minos_ray.meta.foreign import ForeignScorer

    return ForeignScorer(verifier, path, resources.max_model_len, resources.gpus)


def steps_of(solution: Any, splitter: str) -> list[str]:
    """The steps of a solution: a list as it is, a text without what runs on behind the answer, split."""
    if isinstance(solution, list) and not is_chat(solution):
        return [as_text(step) for step in solution]
    return resolve(splitter)(own_solution(as_text(solution)))


def answer_of(solution: Any, style: str) -> str | None:
    """The answer that a grader of this style reads in a solution."""
    return STYLES[style].extract(own_solution(as_text(solution)))


def cells_of(rows: pa.Table, column: str) -> list[Any]:
    """The values of a column; a file of several that lacks it has none."""
    return rows[column].to_pylist() if column in rows.column_names else [None] * rows.num_rows


def is_chat(cell: Any) -> bool:
    """Whether a cell is a list of turns `{role, content}`."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(turn, dict) and "role" in turn for turn in cell)


def as_text(cell: Any, role: str = "assistant") -> str:
    """A cell as text: of a chat the assistant's turns, or the last turn of another role (UserError when there is none),
    the lines of a list of steps; nothing is an empty text."""
    if not is_chat(cell):
        if isinstance(cell, list):
            return "\n".join(map(as_text, cell))
        return "" if is_nothing(cell) else written(cell)
    turns = [turn.get("content") for turn in cell if turn["role"] == role]
    texts = [
        "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content
        for content in (turns if role == "assistant" else turns[-1:])
    ]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"a chat has no turn of the {role} with a text: {cell!r:.100}")
    return "\n".join(map(str, texts))
