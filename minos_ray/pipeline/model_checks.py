"""Whether the models that a config names are there, whole, and of a family that can be trained, before any work."""

import os
from collections.abc import Callable, Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.store.model_files import is_hub_id, locate, locate_hub
from minos_ray.store.run import Run

HUB_S = 10.0
TRAINED = {"sft", "reward"}


def models(config: Config, todo: set[str]) -> Iterator[tuple[str, Model]]:
    """Models that must be there already, each with its key."""
    rollouts = config.label.rollouts if "label" in todo else None
    if config.generator and ("sample" in todo or (rollouts and not rollouts.completer)):
        yield "generator.model", config.generator
    if rollouts and rollouts.completer:
        yield "label.rollouts.completer", rollouts.completer
    if todo & TRAINED:
        yield "base.model", config.base


def judged_tests(config: Config, run: Run) -> Iterator[Callable[[], object]]:
    """Tests of the models that `minos meta` alone needs."""
    for name, model in config.meta.models.items():
        key = f"meta.models.{name}.model"
        yield lambda key=key, model=model: check_model(key, model, run)
        yield lambda key=key, model=model: check_made(key, model, config, run)


def model_tests(config: Config, run: Run, todo: set[str]) -> Iterator[Callable[[], object]]:
    """One test for each model, and one for what is trained."""
    for key, model in models(config, todo):
        yield lambda key=key, model=model: check_model(key, model, run)
        yield lambda key=key, model=model: check_made(key, model, config, run, ready=("models/base",))
    if todo & TRAINED:
        yield lambda: check_base(config, run, todo)


def check_model(key: str, model: Model, run: Run) -> None:
    """A directory must hold a whole model; the hub must have what is none, and give it."""
    from minos_ray.pipeline.estimate import tensors, weight_files

    if model.model.startswith("run:"):
        return
    try:
        if is_hub_id(model.model):
            hub_config(model.model, model.revision)
            return
        for file in weight_files(locate(model, run)):
            tensors(file)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def check_made(key: str, model: Model, config: Config, run: Run, ready: Container[str] | None = None) -> None:
    """A model of the run must be there, or be made before it is needed, as those named `ready` are (None: all)."""
    from minos_ray.graph.specs import specs

    kind, _, name = model.model.partition(":")
    made = [spec.artefact for spec in specs(config) if spec.artefact.startswith("models/")]
    in_time = name in made and (ready is None or name in ready)
    if kind != "run" or in_time or run.artefact(name).manifest() is not None:
        return
    why = "makes it only after it is needed" if name in made else "makes none of that name"
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
        if found := in_cache(name, revision):  # a stage will take it from there
            return found
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
        return cached(name, revision)
    except (errors.HTTPError, OSError):  # HTTPError: that of the HTTP library behind it
        return silent(name, revision)


def cached(name: str, revision: str | None) -> str:
    """The config.json in the cache of hub models, beside all else of the model; UserError when it is not there."""
    try:
        return f"{locate_hub(Model(model=name, revision=revision))}/config.json"
    except UserError as error:
        raise UserError(f"{no_directory(name)}; with HF_HUB_OFFLINE, {error}") from error


def silent(name: str, revision: str | None) -> str | None:
    """What is known where the hub does not answer: an older answer; UserError where the name is surely a directory."""
    found = in_cache(name, revision)
    if found is None and "/" in name and Path(name).parent.is_dir():
        raise UserError(f"{no_directory(name)}, and the model hub does not answer")
    return found


def in_cache(name: str, revision: str | None) -> str | None:
    """The config.json in the cache of hub models, None when it holds none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return found if isinstance(found, str) else None


def no_directory(name: str) -> str:
    """Where a relative path was looked for."""
    return f"model '{name}': there is no directory {Path(name).expanduser().absolute()}"


def unseen(config: Config, todo: set[str]) -> Iterator[str]:
    """A line for each hub model that could not be looked up; those that are refused are not among them."""
    for key, model in models(config, todo):
        if is_hub_id(model.model) and hub_config(model.model, model.revision) is None:
            yield f"{key}: '{model.model}' could not be looked up: the model hub does not answer; its stage asks again"


def check_base(config: Config, run: Run, todo: set[str]) -> None:
    """The base must have the classes that are trained, and where its weights lie here all that these need."""
    from minos_ray.training import base_tokens, base_weights

    base, kinds = config.base, trained_kinds(config, todo)
    if base.model.startswith("run:"):
        return
    on_hub = is_hub_id(base.model)
    try:
        check_model("base.model", base, run)
        file = hub_config(base.model, base.revision) if on_hub else f"{locate(base, run)}/config.json"
    except UserError:  # said by `check_model`
        return
    if file:
        options = {"trust_remote_code": base.trust_remote_code}
        folder = os.path.dirname(file)
        base_weights.check(folder, kinds, options, config.resources.train.zero == 3, whole=not on_hub)
        if not on_hub:
            base_tokens.tokenizer_of(folder, base.trust_remote_code, critic="sft" in todo)
        if config.reward.lm_weight and "reward" in todo and not on_hub:
            base_weights.require_vocabulary_head(folder, options)


def trained_kinds(config: Config, todo: set[str]) -> list[Any]:
    """What is made of the base."""
    verifiers = [name.partition("-")[0] for name in config.reward.verifiers]
    kinds = [*verifiers, *(config.sweep.kinds if "sweep" in todo else ())] if "reward" in todo else []
    language = ["lm"] if "sft" in todo or ("reward" in todo and config.reward.lm_weight) else []
    return [*dict.fromkeys([*language, *kinds])]
