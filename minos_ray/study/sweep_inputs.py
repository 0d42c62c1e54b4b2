"""What a trial starts from: its own copy of the problems, labels and critiques that it needs, and of the run's base."""

import random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from minos_ray.config.load import Config
from minos_ray.critiques.select import select
from minos_ray.errors import UserError
from minos_ray.graph.specs import fingerprint_of
from minos_ray.store.run import Run
from minos_ray.study.space import Trial, trial_run

BASE = "models/base"


class Inputs:
    """The artefacts of the sweep's run, read once and handed to every trial."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        if config.reward.consensus:
            raise UserError(
                "sweep: reward.consensus must be false, for trials with fewer critiques would get other rows"
            )
        self.problems = chosen_problems(run.artefact("problems").read(), config.sweep.problems, config.seed)
        labels = run.artefact("labels").read()
        self.labels = labels.filter(is_in(labels["problem_id"], self.problems["problem_id"]))
        self.critiques = run.artefact("critiques").read()
        train = self.problems.filter(pc.not_equal(self.problems["split"], "test"))
        critiqued = self.labels.filter(is_in(self.labels["candidate_id"], self.critiques["candidate_id"]))
        critiqued = critiqued.filter(is_in(critiqued["problem_id"], train["problem_id"]))
        self.critiqued = critiqued.select(["candidate_id", "problem_id", "correct", "status", "steps"]).to_pylist()

    def give(self, trial: Trial) -> None:
        """Writes the trial's inputs, unless they are there already."""
        to = trial_run(self.run, trial)
        chosen: dict[str, Any] = {"problems": self.config.sweep.problems}
        if self.config.sweep.problems is not None:
            chosen["seed"] = self.config.seed
        self.put(to, "problems", self.problems, chosen)
        self.put(to, "labels", self.labels, chosen)
        if trial.critiques:
            order = {"wrong_share": self.config.critique.wrong_share, "seed": trial.seed, "count": trial.critiques}
            self.put(to, "critiques", self.chosen_critiques(trial), order)
        if self.config.base.model == f"run:{BASE}":
            self.put_base(to)

    def put(self, to: Run, name: str, rows: pa.Table, choice: dict[str, Any]) -> None:
        """One artefact of rows; its inputs are the artefact that it was taken from and what was chosen of it."""
        artefact = to.artefact(name)
        inputs = {"import": "sweep", "from": fingerprint_of(self.run, name), "choice": choice}
        manifest = artefact.manifest()
        if manifest is None or manifest.inputs != inputs:
            artefact.begin(inputs)
            artefact.write_part("0", rows)
            artefact.complete({"rows": rows.num_rows})

    def put_base(self, to: Run) -> None:
        """A copy of the base model that the run made."""
        artefact = to.artefact(BASE)
        inputs = {"import": "sweep", "from": fingerprint_of(self.run, BASE)}
        manifest = artefact.manifest()
        if manifest is None or manifest.inputs != inputs:
            artefact.begin(inputs)
            for name in self.run.files(BASE):
                if name not in ("manifest.json", "begun.json"):
                    pafs.copy_files(f"{self.run.root}/{BASE}/{name}", f"{to.root}/{BASE}/{name}", self.run.fs, to.fs)
            artefact.complete({})

    def chosen_critiques(self, trial: Trial) -> pa.Table:
        """So many critiques, in the order that `minos critique` would buy them: a larger amount holds a smaller one."""
        selection = select(self.critiqued, trial.critiques, self.config.critique.wrong_share, trial.seed)
        if len(selection.rows) < trial.critiques:
            raise UserError(
                f"sweep.critiques = {trial.critiques}, but the run has critiques of {len(selection.rows)} different "
                "candidates; raise critique.count or lower sweep.critiques"
            )
        ids = pa.array([row["candidate_id"] for row in selection.rows], pa.string())
        return self.critiques.filter(is_in(self.critiques["candidate_id"], ids))


def chosen_problems(problems: pa.Table, tests: int | None, seed: int) -> pa.Table:
    """All train problems, and `tests` test problems drawn by the seed (all when None), since files are often sorted."""
    is_test = pc.equal(problems["split"], "test")
    test = problems.filter(is_test).sort_by("problem_id")
    if tests is not None and tests < test.num_rows:
        test = test.take(sorted(random.Random(f"{seed}/sweep").sample(range(test.num_rows), tests)))
    return pa.concat_tables([problems.filter(pc.invert(is_test)), test])


def is_in(column: pa.ChunkedArray, values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """Which entries of a column are among the values."""
    return pc.is_in(column, value_set=values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
