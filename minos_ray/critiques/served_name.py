"""The name under which a model is served as critic: it tells models apart, since what was bought is kept by it."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from minos_ray.config.schema import Model
from minos_ray.graph.specs import FOR_SPEED
from minos_ray.store.contents import of_model
from minos_ray.store.model_files import is_hub_id


def served_name(model: str, path: str, plain: bool, options: Sequence[str]) -> str:
    """A hub id as it is; a directory by its name and a digest of its files, so that a model trained again is another.

    The template and options of vLLM that change the texts are in the digest too.
    """
    changes = [*(["plain"] if plain else []), *changing(options)]
    content = "" if is_hub_id(model) else of_model(Model(model=path)) or path
    if not content and not changes:
        return model
    digest = blake2b(repr([content, changes]).encode(), digest_size=5).hexdigest()
    return f"{model if is_hub_id(model) else Path(path).name}@{digest}"


def changing(options: Sequence[str]) -> list[str]:
    """The options of vLLM, with their values, that are not known to change its speed alone."""
    kept: list[str] = []
    changes = True
    for option in options:
        if option.startswith("--"):
            changes = option[2:].partition("=")[0].replace("-", "_") not in FOR_SPEED
        kept += [option] if changes else []
    return kept
