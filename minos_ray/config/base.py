"""The base class of all sections, and what a config may set of an endpoint and add to each request; secrets stay in the
environment.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field

# What random number generators take.
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
# A number of rows or workers that are wanted.
Count = Annotated[int, Field(ge=1)]
# The base_url that starts the miniature's own critic.
OFFLINE = "offline"
SECRET = re.compile(r"auth|key|token|secret|pass|cookie|credential|signature", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"\$[A-Za-z_]\w*")
SECRET_VALUE = re.compile(r"(?:bearer|basic)\s|sk-", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"api.?key|secret|password|authorization|credential|(?:access|auth|bearer).?token", re.IGNORECASE
)
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
OWN = {"model", "max_tokens", "temperature", "top_p", "reasoning_effort"}
FIXED = {"messages", "response_format", "max_completion_tokens", "stream", "n"}


class Section(BaseModel):
    """A part of the configuration: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def holds_secret(url: str) -> bool:
    """Whether an address holds a name and a password, or a key in its query."""
    return "@" in urlsplit(url).netloc or any(map(SECRET.search, address(url)[1]))


def address(base_url: str) -> tuple[str, dict[str, str]]:
    """The address and the parameters that each request has besides, as Azure's `?api-version=...`."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(query="")), dict(parse_qsl(parts.query, keep_blank_values=True))


def check_headers(headers: Mapping[str, str]) -> None:
    """ValueError for a header that no request can have, or that holds a secret rather than the name of a variable."""
    for name, value in headers.items():
        if not HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError(f"extra_headers.{name}: no request can have this header")
        says_so, names_variable = SECRET.search(name), SECRET_VARIABLE.fullmatch(value)
        secret = says_so and not SECRET.search(value) if names_variable else says_so or SECRET_VALUE.match(value)
        if secret:
            raise ValueError(
                f"extra_headers.{name} may hold a secret, which no config should: set a variable of the environment, "
                "with KEY or TOKEN in its name, and write $NAME"
            )


def check_body(extra: Mapping[str, Any]) -> None:
    """ValueError for what has a key of its own in the config, for what is no JSON, and for secrets."""
    for name in extra.keys() & (OWN | FIXED):
        remedy = f"; set critique.{name}" if name in OWN else ""
        raise ValueError(f"extra_body.{name} is set by each request itself{remedy}")
    for name in names(extra):
        if SECRET_KEY.search(name):
            raise ValueError(f"extra_body: {name} may hold a secret, which would stand in the files of the run")
    try:
        json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body is no JSON: {error}") from error


def names(value: Any) -> Iterator[str]:
    """The keys of all mappings in a JSON value."""
    for key, inner in (
        value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
    ):
        yield str(key)
        yield from names(inner)
