"""The data of each seed, made once, and the copies that trials have of it."""

import functools

import pyarrow.fs as pafs

from minos_ray.config import Config
from minos_ray.pipeline import ORDER, open_run, run_all, state_of
from minos_ray.stages import Spec, fresh, inputs, is_fresh, specs
from minos_ray.store import Artefact, Run
from minos_ray.study.arms import Trial, data_config, data_run, trial_config, trial_run

STAGES = ("pretrain", "problems", "sample", "label", "critique")


def make_data(config: Config, run: Run, trial: Trial, plain: Trial) -> None:
    """Problems, candidates, labels and critiques of a trial; what is complete and fresh is not made again.

    What its arm leaves as it is comes from the data of the trial `plain`, whose arm changes nothing.
    """
    own, target = data_config(config, run, trial), data_run(run, trial)
    take_fitting(own, data_run(run, plain), target)
    if any(state_of(own, target, spec).state != "done" for spec in of_data(own)):
        say = functools.partial(print, f"study: {target.root.rpartition('/')[2]}:", flush=True)
        run_all(own, open_run(own), say, [stage for stage in ORDER if stage in STAGES])


def of_data(config: Config) -> list[Spec]:
    """The artefacts that hold the data of a run, each after what it needs."""
    return [spec for spec in specs(config) if spec.stage in STAGES]


def take_fitting(own: Config, source: Run, target: Run) -> None:
    """Copies what is what the target would make of its own inputs, and is not there yet."""
    for spec in of_data(own):
        manifest = source.artefact(spec.artefact).manifest()
        fits = manifest is not None and is_fresh(manifest, inputs(own, target, spec))
        if fits and fresh(own, target, spec.artefact) is None:
            copy(source.artefact(spec.artefact), target.artefact(spec.artefact))


def is_given(config: Config, run: Run, trial: Trial) -> bool:
    """Whether the trial has the data as they are now: data made again may have the same inputs and be others."""
    source, target = data_run(run, trial), trial_run(run, trial)
    names = [spec.artefact for spec in of_data(trial_config(config, run, trial))]
    return all(target.artefact(name).manifest() == source.artefact(name).manifest() for name in names)


def give(config: Config, run: Run, trial: Trial) -> None:
    """Copies the data to the trial; one that has other data begins anew."""
    if not is_given(config, run, trial):
        target = trial_run(run, trial)
        for folder in target.folders(""):
            target.delete(folder)
        for name in target.files(""):
            target.delete(name)
        take_fitting(trial_config(config, run, trial), data_run(run, trial), target)


def copy(source: Artefact, target: Artefact) -> None:
    """Makes the target a copy of a complete artefact; its manifest comes last."""
    manifest = source.manifest()
    assert manifest is not None
    target.begin(manifest.inputs)
    for name in source.run.files(source.name):
        if name not in ("manifest.json", "begun.json"):
            ends = (f"{artefact.run.root}/{artefact.name}/{name}" for artefact in (source, target))
            with target.run.said("written", f"{target.name}/{name}"):
                pafs.copy_files(*ends, source.run.fs, target.run.fs)
    target.run.write_bytes(target.manifest_name, source.run.read_bytes(source.manifest_name))
