"""The grid of a sweep or a study: every arm with every seed is a trial, each in a run directory of its own.

Both commands train the same things; they differ in where the data come from. The trials of a sweep share the data of
one run, and its arms differ in the number of critiques alone. A study draws the data of every seed anew, and has
ablations besides: arms in which other keys of the config have another value.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from minos_ray.config.load import Config, assign, build
from minos_ray.config.study import Kind
from minos_ray.errors import UserError
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run, fingerprint

# Sections that decide what the data of a seed are; arms with the same changes in them share data.
DATA_SECTIONS = ("pretrain", "generator", "sample", "label", "inserted", "critique")


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
    kinds: Sequence[Kind]
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
