"""How many tokens a prompt and its text may have together, in an engine and in a model, and rows that had too many.

`resources` are in no fingerprint, yet a length in them decides which rows are left empty. So `length.json` in an
artefact records the length its rows were made with, the manifest repeats it and counts those rows, and they are made
again when it grows.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from minos_ray.config.resources import Engine
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.store.run import Artefact, Manifest

PROMPT_TOO_LONG = "prompt_too_long"
OVER_MAX_LENGTH = "refused_over_max_length"
# Keys under which configs state it (as vLLM 0.32 reads them); no key: no limit.
POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
FILE, DETAIL = "length.json", "length"
# Holds a word when rows were made again after others may have been made from the old ones.
DRAWN = "drawn.txt"
# By the first part of an artefact's name, or all of it; other artefacts are scored.
POOLS = {
    "candidates": "sample",
    "rollouts": "sample",
    "scores/critic": "judge",
    "sampled": "judge",
    "held-out": "judge",
}


def longest(path: str) -> int:
    """The number of positions that a model's config allows; no limit when it names none."""
    return positions(json.loads((Path(path) / "config.json").read_text()))


def positions(config: Mapping[str, Any]) -> int:
    """The smallest of what a config states; one of a model of texts and images has a section for texts."""
    texts = {**config, **(config.get("text_config") or {})}
    limits = [int(texts[key]) for key in POSITIONS if texts.get(key)]
    return int(texts.get("model_max_length") or min(limits, default=2**31))


def limit(resources: Engine, path: str | None) -> int:
    """Tokens of prompt and text together in an engine with the model at `path`, if it is known; as vLLM counts them.

    In `extra` -1 means those that the model allows. UserError for what is no number there.
    """
    override, most = resources.extra.get("max_model_len"), longest(path) if path else 2**31
    if override is None:
        return min(resources.max_model_len, most)
    if type(override) is not int or (override < 1 and override != -1):
        raise UserError(
            f"resources: extra.max_model_len = {override!r} is no number of tokens, nor -1 (all of the model)"
        )
    return most if override == -1 else override


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


class Length(NamedTuple):
    """Tokens that the engine allowed, and those that the model allows at most."""

    tokens: int
    model: int


def length_of(config: Config, artefact: str, path: str) -> Length:
    """The lengths that the rows of an artefact are made with now, by the model at `path`."""
    most = longest(path)
    return Length(min(allowed(config, artefact), most), most)


def allowed(config: Config, artefact: str) -> int:
    """What `resources` allow the engines of an artefact."""
    pool = pool_of(artefact)
    engine: Engine = getattr(config.resources, pool)
    return engine.max_model_len if pool == "score" else limit(engine, None)


def outgrown(config: Config, manifest: Manifest) -> str:
    """Why rows that were over the length would fit now; empty when there are none."""
    detail = manifest.details.get(DETAIL)
    if not isinstance(detail, dict) or not detail["refused"]:
        return ""
    rows, tokens, now = detail["refused"], detail["tokens"], min(allowed(config, manifest.artefact), detail["model"])
    return f"{rows:,} rows refused at {tokens:,} tokens, {now:,} now" if now > tokens else ""


def make_again(artefact: Artefact, length: Length, keep: Callable[[pa.Table], pa.Table] | None = None) -> None:
    """Removes the rows that a smaller length left empty, to be made again; called when an artefact has begun.

    `keep` gives the rows of a part that stay; without it the whole part goes.
    """
    before = read(artefact)
    if before is None or length.tokens > before.tokens:
        name = reason(artefact.name)
        parts = [(part, notes) for part, notes in artefact.part_footers() if notes.stats.get(name)]
        if parts:
            artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", secrets.token_hex(8).encode())
        for part, notes in parts:
            rows = keep(artefact.read_part(part)) if keep else None
            if rows is not None and rows.num_rows:
                artefact.write_part(part, rows, {**notes.stats, name: 0}, notes.units)
            else:
                artefact.run.delete(f"{artefact.name}/part-{part}.parquet")
    if length != before:
        artefact.run.write_bytes(f"{artefact.name}/{FILE}", json.dumps(length._asdict()).encode())


def read(artefact: Artefact) -> Length | None:
    """The lengths that the rows of an artefact were made with so far; None when it records none."""
    try:
        return Length(**json.loads(artefact.run.read_bytes(f"{artefact.name}/{FILE}")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def details(artefact: Artefact, stats: Mapping[str, float]) -> dict[str, Any]:
    """For the manifest: the lengths, how many rows were over them, and the word when some were made again.

    `stats` are the sums over the parts.
    """
    length, over = read(artefact), int(stats.get(reason(artefact.name), 0))
    detail = {DETAIL: {**length._asdict(), "refused": over}} if length else {}
    name = f"{artefact.name}/{DRAWN}"
    word = artefact.run.read_bytes(name).decode() if artefact.run.exists(name) else ""
    return {**detail, **({"drawn_again": word} if word else {})}


def reason(artefact: str) -> str:
    """What workers count refusals by."""
    return OVER_MAX_LENGTH if pool_of(artefact) == "score" else PROMPT_TOO_LONG


def pool_of(artefact: str) -> str:
    """The pool of `resources` whose engines write an artefact."""
    return POOLS.get(artefact) or POOLS.get(artefact.partition("/")[0], "score")
