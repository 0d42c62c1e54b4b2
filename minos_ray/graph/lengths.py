"""How many tokens a prompt and its text may have together, in an engine and in a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minos_ray.config.resources import Engine
from minos_ray.errors import UserError

PROMPT_TOO_LONG = "prompt_too_long"
# Keys under which configs state it (as vLLM 0.32 reads them); no key: no limit.
POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)


def longest(path: str) -> int:
    """The number of positions that a model's config allows; no limit when it names none."""
    return positions(json.loads((Path(path) / "config.json").read_text()))


def positions(config: Mapping[str, Any]) -> int:
    """The smallest of what a config states; one of a model of texts and images has a section for texts."""
    texts = {**config, **(config.get("text_config") or {})}
    stated = [int(texts[key]) for key in POSITIONS if texts.get(key)]
    return int(texts.get("model_max_length") or min(stated, default=2**31))


def limit(resources: Engine, path: str | None) -> int:
    """Tokens of prompt and text together in an engine with the model at `path`, if it is known; as vLLM is told.

    In `extra` -1 means those that the model allows. UserError for what is no number there.
    """
    told, most = resources.extra.get("max_model_len"), longest(path) if path else 2**31
    if told is None:
        return min(resources.max_model_len, most)
    if type(told) is not int or (told < 1 and told != -1):
        raise UserError(f"resources: extra.max_model_len = {told!r} is no number of tokens, nor -1 (all of the model)")
    return most if told == -1 else told


def require_room(key: str, max_tokens: int, pool: str, resources: Engine, path: str | None, prompt: int = 1) -> None:
    """UserError when `max_tokens` leave no room for a prompt of so many tokens."""
    most = limit(resources, path)
    if max_tokens + prompt <= most:
        return
    by_model = path is not None and longest(path) <= most
    what = f"the model {path} has {most} positions" if by_model else f"resources.{pool}.max_model_len = {most}"
    tokens = f" (the shortest has {prompt} tokens)" if prompt > 1 else ""
    would = f"lower {key}" if by_model else f"lower {key} or raise resources.{pool}.max_model_len"
    raise UserError(
        f"{key} = {max_tokens} leaves no room for a prompt{tokens}: {what}; every text would be empty; {would}"
    )
