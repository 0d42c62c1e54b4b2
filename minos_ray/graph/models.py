"""Models that a config names: each must be there and whole, on this machine, on the hub or made by the run in time."""

from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, errors_of
from minos_ray.graph.specs import specs
from minos_ray.store.model_files import is_hub_id, locate, locate_adapter, locate_hub, tensors_of, weight_files
from minos_ray.store.run import Run

HUB_S = 10.0


def model_problems(
    key: str, model: Model, config: Config, run: Run, ready: Container[str] | None = ("models/base",)
) -> Iterator[str]:
    """What is wrong with the model of a key; `ready` are the run's own models that are made by then (None: all)."""
    yield from errors_of(require_model, key, model, run)
    if model.adapter:
        yield from errors_of(require_adapter, key.removesuffix(".model"), model)
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


def require_adapter(key: str, model: Model) -> None:
    """UserError where an adapter that is no hub id is not there or is none that vLLM adds."""
    if not is_hub_id(str(model.adapter)):
        try:
            locate_adapter(model)
        except UserError as error:
            raise UserError(f"{key}.adapter: {error}") from error


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
