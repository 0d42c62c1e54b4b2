"""The labelled sets of `minos meta`: run directories with problems and labels, as `minos import` makes them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Candidates, grouped, read_candidates
from minos_ray.stages import fingerprint_of
from minos_ray.store import Run, fingerprint


class LabelledSet(NamedTuple):
    """One run directory: its solutions in order of problems, and the data set of each."""

    run: Run
    candidates: Candidates
    datasets: np.ndarray

    @property
    def key(self) -> str:
        """A folder name that is the same for the same problems and labels."""
        return set_key(self.run)

    def parts(self) -> Iterator[tuple[str, Candidates]]:
        """The solutions of each data set."""
        for dataset in np.unique(self.datasets).tolist():
            yield dataset, grouped(self.candidates.rows.filter(pa.array(self.datasets == dataset)))

    def questions(self) -> set[str]:
        """The questions whose solutions are judged, without differences in space."""
        problems = self.run.artefact("problems").read(["problem_id", "question"])
        judged = pc.is_in(problems["problem_id"], value_set=self.candidates.rows["problem_id"].combine_chunks())
        return {" ".join(question.split()) for question in problems.filter(judged)["question"].to_pylist()}


def set_key(labelled: Run) -> str:
    """A folder name that is the same for the same problems and labels."""
    return fingerprint({name: fingerprint_of(labelled, name) for name in ("problems", "labels")})


def read_set(path: str, key: str) -> LabelledSet:
    """The set at `path`, named by the config key `key`; UserError when there is none."""
    run = Run(path)
    missing = [name for name in ("problems", "labels") if run.artefact(name).manifest() is None]
    if missing:
        raise UserError(f"{key}: '{path}' has no complete {missing[0]}; make one with `minos import`")
    candidates = read_candidates(run)
    if not candidates.problems:
        raise UserError(f"{key}: '{path}' has no labelled solution in split test; import it with split=test")
    problems = run.artefact("problems").read(["problem_id", "dataset"]).to_pylist()
    datasets = {row["problem_id"]: row["dataset"] for row in problems}
    of_row = np.array([datasets[name] for name in candidates.rows["problem_id"].to_pylist()])
    return LabelledSet(run, candidates, of_row)


def refuse_overlap(other: LabelledSet, judged: Sequence[LabelledSet]) -> None:
    """UserError when the set that thresholds come from shares a question with one that is judged."""
    questions = other.questions()
    for one in judged:
        shared = sorted(questions & one.questions())
        if shared:
            raise UserError(
                f"meta.threshold_from: '{other.run.path}' shares {len(shared)} questions with the judged set "
                f"'{one.run.path}', such as {shared[0][:60]!r}; choose the threshold on other problems"
            )
