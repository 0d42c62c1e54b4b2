"""The grid of a sweep or a study: every arm with every seed is a trial, each in a run directory of its own, and what
trials start from.

Both commands train the same things; they differ in where the data come from. The trials of a sweep share the data of
one run, and its arms differ in the number of critiques alone. A study draws the data of every seed anew, and has
ablations besides: arms in which other keys of the config have another value.

A study makes the data of every seed once, and each trial gets a copy of those it reads. The trials of a sweep get parts
of the data of its run: some test problems, and as many critiques as their amount says.
"""

import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from minos_ray.config.load import Config, assign, build
from minos_ray.config.training import VerifierKind
from minos_ray.critiques.limits import StopAtBudget
from minos_ray.critiques.reply import Cache
from minos_ray.errors import UserError
from minos_ray.graph.specs import Spec, fingerprint_of, inputs, is_fresh, specs
from minos_ray.graph.state import state_of
from minos_ray.pipeline import ORDER, open_run, run_all
from minos_ray.problems.split import NOT_DRAWN, count_rows, drawn, rows_of_problems, select
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Artefact, Run, fingerprint

# Sections that decide what the data of a seed are; arms with the same changes in them share data.
DATA_SECTIONS = ("pretrain", "generator", "sample", "label", "inserted", "critique")
MOST = 1 << 24  # labels that trials share, 400 bytes each
IDS = ["candidate_id", "problem_id"]
DATA_STAGES = ("pretrain", "problems", "sample", "label", "critique")
TRIAL_STAGES = ("sft", "refine", "reward", "score", "evaluate")
BASE = "models/base"


class Arm(NamedTuple):
    """The number of critiques in stage 1 (0: no stage 1), and dotted keys of the config with the arm's own values."""

    name: str
    critiques: int
    changes: Mapping[str, Any]

    @property
    def data_changes(self) -> dict[str, Any]:
        """The changes that need other data."""
        return {key: value for key, value in self.changes.items() if key.partition(".")[0] in DATA_SECTIONS}


class Trial(NamedTuple):
    """One arm with one seed: stage 1, stage 2 of every kind, scores, evaluation."""

    arm: Arm
    seed: int


@dataclass(frozen=True)
class Grid:
    """All trials of one command. `amounts` ascend: the first is the baseline, the last has the most critiques."""

    command: Literal["sweep", "study"]
    config: Config
    run: Run
    kinds: Sequence[VerifierKind]
    seeds: Sequence[int]
    amounts: Sequence[Arm]
    ablations: Sequence[Arm] = field(default=())
    labels: Sequence[tuple[int, Arm, Arm]] = field(default=())  # amounts, ascending, of base and of Minos

    @property
    def arms(self) -> list[Arm]:
        """Amounts of critiques, ablations, other amounts of labels; each once."""
        arms = (*self.amounts, *self.ablations, *(arm for _, *pair in self.labels for arm in pair))
        return list({arm.name: arm for arm in arms}.values())

    @property
    def trials(self) -> list[Trial]:
        """Every arm with every seed, in the order of their start: the longest first, so that none comes late."""
        ablations = self.arms[len(self.amounts) :]
        return [Trial(arm, seed) for arm in (*reversed(self.amounts), *ablations) for seed in self.seeds]

    def name(self, trial: Trial) -> str:
        """What the trial is called in messages, and its directory."""
        if self.command == "sweep":
            return f"{trial.arm.name}-seed-{trial.seed}"
        return f"seed-{trial.seed}-{trial.arm.name}"

    def trial_run(self, trial: Trial) -> Run:
        """The trial's run directory, inside that of the command."""
        return Run(self.run.at(f"{self.command}/trials/{self.name(trial)}"))

    def data_run(self, trial: Trial) -> Run:
        """The run directory with the data of a study's trial: of its seed, or of all arms with the same changes."""
        suffix = f"-{fingerprint(trial.arm.data_changes)}" if trial.arm.data_changes else ""
        return Run(self.run.at(f"study/data/seed-{trial.seed}{suffix}"))

    def verifiers(self, arm: Arm) -> list[str]:
        """One verifier of each kind; without critiques they start from the base."""
        return [f"{kind}-{'minos' if arm.critiques else 'base'}" for kind in self.kinds]

    def trial_config(self, trial: Trial) -> Config:
        """The config of a trial: its seed, its verifiers, the changes of its arm, no generative judge."""
        values = self._values(self.trial_run(trial), trial.seed)
        values["reward"]["verifiers"] = self.verifiers(trial.arm)
        if self.command == "sweep":  # of bought critiques alone; how many is decided by what the trial is given
            values |= {"inserted": {}}
            values["sft"]["source"] = "critiques"
        elif 0 < trial.arm.critiques < self.config.critique.count:
            values["sft"]["rows"] = trial.arm.critiques
        return with_changes(values, trial.arm.name, trial.arm.changes)

    def data_config(self, trial: Trial) -> Config:
        """The config of a study's data: the seed, and the arm's changes of data."""
        values = self._values(self.data_run(trial), trial.seed)
        return with_changes(values, trial.arm.name, trial.arm.data_changes)

    def _values(self, run: Run, seed: int) -> dict[str, Any]:
        values = self.config.model_dump(mode="json")
        values |= {"run": run.path, "base": absolute(self.config.base).model_dump(mode="json"), "error_analysis": {}}
        if self.command == "study":  # the seed of a sweep's data is the run's
            values |= {"seed": seed, "study": {}}
        values["sft"]["seed"] = values["reward"]["seed"] = seed
        values["score"]["judge"] = None
        return values


