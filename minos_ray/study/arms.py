"""The arms of a study, and its trials: every arm with every seed, each a run directory of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from minos_ray.config import Config, assign, build
from minos_ray.models import absolute
from minos_ray.store import Run

FOLDER = "study"


class Arm(NamedTuple):
    """So many critiques in stage 1 (none: no stage 1), and keys of the config that have another value."""

    name: str
    critiques: int
    changes: Mapping[str, Any]


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
    """All critiques, and something else than Minos has."""
    return [Arm(name, config.critique.count, changes) for name, changes in config.study.ablations.items()]


def arms(config: Config) -> list[Arm]:
    """Amounts, then ablations."""
    return amounts(config) + ablations(config)


def trials(config: Config) -> list[Trial]:
    """Every arm with every seed; the seeds one after the other, so that what is there can be looked at."""
    return [Trial(arm, seed) for seed in config.study.seeds for arm in reversed(arms(config))]


def verifiers(config: Config, arm: Arm) -> list[str]:
    """One verifier of each kind; without critiques they start from the base."""
    return [f"{kind}-{'minos' if arm.critiques else 'base'}" for kind in config.study.kinds]


def data_run(run: Run, seed: int) -> Run:
    """The run directory that holds the data of a seed."""
    return Run(run.at(f"{FOLDER}/data/seed-{seed}"))


def trial_run(run: Run, trial: Trial) -> Run:
    """The trial's own run directory."""
    return Run(run.at(f"{FOLDER}/trials/{trial.name}"))


def data_config(config: Config, run: Run, seed: int) -> Config:
    """The config of a seed's data: as the study's, with this seed."""
    return build(seeded(config, data_run(run, seed), seed))


def trial_config(config: Config, run: Run, trial: Trial) -> Config:
    """The config of a trial: with its seed, its verifiers, the changes of its arm, and no judge."""
    values = seeded(config, trial_run(run, trial), trial.seed)
    for key, value in trial.arm.changes.items():
        assign(values, key.split("."), value)
    values["reward"]["verifiers"] = verifiers(config, trial.arm)
    if 0 < trial.arm.critiques < config.critique.count:
        values["sft"]["rows"] = trial.arm.critiques
    return build(values)


def seeded(config: Config, run: Run, seed: int) -> dict[str, Any]:
    """The values of a config with its own run directory and seed, without what no trial makes."""
    values = config.model_dump(mode="json")
    values |= {"run": run.path, "seed": seed, "study": {}, "error_analysis": {}}
    values["base"] = absolute(config.base).model_dump(mode="json")
    for section in ("sft", "reward"):
        values[section]["seed"] = seed
    values["score"]["judge"] = None
    return values
