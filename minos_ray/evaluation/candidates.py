"""The candidates that are evaluated: rows sorted by problem, with answers as clusters and scores joined by id."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.errors import UserError
from minos_ray.evaluation.answers import Keys, clusters
from minos_ray.problems.split import read_problems
from minos_ray.store.run import Run

COLUMNS = ["candidate_id", "problem_id", "answer", "correct", "status", "step_labels", "error_types"]


@dataclass(frozen=True)
class Candidates:
    """Labelled candidates; those of problem p are rows `starts[p]` to `starts[p + 1]`."""

    rows: pa.Table
    starts: np.ndarray
    clusters: np.ndarray
    correct: np.ndarray

    @property
    def problems(self) -> int:
        """How many problems have a candidate."""
        return len(self.starts) - 1

    @property
    def names(self) -> list[str]:
        """The id of each problem."""
        return self.rows["problem_id"].take(self.starts[:-1]).to_pylist()

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Problems with equally many candidates: their numbers, and their rows as [problems, candidates]."""
        sizes = np.diff(self.starts)
        for size in np.unique(sizes):
            chosen = np.flatnonzero(sizes == size)
            yield chosen, self.starts[chosen][:, None] + np.arange(size)


def read_candidates(run: Run, split: str | None = "test") -> Candidates:
    """Labelled candidates of a split (of every problem when it is None)."""
    problems = read_problems(run, split, ["problem_id"])
    labels = run.artefact("labels").read(COLUMNS)
    return grouped(labels.filter(pc.is_in(labels["problem_id"], value_set=problems["problem_id"].combine_chunks())))


def grouped(labels: pa.Table, keys: Keys | None = None) -> Candidates:
    """Rows of `labels` sorted by problem; `keys` finds which wrong answers are equal, else their text does."""
    rows = labels.sort_by([("problem_id", "ascending"), ("candidate_id", "ascending")]).combine_chunks()
    runs = pc.run_end_encode(rows["problem_id"].combine_chunks()) if rows.num_rows else None
    starts = np.array([0, *(runs.run_ends.to_pylist() if runs is not None else [])], dtype=np.int64)
    answers, correct = rows["answer"].to_pylist(), rows["correct"].to_pylist()
    wrong = (answer for answer, right in zip(answers, correct, strict=True) if answer is not None and not right)
    key_of = keys(wrong) if keys else None
    found = []
    for first, end in pairwise(starts):
        found += clusters(answers[first:end], correct[first:end], key_of)
    return Candidates(rows, starts, np.array(found, dtype=np.int64), np.array(correct, dtype=bool))


@dataclass(frozen=True)
class Scores:
    """A verifier's scores in the order of the candidates: NaN, and no step scores, where there is none.

    A candidate has no score when no scorer has seen it, and when it was refused or none of its critiques could be read:
    then its row has score 0 and no step scores.
    """

    score: np.ndarray
    step_scores: pa.ChunkedArray

    @property
    def unscored(self) -> int:
        """How many candidates have no score."""
        return int(np.isnan(self.score).sum())


def read_scores(run: Run, artefact: str, candidates: Candidates) -> Scores | None:
    """The scores of a complete artefact, None when it is not there."""
    if run.artefact(artefact).manifest() is None:
        return None
    table = run.artefact(artefact).read(["candidate_id", "score", "step_scores"])
    return joined(artefact, table, candidates)


def joined(artefact: str, table: pa.Table, candidates: Candidates) -> Scores:
    """Scores put in the order of the candidates; UserError when one, or one of a step, is not in 0..1."""
    at = pc.index_in(candidates.rows["candidate_id"], value_set=table["candidate_id"].combine_chunks())
    found = table.take(at.combine_chunks())
    score = found["score"].to_numpy().astype(np.float64)
    missing = at.is_null().to_numpy()
    there = np.flatnonzero(~missing)
    refuse_outside(f"{artefact}: the score", score[there], there, candidates)
    steps = found["step_scores"].combine_chunks()
    owners = pc.list_parent_indices(steps).to_numpy()
    refuse_outside(f"{artefact}: a step score", pc.list_flatten(found["step_scores"]).to_numpy(), owners, candidates)
    refused = (score == 0) & (pc.list_value_length(steps).fill_null(0).to_numpy() == 0)
    return Scores(np.where(missing | refused, np.nan, score), found["step_scores"])


def refuse_outside(what: str, values: np.ndarray, owners: np.ndarray, candidates: Candidates) -> None:
    """UserError when a value is not in 0..1; `owners` are the rows of the candidates that the values are of."""
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(bad):
        name = candidates.rows["candidate_id"][int(owners[bad[0]])].as_py()
        raise UserError(f"{what} of '{name}' is {values[bad[0]]}; scores lie in 0..1")
