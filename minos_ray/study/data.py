"""What trials start from: copies of problems, candidates, labels and critiques, written by the driver alone.

A study makes the data of every seed once, and each trial gets a copy of those it reads. The trials of a sweep get parts
of the data of its run: some test problems, and as many critiques as their amount says.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from minos_ray.config.load import Config
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.limits import StopAtBudget
from minos_ray.critiques.select import select
from minos_ray.errors import UserError
from minos_ray.graph.specs import Spec, fingerprint_of, inputs, is_fresh, specs
from minos_ray.graph.state import state_of
from minos_ray.pipeline.run import ORDER, open_run, run_all
from minos_ray.problems.split import NOT_DRAWN, count_rows, drawn, rows_of_problems
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Artefact, Run
from minos_ray.study.grid import Grid, Trial

MOST = 1 << 24  # labels that trials share, 400 bytes each
IDS = ["candidate_id", "problem_id"]
DATA_STAGES = ("pretrain", "problems", "sample", "label", "critique")
TRIAL_STAGES = ("sft", "refine", "reward", "score", "evaluate")
BASE = "models/base"


def artefacts_of(config: Config, stages: Sequence[str]) -> list[Spec]:
    """The artefacts that these stages make, each after what it needs."""
    return [spec for spec in specs(config) if spec.stage in stages]


def make_data(grid: Grid) -> None:
    """The data of every seed of a study, and others where ablations need them; what is fresh is not made again.

    What an ablation leaves as it is comes from the data of its seed.
    """
    for seed in grid.seeds:
        plain = grid.data_run(Trial(grid.amounts[-1], seed))
        for arm in (grid.amounts[-1], *grid.ablations):
            config, target = grid.data_config(Trial(arm, seed)), grid.data_run(Trial(arm, seed))
            copy_fitting(config, plain, target)
            if any(state_of(config, target, spec).state != "done" for spec in artefacts_of(config, DATA_STAGES)):
                say = functools.partial(print, f"study: {target.root.rpartition('/')[2]}:", flush=True)
                config = with_remaining_budget(config, grid.run, target)
                run_all(config, open_run(config), say, [stage for stage in ORDER if stage in DATA_STAGES])


def with_remaining_budget(config: Config, run: Run, target: Run) -> Config:
    """The config of these data with what all other data of the study have left of `critique.max_usd`.

    StopAtBudget when nothing is left.
    """
    limit = config.critique.max_usd
    if limit is None:
        return config
    others = [Run(run.at(f"study/data/{name}")) for name in run.folders("study/data")]
    remaining = limit - sum(Cache(other).spent_usd for other in others if other.root != target.root)
    if remaining <= 0:
        raise StopAtBudget(f"critique.max_usd = {limit}: the data of other seeds and arms have cost as much; raise it")
    return config.model_copy(update={"critique": config.critique.model_copy(update={"max_usd": remaining})})


def copy_fitting(config: Config, source: Run, target: Run, stages: Sequence[str] = DATA_STAGES) -> None:
    """Copies what is what the target would make of its own inputs, unless it has this very artefact."""
    for spec in artefacts_of(config, stages):
        manifest = source.artefact(spec.artefact).manifest()
        fits = manifest is not None and is_fresh(manifest, inputs(config, target, spec))
        if fits and target.artefact(spec.artefact).manifest() != manifest:
            copy(source.artefact(spec.artefact), target.artefact(spec.artefact))


def has_data(grid: Grid, trial: Trial) -> bool:
    """Whether a trial of a study has the data that it needs as they are now.

    Manifests are compared, not fingerprints: data made again, as by a critic that samples, differ with the same inputs.
    """
    source, target, config = grid.data_run(trial), grid.trial_run(trial), grid.trial_config(trial)
    needed = {name for spec in artefacts_of(config, TRIAL_STAGES) for name in spec.needs}
    needed &= {spec.artefact for spec in artefacts_of(config, DATA_STAGES)}
    return all(target.artefact(name).manifest() == source.artefact(name).manifest() for name in needed)


def give_data(grid: Grid, trial: Trial) -> None:
    """Copies its data to a trial of a study; one that has other data is emptied first."""
    if not has_data(grid, trial):
        target = grid.trial_run(trial)
        for name in (*target.folders(""), *target.files("")):
            target.delete(name)
        copy_fitting(grid.trial_config(trial), grid.data_run(trial), target)


def copy(source: Artefact, target: Artefact) -> None:
    """Makes the target a copy of a complete artefact; its manifest comes last."""
    manifest = source.manifest()
    assert manifest is not None
    # Parts of an artefact made from the same inputs may lie there, which `begin` would go on with.
    for name in (target.manifest_name, target.begun_name, target.name):
        target.run.delete(name)
    target.begin(manifest.inputs)
    copy_files(source, target)
    target.run.write_bytes(target.manifest_name, source.run.read_bytes(source.manifest_name))


def copy_files(source: Artefact, target: Artefact) -> None:
    """The files of an artefact but its manifest."""
    for name in source.run.files(source.name):
        if name not in ("manifest.json", "begun.json"):
            ends = (f"{artefact.run.root}/{artefact.name}/{name}" for artefact in (source, target))
            with target.run.storage_errors("written", f"{target.name}/{name}"):
                pafs.copy_files(*ends, source.run.fs, target.run.fs)


class SharedData:
    """The artefacts of a sweep's run, read once, of which every trial gets its part.

    UserError where trials with fewer critiques would train stage 2 on other rows.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid, self.config, self.run = grid, grid.config, grid.run
        if self.config.reward.consensus:
            raise UserError(
                "sweep: reward.consensus must be false, for trials with fewer critiques would get other rows"
            )
        problems, labels = self.run.artefact("problems").read(), self.run.artefact("labels")
        self.problems = chosen_problems(problems, self.config.sweep.problems, self.config.seed)
        rows = count_rows(labels, set(self.problems["problem_id"].to_pylist()))
        self.critiques = self.run.artefact("critiques").read()
        paid = [part.filter(is_in(part["candidate_id"], self.critiques["candidate_id"])) for part in labels.parts(IDS)]
        of_candidate = {row["candidate_id"]: row["problem_id"] for part in paid for row in part.to_pylist()}
        problem_ids, not_drawn = drawn(rows, MOST, paid=set(of_candidate.values()))
        lost = sum(name in rows and name not in problem_ids for name in of_candidate.values())
        self.not_drawn = {"labels": not_drawn, "critiques": lost}
        self.labels = rows_of_problems(labels, SCHEMAS["labels"].names, problem_ids)
        train = self.problems.filter(pc.not_equal(self.problems["split"], "test"))
        critiqued = self.labels.filter(is_in(self.labels["candidate_id"], self.critiques["candidate_id"]))
        critiqued = critiqued.filter(is_in(critiqued["problem_id"], train["problem_id"]))
        self.critiqued = critiqued.select(["candidate_id", "problem_id", "correct", "status", "steps"]).to_pylist()

    def give(self, trial: Trial) -> None:
        """Writes the trial's part, unless it is there; UserError when critiques are too few."""
        target, amount = self.grid.trial_run(trial), trial.arm.critiques
        choice: dict[str, Any] = {"problems": self.config.sweep.problems}
        if self.config.sweep.problems is not None:
            choice["seed"] = self.config.seed
        self.put(target, "problems", self.problems, choice)
        self.put(target, "labels", self.labels, choice)
        if amount:
            order = {"wrong_share": self.config.critique.wrong_share, "seed": trial.seed, "count": amount}
            self.put(target, "critiques", self.chosen_critiques(amount, trial.seed), order)
        if self.config.base.model == f"run:{BASE}":
            self.put_base(target)

    def put(self, target: Run, name: str, rows: pa.Table, choice: dict[str, Any]) -> None:
        """One artefact of rows; its inputs are the artefact that they come from and what was chosen of it."""
        artefact = target.artefact(name)
        if self.begin(artefact, {"choice": choice}):
            artefact.write_part("0", rows)
            artefact.complete({"rows": rows.num_rows}, {NOT_DRAWN: self.not_drawn.get(name, 0)})

    def put_base(self, target: Run) -> None:
        """A copy of the base model that the run made."""
        artefact = target.artefact(BASE)
        if self.begin(artefact, {}):
            copy_files(self.run.artefact(BASE), artefact)
            artefact.complete({})

    def begin(self, artefact: Artefact, details: dict[str, Any]) -> bool:
        """Whether the artefact is to be written; it is begun then."""
        sources = {"import": "sweep", "from": fingerprint_of(self.run, artefact.name), **details}
        manifest = artefact.manifest()
        if manifest is not None and manifest.inputs == sources:
            return False
        artefact.begin(sources)
        return True

    def chosen_critiques(self, amount: int, seed: int) -> pa.Table:
        """The first critiques that `minos critique` would buy, so that a larger amount holds every smaller one."""
        selection = select(self.critiqued, amount, self.config.critique.wrong_share, seed)
        if len(selection.rows) < amount:
            raise UserError(
                f"sweep.critiques = {amount}, but the run has critiques of {len(selection.rows)} different "
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
