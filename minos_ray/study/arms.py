"""The arms of a study, and its trials: every arm with every seed, each a run directory of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from minos_ray.config.load import Config, assign, build
from minos_ray.errors import UserError
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run, fingerprint

FOLDER = "study"
# Sections that say what the data of a seed is; arms that change the same keys of them share it.
DATA_SECTIONS = ("pretrain", "generator", "sample", "label", "inserted", "critique")


class Arm(NamedTuple):
    """So many critiques in stage 1 (none: no stage 1), and keys of the config that have another value."""

    name: str
    critiques: int
    changes: Mapping[str, Any]

    @property
    def of_data(self) -> dict[str, Any]:
        """The changes that make other data."""
        return {key: value for key, value in self.changes.items() if key.partition(".")[0] in DATA_SECTIONS}


class Trial(NamedTuple):
    """One arm with one seed of data and training."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name of the trial's own run directory."""
        return f"seed-{self.seed}-{self.arm.name}"


def amounts(config: Config) -> list[Arm]:
    """The arms that differ in the number of critiques alone, ascending: the first is the base, the last is Minos."""
    counts = sorted({round(share * config.critique.count) for share in config.study.shares})
    return [Arm(f"critiques-{count:06d}", count, {}) for count in counts]


def ablations(config: Config) -> list[Arm]:
    """Something else than Minos has, or than base has where `from_base` names the arm."""
    none = set(config.study.from_base)
    return [
        Arm(name, 0 if name in none else config.critique.count, changes)
        for name, changes in config.study.ablations.items()
    ]


def arms(config: Config) -> list[Arm]:
    """Amounts, then ablations."""
    return amounts(config) + ablations(config)


def trials(config: Config) -> list[Trial]:
    """Every arm with every seed: amounts first, so that what counts is known first, seed by seed."""
    groups = (reversed(amounts(config)), ablations(config))
    return [Trial(arm, seed) for group in map(list, groups) for seed in config.study.seeds for arm in group]


def verifiers(config: Config, arm: Arm) -> list[str]:
    """One verifier of each kind; without critiques they start from the base."""
    return [f"{kind}-{'minos' if arm.critiques else 'base'}" for kind in config.study.kinds]


def data_run(run: Run, trial: Trial) -> Run:
    """The run directory that holds the data of a trial: the seed's, or that of all arms with the same changes of it."""
    others = f"-{fingerprint(trial.arm.of_data)}" if trial.arm.of_data else ""
    return Run(run.at(f"{FOLDER}/data/seed-{trial.seed}{others}"))


def trial_run(run: Run, trial: Trial) -> Run:
    """The trial's own run directory."""
    return Run(run.at(f"{FOLDER}/trials/{trial.name}"))


def data_config(config: Config, run: Run, trial: Trial) -> Config:
    """The config of a trial's data: as the study's, with its seed and the changes of its arm."""
    return changed(seeded(config, data_run(run, trial), trial.seed), trial.arm.name, trial.arm.of_data)


def trial_config(config: Config, run: Run, trial: Trial) -> Config:
    """The config of a trial: with its seed, its verifiers, the changes of its arm, and no judge."""
    values = seeded(config, trial_run(run, trial), trial.seed)
    values["reward"]["verifiers"] = verifiers(config, trial.arm)
    if 0 < trial.arm.critiques < config.critique.count:
        values["sft"]["rows"] = trial.arm.critiques
    return changed(values, trial.arm.name, trial.arm.changes)


def changed(values: dict[str, Any], name: str, changes: Mapping[str, Any]) -> Config:
    """The config of these values with some keys changed; UserError that names the arm."""
    try:
        for key, value in changes.items():
            assign(values, key.split("."), value)
        return build(values)
    except UserError as error:
        raise UserError(f"study.ablations.{name}: {error}") from error


def seeded(config: Config, run: Run, seed: int) -> dict[str, Any]:
    """The values of a config with its own run directory and seed, without what no trial makes."""
    values = config.model_dump(mode="json")
    values |= {"run": run.path, "seed": seed, "study": {}, "error_analysis": {}}
    values["base"] = absolute(config.base).model_dump(mode="json")
    for section in ("sft", "reward"):
        values[section]["seed"] = seed
    values["score"]["judge"] = None
    return values
