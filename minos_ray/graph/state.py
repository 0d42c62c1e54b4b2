"""The state of every artefact of a run (done, stale and why, partial, or missing), and of the models that a config
names: each must be there and whole, on this machine, on the hub or made by the run in time.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from minos_ray.config.load import Config, leaves
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, errors_of
from minos_ray.graph.lengths import outgrown
from minos_ray.graph.specs import STAGES_WITHIN, Spec, comparable, fresh, inputs, is_fresh, significant, specs
from minos_ray.store.model_files import is_hub_id, locate, locate_adapter, locate_hub, tensors_of, weight_files
from minos_ray.store.run import Manifest, Run

HUB_S = 10.0


@dataclass(frozen=True)
class State:
    """State of one artefact: done, stale (and why), partial (parts so far) or missing."""

    artefact: str
    stage: str
    state: str
    why: str
    manifest: Manifest | None


class Todo(NamedTuple):
    """What is still to be done: artefacts, and stages, with those that a sweep or a study does in its trials."""

    artefacts: frozenset[str]
    stages: frozenset[str]


def todo_of(states: Iterable[State]) -> Todo:
    """What of these artefacts is not done."""
    unfinished = [state for state in states if state.state != "done"]
    stages = {state.stage for state in unfinished}
    within = {inner for stage in stages for inner in STAGES_WITHIN.get(stage, ())}
    return Todo(frozenset(state.artefact for state in unfinished), frozenset(stages | within))


def status(config: Config, run: Run) -> list[State]:
    """The state of every artefact of the run."""
    return [state_of(config, run, spec) for spec in specs(config)]


def state_of(config: Config, run: Run, spec: Spec) -> State:
    """done / stale / partial / missing, with the reason."""
    artefact = run.artefact(spec.artefact)
    manifest, current = artefact.manifest(), inputs(config, run, spec)
    if manifest is None:
        state, why, recorded = "missing", "", artefact.begun_inputs()
        if spec.round and not recorded and (last := fresh(config, run, "refine.json")):
            state, why = (
                ("missing", "") if spec.round <= last.counts["rounds"] else ("done", "the rounds ended before it")
            )
        if recorded:
            parts, change = len(artefact.part_names()), difference(significant(recorded), comparable(current, recorded))
            reasons = [f"{parts} parts so far"] if parts else []
            reasons += [f"begun with {change}"] if change else []
            state, why = "partial", ", ".join(reasons)
    elif not is_fresh(manifest, current):
        recorded = significant(manifest.inputs)
        state, why = "stale", difference(recorded, comparable(current, manifest.inputs))
    elif why := outgrown(config, manifest):
        state = "partial"
    else:
        state, why = "done", "imported" if "import" in manifest.inputs else ""
    return State(spec.artefact, spec.stage, state, why, manifest)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What changed between the inputs an artefact was made from and those of now."""
    before, now = ({key: value for key, value in leaves(values) if value != {}} for values in (before, now))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changes = []
    for key in changed[:3]:
        section, _, name = key.partition(".")
        if section == "needs":
            changes.append(f"{name} changed")
        elif section == "contents":
            changes.append(f"{name} has other content")
        else:
            changes.append(f"{key.removeprefix('config.')}: {before.get(key)} -> {now.get(key)}")
    others = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(changes) + others


def model_problems(
    key: str, model: Model, config: Config, run: Run, ready: Container[str] | None = ("models/base",)
) -> Iterator[str]:
    """What is wrong with the model of a key; `ready` are the run's own models that are made by then (None: all)."""
    yield from errors_of(require_model, key, model, run)
    if model.adapter and not is_hub_id(model.adapter):
        yield from (f"{key.removesuffix('.model')}.adapter: {line}" for line in errors_of(locate_adapter, model))
    yield from errors_of(require_made, key, model, config, run, ready)


def require_model(key: str, model: Model, run: Run) -> None:
    """A directory must hold a whole model; the hub must have what is none, and give it."""
    if model.model.startswith("run:"):
        return
    try:
        if is_hub_id(model.model):
            hub_config(model.model, model.revision)
            return
        for file in weight_files(locate(model, run)):
            tensors_of(file)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def require_made(key: str, model: Model, config: Config, run: Run, ready: Container[str] | None = None) -> None:
    """A model of the run must be there, or be made before it is needed."""
    kind, _, name = model.model.partition(":")
    planned = [spec.artefact for spec in specs(config) if spec.artefact.startswith("models/")]
    in_time = name in planned and (ready is None or name in ready)
    if kind != "run" or in_time or run.artefact(name).manifest() is not None:
        return
    why = "makes it only after it is needed" if name in planned else "makes none of that name"
    raise UserError(f"{key}: '{model.model}' is not in {run.path}, and this run {why}")


@lru_cache
def hub_config(name: str, revision: str | None) -> str | None:
    """The config.json of a hub model on this machine; None when the hub does not answer and the cache has none.

    UserError when the hub has no such model or does not give it, or when it is offline and not in the cache.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=HUB_S)  # tried once
        return hf_hub_download(name, "config.json", revision=revision)
    except errors.RepositoryNotFoundError as error:
        if path := in_cache(name, revision):  # a stage will take it from there
            return path
        if not isinstance(error, errors.GatedRepoError):
            unknown = "the model hub has none of that name (or it is private)"
            raise UserError(f"{no_directory(name)}, and {unknown}") from error
        granted = "is given by the model hub to those only who were granted access"
        raise UserError(f"model '{name}' {granted}: ask for it on its page, and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"model '{name}': the model hub has no revision '{revision}' of it") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"model '{name}' has no config.json on the model hub") from error
    except errors.HFValidationError as error:
        raise UserError(f"{no_directory(name)}, nor is it a name that the model hub could have") from error
    except errors.OfflineModeIsEnabled:
        try:
            return f"{locate_hub(Model(model=name, revision=revision))}/config.json"
        except UserError as error:
            raise UserError(f"{no_directory(name)}; with HF_HUB_OFFLINE, {error}") from error
    except (errors.HTTPError, OSError):  # HTTPError: that of the HTTP library behind it
        path = in_cache(name, revision)
        if path is None and "/" in name and Path(name).parent.is_dir():  # surely a directory
            raise UserError(f"{no_directory(name)}, and the model hub does not answer") from None
        return path


def in_cache(name: str, revision: str | None) -> str | None:
    """The config.json in the cache of hub models, None when it holds none."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return path if isinstance(path, str) else None  # else a mark that the hub has none


def no_directory(name: str) -> str:
    """Where a relative path was looked for."""
    return f"model '{name}': there is no directory {Path(name).expanduser().absolute()}"