def sweep_grid(config: Config, run: Run) -> Grid:
    """Every amount of critiques with every seed, each once."""
    section = config.sweep
    kinds, seeds = list(dict.fromkeys(section.kinds)), sorted(set(section.seeds))
    return Grid("sweep", config, run, kinds, seeds, amount_arms(section.critiques))


def study_grid(config: Config, run: Run) -> Grid:
    """Fractions of the critiques; ablations of Minos, or of base where `from_base` names them; amounts of labels."""
    section = config.study
    amounts = amount_arms(round(fraction * config.critique.count) for fraction in section.shares)
    ablations = [
        Arm(name, 0 if name in section.from_base else config.critique.count, changes)
        for name, changes in section.ablations.items()
    ]
    pairs: list[tuple[int, Arm, Arm]] = []
    if section.labels and (rows := config.reward.rows):
        for count in sorted({rows, *(round(times * rows) for times in section.labels)}):
            ends = ((side, end.critiques) for side, end in (("base", amounts[0]), ("minos", amounts[-1])))
            base, minos = (Arm(f"labels-{count:06d}-{side}", n, {"reward.rows": count}) for side, n in ends)
            pairs.append((count, base, minos) if count != rows else (count, amounts[0], amounts[-1]))
    return Grid("study", config, run, section.kinds, section.seeds, amounts, ablations, pairs)


def amount_arms(counts: Iterable[int]) -> list[Arm]:
    """Arms that differ in the number of critiques alone, ascending, each number once."""
    return [Arm(f"critiques-{count:06d}", count, {}) for count in sorted(set(counts))]


def with_changes(values: dict[str, Any], arm: str, changes: Mapping[str, Any]) -> Config:
    """The config of these values with some keys changed; UserError that names the arm."""
    if not changes:
        return build(values)
    try:
        for key, value in changes.items():
            assign(values, key.split("."), value)
        return build(values)
    except UserError as error:
        raise UserError(f"study.ablations.{arm}: {error}") from error


def artefacts_of(config: Config, stages: Sequence[str]) -> list[Spec]:
    """The artefacts that these stages make, each after what it needs."""
    return [spec for spec in specs(config) if spec.stage in stages]


def are_done(config: Config, run: Run, stages: Sequence[str]) -> bool:
    """Whether the artefacts of these stages are complete and fresh."""
    return all(state_of(config, run, spec).state == "done" for spec in artefacts_of(config, stages))


def make_data(grid: Grid) -> None:
    """The data of every seed of a study, and others where ablations need them; what is fresh is not made again.

    What an ablation leaves as it is comes from the data of its seed.
    """
    for seed in grid.seeds:
        plain = grid.data_run(Trial(grid.amounts[-1], seed))
        for arm in (grid.amounts[-1], *grid.ablations):
            config, target = grid.data_config(Trial(arm, seed)), grid.data_run(Trial(arm, seed))
            copy_fitting(config, plain, target)
            if not are_done(config, target, DATA_STAGES):
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
            # The first critiques that `minos critique` would buy, so that a larger amount holds every smaller one.
            order = {"wrong_share": self.config.critique.wrong_share, "seed": trial.seed, "count": amount}
            selection = select(self.critiqued, amount, self.config.critique.wrong_share, trial.seed)
            if len(selection.rows) < amount:
                raise UserError(
                    f"sweep.critiques = {amount}, but the run has critiques of {len(selection.rows)} different "
                    "candidates; raise critique.count or lower sweep.critiques"
                )
            ids = pa.array([row["candidate_id"] for row in selection.rows], pa.string())
            self.put(target, "critiques", self.critiques.filter(is_in(self.critiques["candidate_id"], ids)), order)
        base = target.artefact(BASE)
        if self.config.base.model == f"run:{BASE}" and self.begin(base, {}):
            copy_files(self.run.artefact(BASE), base)
            base.complete({})

    def put(self, target: Run, name: str, rows: pa.Table, choice: dict[str, Any]) -> None:
        """One artefact of rows; its inputs are the artefact that they come from and what was chosen of it."""
        artefact = target.artefact(name)
        if self.begin(artefact, {"choice": choice}):
            artefact.write_part("0", rows)
            artefact.complete({"rows": rows.num_rows}, {NOT_DRAWN: self.not_drawn.get(name, 0)})

    def begin(self, artefact: Artefact, details: dict[str, Any]) -> bool:
        """Whether the artefact is to be written; it is begun then."""
        sources = {"import": "sweep", "from": fingerprint_of(self.run, artefact.name), **details}
        manifest = artefact.manifest()
        if manifest is not None and manifest.inputs == sources:
            return False
        artefact.begin(sources)
        return True


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
