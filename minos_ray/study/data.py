"""The data of each seed, made once, and the copies that trials have of it."""

import functools

import pyarrow.fs as pafs

from minos_ray.config.load import Config
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.limits import StopAtBudget
from minos_ray.graph.specs import Spec, inputs, is_fresh, specs
from minos_ray.graph.state import state_of
from minos_ray.pipeline.run import ORDER, open_run, run_all
from minos_ray.store.run import Artefact, Run
from minos_ray.study.arms import FOLDER, Trial, data_config, data_run, trial_config, trial_run

STAGES = ("pretrain", "problems", "sample", "label", "critique")
MADE = ("sft", "reward", "score", "evaluate")


def make_data(config: Config, run: Run, trial: Trial, plain: Trial) -> None:
    """Problems, candidates, labels and critiques of a trial; what is complete and fresh is not made again.

    What its arm leaves as it is comes from the data of the trial `plain`, whose arm changes nothing.
    """
    own, target = data_config(config, run, trial), data_run(run, trial)
    take_fitting(own, data_run(run, plain), target)
    if any(state_of(own, target, spec).state != "done" for spec in of_data(own)):
        say = functools.partial(print, f"study: {target.root.rpartition('/')[2]}:", flush=True)
        own = with_what_is_left(own, run, target)
        run_all(own, open_run(own), say, [stage for stage in ORDER if stage in STAGES])


def with_what_is_left(own: Config, run: Run, target: Run) -> Config:
    """The config of these data with what all others of the study have left of `critique.max_usd`."""
    limit = own.critique.max_usd
    if limit is None:
        return own
    places = [Run(run.at(f"{FOLDER}/data/{name}")) for name in run.folders(f"{FOLDER}/data")]
    left = limit - sum(Cache(place).spent_usd for place in places if place.root != target.root)
    if left <= 0:
        raise StopAtBudget(f"critique.max_usd = {limit}: the data of other seeds and arms have cost as much; raise it")
    return own.model_copy(update={"critique": own.critique.model_copy(update={"max_usd": left})})


def of_data(config: Config) -> list[Spec]:
    """The artefacts that hold the data of a run, each after what it needs."""
    return [spec for spec in specs(config) if spec.stage in STAGES]


def made(own: Config) -> list[Spec]:
    """The artefacts that a trial of this config makes itself."""
    return [spec for spec in specs(own) if spec.stage in MADE]


def take_fitting(own: Config, source: Run, target: Run) -> None:
    """Copies what is what the target would make of its own inputs, unless it is this very one that is there."""
    for spec in of_data(own):
        manifest = source.artefact(spec.artefact).manifest()
        fits = manifest is not None and is_fresh(manifest, inputs(own, target, spec))
        if fits and target.artefact(spec.artefact).manifest() != manifest:
            copy(source.artefact(spec.artefact), target.artefact(spec.artefact))


def is_given(config: Config, run: Run, trial: Trial) -> bool:
    """Whether the trial has the data that it needs as they are now: made again they may differ with the same inputs."""
    source, target, own = data_run(run, trial), trial_run(run, trial), trial_config(config, run, trial)
    needed = {name for spec in made(own) for name in spec.needs}.intersection(spec.artefact for spec in of_data(own))
    return all(target.artefact(name).manifest() == source.artefact(name).manifest() for name in needed)


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
    for name in (target.manifest_name, target.begun_name, target.name):  # parts of others with the same inputs, too
        target.run.delete(name)
    target.begin(manifest.inputs)
    for name in source.run.files(source.name):
        if name not in ("manifest.json", "begun.json"):
            ends = (f"{artefact.run.root}/{artefact.name}/{name}" for artefact in (source, target))
            with target.run.storage_errors("written", f"{target.name}/{name}"):
                pafs.copy_files(*ends, source.run.fs, target.run.fs)
    target.run.write_bytes(target.manifest_name, source.run.read_bytes(source.manifest_name))
