"""Rows that a length in `resources` refused: they are made when it grows, although `resources` are in no fingerprint.

`length.json` in an artefact says with which length its rows are made; the manifest repeats it and counts the refusals.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from minos_ray.config.load import Config
from minos_ray.config.resources import Engine
from minos_ray.graph.lengths import PROMPT_TOO_LONG, limit, longest
from minos_ray.store.run import Artefact, Manifest

FILE, DETAIL = "length.json", "length"
# Holds a word when rows were made again after others may have been made from the old ones.
DRAWN = "drawn.txt"
OVER_MAX_LENGTH = "refused_over_max_length"
POOLS = {"candidates": "sample", "rollouts": "sample", "scores/critic": "judge"}


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
    engine: Engine = getattr(config.resources, POOLS.get(artefact, "score"))
    return limit(engine, None) if artefact in POOLS else engine.max_model_len


def outgrown(config: Config, manifest: Manifest) -> str:
    """Why rows that were refused would not be any more; empty when there are none."""
    told = manifest.details.get(DETAIL)
    if not isinstance(told, dict) or not told["refused"]:
        return ""
    now = min(allowed(config, manifest.artefact), told["model"])
    return f"{told['refused']:,} rows refused at {told['tokens']:,} tokens, {now:,} now" if now > told["tokens"] else ""


def make_again(artefact: Artefact, length: Length, kept: Callable[[pa.Table], pa.Table] | None = None) -> None:
    """To be called when an artefact has begun: removes what was refused under a smaller length, to be made again.

    `kept` are the rows of a part that stay; without it the part goes.
    """
    before = read(artefact)
    if before is None or length.tokens > before.tokens:
        name = reason(artefact.name)
        refused = [(part, notes) for part, notes in artefact.part_footers() if notes.stats.get(name)]
        if refused:
            artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", secrets.token_hex(8).encode())
        for part, notes in refused:
            rows = kept(artefact.read_part(part)) if kept else None
            if rows is not None and rows.num_rows:
                artefact.write_part(part, rows, {**notes.stats, name: 0}, notes.units)
            else:
                artefact.run.delete(f"{artefact.name}/part-{part}.parquet")
    if length != before:
        artefact.run.write_bytes(f"{artefact.name}/{FILE}", json.dumps(length._asdict()).encode())


def read(artefact: Artefact) -> Length | None:
    """The lengths that the rows of an artefact were made with so far; None when nobody noted them."""
    try:
        return Length(**json.loads(artefact.run.read_bytes(f"{artefact.name}/{FILE}")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def details(artefact: Artefact, stats: Mapping[str, float]) -> dict[str, Any]:
    """For the manifest: the lengths, how many rows they refused, and the word when some were made again.

    `stats` are the sums over the parts.
    """
    length, refused = read(artefact), int(stats.get(reason(artefact.name), 0))
    told = {DETAIL: {**length._asdict(), "refused": refused}} if length else {}
    name = f"{artefact.name}/{DRAWN}"
    word = artefact.run.read_bytes(name).decode() if artefact.run.exists(name) else ""
    return {**told, **({"drawn_again": word} if word else {})}


def reason(artefact: str) -> str:
    """What workers count refusals by."""
    return PROMPT_TOO_LONG if artefact in POOLS else OVER_MAX_LENGTH
