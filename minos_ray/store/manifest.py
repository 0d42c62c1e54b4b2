"""What a complete artefact says of itself, and the fingerprint that names what went in."""

import json
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict


class Manifest(BaseModel):
    """What a complete artefact is: what went in, how many rows came out, what was dropped and why.

    `parts` is the number of its files of rows (None: written before they were counted).
    """

    model_config = ConfigDict(extra="forbid")

    artefact: str
    fingerprint: str
    inputs: dict[str, Any]
    version: str
    counts: dict[str, int]
    dropped: dict[str, int]
    details: dict[str, Any]
    created: str
    parts: int | None = None


def fingerprint(inputs: dict[str, Any]) -> str:
    """16 hex digits that name a JSON value."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=8).hexdigest()
