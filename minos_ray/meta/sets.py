"""The labelled sets of `minos meta`: run directories with problems and labels, as `minos import` makes them."""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Candidates, group_candidates, read_candidates
from minos_ray.evaluation.verdicts import any_label
from minos_ray.problems.split import problems_by_id, read_problems
from minos_ray.store.run import Run

# The columns that scores of a set depend on: what a verifier or a critic is shown, and which solutions are scored.
SCORED = {
    "problems": ["problem_id", "split", "question", "answer", "solution"],
    "labels": ["candidate_id", "answer", "steps"],
}


class LabelledSet(NamedTuple):
    """One run directory: its solutions in order of problems, and the data set of each, [solutions] of str."""

    run: Run
    candidates: Candidates
    datasets: np.ndarray

    @property
    def key(self) -> str:
        """The name of the folder with the set's scores."""
        return set_key(self.run)

    @property
    def by_step(self) -> bool:
        """Whether any step is labelled."""
        return bool(pc.any(any_label(self.candidates.rows["step_labels"])).as_py())

    def parts(self) -> Iterator[tuple[str, Candidates]]:
        """The solutions of each data set."""
        for dataset in np.unique(self.datasets).tolist():
            yield dataset, group_candidates(self.candidates.rows.filter(pa.array(self.datasets == dataset)))

    def questions(self) -> set[str]:
        """The questions whose solutions are judged, with white space normalised."""
        problems = read_problems(self.run, None, ["problem_id", "question"])
        judged = pc.is_in(problems["problem_id"], value_set=self.candidates.rows["problem_id"].combine_chunks())
        return {" ".join(question.split()) for question in problems.filter(judged)["question"].to_pylist()}


def set_key(labelled: Run) -> str:
    """A digest of all that scores of the set depend on: the same for the same data in another place."""
    digest = blake2b(digest_size=8)
    for name, columns in SCORED.items():
        rows = labelled.artefact(name).read(columns).sort_by(columns[0])
        digest.update(json.dumps(rows.to_pylist()).encode())
    return digest.hexdigest()


def read_set(path: str, key: str) -> LabelledSet:
    """The set at `path`, named by the config key `key`; UserError when there is none."""
    run = Run(path)
    missing = [name for name in ("problems", "labels") if run.artefact(name).manifest() is None]
    if missing:
        raise UserError(f"{key}: '{path}' has no complete {missing[0]}; make one with `minos import`")
    candidates = read_candidates(run)
    if not candidates.problems:
        raise UserError(f"{key}: '{path}' has no labelled solution in split test; import it with split=test")
    problems = problems_by_id(run, None, ["problem_id", "dataset"])
    datasets = [problems[name]["dataset"] for name in candidates.rows["problem_id"].to_pylist()]
    return LabelledSet(run, candidates, np.array(datasets))


def check_overlap(other: LabelledSet, judged: Sequence[LabelledSet]) -> None:
    """UserError when the set that thresholds come from shares a question with one that is judged."""
    questions = other.questions()
    for labelled in judged:
        shared = sorted(questions & labelled.questions())
        if shared:
            raise UserError(
                f"meta.threshold_from: '{other.run.path}' shares {len(shared)} questions with the judged set "
                f"'{labelled.run.path}', such as {shared[0][:60]!r}; choose the threshold on other problems"
            )
