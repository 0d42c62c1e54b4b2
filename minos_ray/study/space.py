"""The search space: every amount of critiques with every seed is one trial, which makes a verifier of each kind."""

from typing import NamedTuple

from minos_ray.config.load import Config
from minos_ray.config.schema import ErrorAnalysis, Inserted
from minos_ray.config.training import Verifier
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run

FOLDER = "sweep/trials"


class Trial(NamedTuple):
    """Stage 1 on so many critiques (none: no stage 1), then stage 2, scores and evaluation, all with one seed."""

    critiques: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the trial's own run directory."""
        return f"critiques-{self.critiques:06d}-seed-{self.seed}"


def trials(config: Config) -> list[Trial]:
    """All trials, each once; the largest amounts first, so that the longest trial does not come last."""
    return sorted({Trial(count, seed) for count in config.sweep.critiques for seed in config.sweep.seeds}, reverse=True)


def verifiers(config: Config, trial: Trial) -> tuple[Verifier, ...]:
    """One verifier of each kind; without critiques they start from the base."""
    start = "minos" if trial.critiques else "base"
    return tuple(f"{kind}-{start}" for kind in dict.fromkeys(config.sweep.kinds))


def trial_run(run: Run, trial: Trial) -> Run:
    """The trial's own run directory, inside that of the sweep."""
    return Run(run.at(f"{FOLDER}/{trial.name}"))


def trial_config(config: Config, run: Run, trial: Trial) -> Config:
    """The config of a trial: as the sweep's, with its seed, its verifiers, no judge, and bought critiques alone."""
    update = {
        "run": trial_run(run, trial).path,
        "base": absolute(config.base),
        "inserted": Inserted(),
        "error_analysis": ErrorAnalysis(),
        "sft": config.sft.model_copy(update={"seed": trial.seed, "source": "critiques"}),
        "reward": config.reward.model_copy(update={"seed": trial.seed, "verifiers": verifiers(config, trial)}),
        "score": config.score.model_copy(update={"judge": None}),
    }
    return config.model_copy(update=update)
