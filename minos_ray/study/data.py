"""The data of each seed, made once and given to every trial as far as its arm leaves it as it is."""

import functools

from minos_ray.config import Config
from minos_ray.pipeline import ORDER, open_run, run_all, state_of
from minos_ray.stages import Spec, fresh, inputs, is_fresh, specs
from minos_ray.store import Run
from minos_ray.study.arms import Trial, data_config, data_run, trial_config, trial_run

STAGES = ("pretrain", "problems", "sample", "label", "critique")


def make_data(config: Config, run: Run, seed: int) -> None:
    """Problems, candidates, labels and all critiques of a seed; what is complete and fresh is not made again."""
    own = data_config(config, run, seed)
    if any(state_of(own, data_run(run, seed), spec).state != "done" for spec in of_data(own)):
        say = functools.partial(print, f"study: seed {seed}:", flush=True)
        run_all(own, open_run(own), say, [stage for stage in ORDER if stage in STAGES])


def of_data(config: Config) -> list[Spec]:
    """The artefacts that hold the data of a run, each after what it needs."""
    return [spec for spec in specs(config) if spec.stage in STAGES]


def give(config: Config, run: Run, trial: Trial) -> None:
    """Copies to the trial what is fresh there with its own config; it makes the rest itself."""
    own, to, data = trial_config(config, run, trial), trial_run(run, trial), data_run(run, trial.seed)
    for spec in of_data(own):
        source, target = data.artefact(spec.artefact), to.artefact(spec.artefact)
        if fresh(own, to, spec.artefact) is None and fits(own, to, data, spec):
            target.take(source)


def fits(own: Config, to: Run, data: Run, spec: Spec) -> bool:
    """Whether the data's artefact is what the trial would make of its inputs."""
    manifest = data.artefact(spec.artefact).manifest()
    return manifest is not None and is_fresh(manifest, inputs(own, to, spec))
