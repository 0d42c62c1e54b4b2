"""Where the critic is, with which key and headers it is asked, and what its errors mean to the user."""

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import openai

from minos_ray.config.base import OFFLINE, address
from minos_ray.config.load import secret
from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques import retry
from minos_ray.critiques.reply import BadReply, clean, decoded, quoted
from minos_ray.errors import UserError
from minos_ray.miniature.critic_server import MODEL, offline_critic

PREFLIGHT_S = 30.0
AnyCritique = TypeVar("AnyCritique", bound=Critique)


@dataclass(frozen=True)
class Endpoint:
    """An address, its key, and the limits of asking there."""

    section: Critique
    limits: Client
    base_url: str
    key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def open(self, connections: int = 100) -> openai.AsyncOpenAI:
        """One client over one connection pool of that size."""
        timeout = self.limits.timeout_s
        # The Limits class of the very HTTP library that this version of openai is built on.
        pool = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=connections, max_keepalive_connections=connections
        )
        # A proxy of the environment does not know this machine by that name.
        trust_env = "//127.0.0.1" not in self.base_url and "//localhost" not in self.base_url
        base_url, query = address(self.base_url)
        return openai.AsyncOpenAI(
            base_url=base_url,
            default_query=query,
            api_key=self.key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(limits=pool, timeout=timeout, trust_env=trust_env),
            default_headers=self.headers,
        )

    def key_refused(self, error: Exception) -> UserError:
        """For a key that does not open the endpoint, or whose account is empty; the key is not in the line."""
        key, code = f"the key in ${self.section.api_key_env}", retry.name(error)
        if retry.meaning(error) == "no_quota":
            return UserError(f"critic: the account of {key} has no quota left ({code}); top it up and run again")
        return UserError(f"critic refused {key} ({code}) at critique.base_url = '{self.base_url}'; set a valid one")

    def message(self, error: Exception) -> str:
        """What the endpoint said, on one short line without the key, nor what headers hold of the environment."""
        if retry.name(error) == "timeout":
            return f"timeout: no answer in resources.client.timeout_s = {self.limits.timeout_s:g}"
        text = " ".join(f"{retry.name(error)}: {getattr(error, 'message', '') or error}".split())
        configured = self.section.extra_headers
        secrets = [value for name, value in self.headers.items() if configured.get(name, "").startswith("$")]
        for value in filter(None, (self.key, *secrets)):
            text = text.replace(value, "***")
        return clean(text)[:200]

    def doubt(self, error: Exception) -> UserError | None:
        """The reason to stop should others be refused like this one: an error that is likely to be meant for all."""
        meaning, message = retry.meaning(error), self.message(error)
        if meaning == "forbidden" and not retry.FLAGGED.search(message):
            return UserError(f"{self.key_refused(error)}: {message}")
        if meaning != "bad_request":
            return None
        missing = retry.name(error) in ("404", "405")
        advice = retry.address_hint(self.base_url) if missing else retry.hint(error, self.section)
        critic = f"critique.model = '{self.section.model}' at critique.base_url = '{self.base_url}'"
        return UserError(f"{critic}: every request is refused: {message}{advice}") if missing or advice else None

    def raise_unreachable(self, error: Exception, within_s: float) -> NoReturn:
        """UserError for an address at which nobody answers."""
        reason = " ".join(str(error.__cause__ or "").split()) or f"no answer in {within_s:.0f} s"
        raise UserError(f"critique.base_url = '{self.base_url}' cannot be reached: {reason}") from error


def headers(section: Critique) -> dict[str, str]:
    """The headers of each request, with what `$NAME` means in the environment of this process."""
    return {
        name: secret(value[1:], f"critique.extra_headers.{name}") if value.startswith("$") else value
        for name, value in section.extra_headers.items()
    }


@contextmanager
def open_endpoint(section: Critique, limits: Client, seed: int) -> Generator[Endpoint]:
    """The endpoint of a section; `offline` starts the miniature's own critic and ends it."""
    if section.base_url == OFFLINE:
        with offline_critic(seed) as (base_url, key):
            yield Endpoint(section, limits, base_url, key)
        return
    yield Endpoint(section, limits, section.base_url, secret(section.api_key_env), headers(section))


def with_model(section: AnyCritique) -> AnyCritique:
    """The section with the name of the model that answers: the offline critic has one of its own."""
    return section.model_copy(update={"model": MODEL}) if section.base_url == OFFLINE else section


async def preflight(endpoint: Endpoint, within_s: float = PREFLIGHT_S) -> None:
    """One free request: is anybody there, is the key good? An endpoint without a list of models passes."""
    try:
        async with endpoint.open() as api, asyncio.timeout(within_s):
            try:
                models = decoded((await api.models.with_raw_response.list()).content)
                if not isinstance(models, (dict, list)):
                    raise BadReply(f"no list of models: {quoted(models)}")
            except (openai.APIStatusError, BadReply) as error:
                if getattr(error, "status_code", 0) < 429:
                    await ask_nothing(endpoint, api, error)
    except (openai.APIConnectionError, TimeoutError) as error:
        endpoint.raise_unreachable(error, within_s)
    except retry.ERRORS:
        return


async def ask_nothing(endpoint: Endpoint, api: openai.AsyncOpenAI, unlisted: Exception) -> None:
    """Asks the chat itself where the list of models is refused: without messages, which no endpoint answers or bills.

    UserError when the key is refused there too, or nothing that could take it is found at that address.
    """
    body: dict[str, Any] = {"model": endpoint.section.model, "messages": [], "max_tokens": 1}
    try:
        decoded((await api.chat.completions.with_raw_response.create(**body)).content)
    except BadReply as error:
        hint = retry.address_hint(endpoint.base_url)
        raise UserError(f"critique.base_url = '{endpoint.base_url}' answers with {error}{hint}") from error
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise endpoint.key_refused(error) from error
        absent = error.status_code in (404, 405, 501)
        if absent and retry.meaning(unlisted) in ("no_access", "forbidden"):
            raise endpoint.key_refused(unlisted) from error
        doubt = endpoint.doubt(error) if absent else None
        if doubt:
            raise doubt from error
    except retry.ERRORS:
        return
