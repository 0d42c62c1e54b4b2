"""Scores of solutions that lie outside of a run, by any verifier: trained here, or published."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from minos_ray.config.load import resolve
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import ForeignModel, Model
from minos_ray.errors import UserError
from minos_ray.files.read import is_nothing, written
from minos_ray.files.slices import Reader, Slice
from minos_ray.grading.graders import STYLES
from minos_ray.scoring.verifier import kind_of
from minos_ray.steps.own_text import own_solution
from minos_ray.store.model_files import absolute, locate
from minos_ray.store.run import Run

SPLITTER = "minos_ray.steps.split:paragraphs_or_lines"
RESULT = pa.schema([("score", pa.float64()), ("step_scores", pa.list_(pa.float64())), ("answer", pa.string())])


@dataclass(frozen=True)
class Task:
    """What is scored, by what. `text` names a column of texts, which are split into steps, or of lists of steps."""

    verifier: ForeignModel
    question: str
    text: str
    style: str
    splitter: str = SPLITTER
    aggregation: str = "min"
    resources: Scoring = field(default_factory=Scoring)


def task_of(arguments: Any) -> Task:
    """The task that the options of `minos rank` name; UserError for a model that is none or of another kind."""
    path = Path(locate(Model(model=arguments.verifier), Run(".")))
    config = json.loads((path / "config.json").read_text())
    ours = "step_encoding" in config
    if not ours and arguments.kind in (None, "minos"):
        raise UserError(
            f"--verifier '{arguments.verifier}' was not trained by minos_ray; say with --kind what it reads: sequence, "
            "tokens, shepherd or qwen (docs/meta.md)"
        )
    kind = arguments.kind or "minos"
    separator = {"separator": arguments.separator} if arguments.separator else {}
    verifier = ForeignModel(model=arguments.verifier, kind=kind, **separator)
    if kind == "minos":
        # By the file alone: to import transformers takes longer than to find that the rows are not there.
        labels = len(config.get("id2label") or "..")
        kind_of(SimpleNamespace(**{"architectures": None, **config, "num_labels": labels}), arguments.verifier)
    else:
        from minos_ray.meta.foreign import refuse

        refuse(verifier, str(path))
    resolve(arguments.splitter or SPLITTER)
    resources = Scoring(actors=arguments.actors, gpus=arguments.gpus, max_model_len=arguments.max_length)
    return Task(
        absolute(verifier),
        arguments.question,
        arguments.text,
        arguments.style,
        arguments.splitter or SPLITTER,
        arguments.aggregation,
        resources,
    )


class SliceScorer:
    """Scores slices of a file, here or in an actor; the model is loaded with the first slice, so it can be sent."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.read = Reader([task.question, task.text])
        self.refused: dict[str, int] = {}
        self.scorer: Any = None

    def __call__(self, part: Slice) -> pa.Table:
        """A score in 0..1 for each row, null where the solution is refused, its step scores, and its answer."""
        self.scorer = self.scorer or load_scorer(self.task.verifier, self.task.resources)
        rows = self.read(part)
        questions, cells = cells_of(rows, self.task.question), cells_of(rows, self.task.text)
        solutions = [(as_text(question), self.steps(cell)) for question, cell in zip(questions, cells, strict=True)]
        step_scores, stats = self.scorer.score(solutions)
        for reason, count in stats.items():
            if reason.startswith("refused_"):
                self.refused[reason] = self.refused.get(reason, 0) + int(count)
        extract = STYLES[self.task.style].extract
        answers = [extract(own_solution(as_text(cell))) for cell in cells]
        return pa.table([[self.total(s) for s in step_scores], step_scores, answers], schema=RESULT)

    def steps(self, cell: Any) -> list[str]:
        """The steps of a solution: a list as it is, a text without what runs on behind the answer, split."""
        if isinstance(cell, list):
            return [as_text(step) for step in cell]
        return resolve(self.task.splitter)(own_solution(as_text(cell)))

    def total(self, scores: Sequence[float]) -> float | None:
        """The score of a solution from those of its steps, as in a run; an ORM's is its last one."""
        from minos_ray.scoring.scorer import AGGREGATIONS, LEAST

        if not scores:
            return None
        name = "last" if getattr(self.scorer, "kind", "") == "orm" else self.task.aggregation
        return max(AGGREGATIONS[name](scores), LEAST)


def load_scorer(verifier: ForeignModel, resources: Scoring) -> Any:
    """What scores (question, steps) with a verifier."""
    path = locate(verifier, Run("."))
    if verifier.kind == "minos":
        from minos_ray.scoring.scorer import load

        return load(path, verifier.trust_remote_code, resources)
    from minos_ray.meta.foreign import ForeignScorer

    return ForeignScorer(verifier, path, resources.max_model_len, resources.gpus)


def cells_of(rows: pa.Table, column: str) -> list[Any]:
    """The values of a column; a file of several that lacks it has none."""
    return rows[column].to_pylist() if column in rows.column_names else [None] * rows.num_rows


def as_text(cell: Any) -> str:
    """A cell as text, the lines of a list of steps; nothing is an empty text."""
    if isinstance(cell, list):
        return "\n".join(map(as_text, cell))
    return "" if is_nothing(cell) else written(cell)
