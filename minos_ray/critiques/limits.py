"""What requests may take: money (prices, `critique.max_usd`), requests and tokens per minute, and failures, after which
everything stops before more is spent.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

import yaml

from minos_ray.config.resources import OFFLINE
from minos_ray.config.schema import Critique
from minos_ray.critiques.prompts import Messages
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import too_many_failed

TABLE = Path(__file__).with_name("prices.yaml")
USED = 0.97
"""Fraction of an allowed rate that is used: endpoints count on arrival, some milliseconds off ours."""
SLACK_S = 0.5
"""So much unused time may be caught up with, but not what passed before the first start."""
BYTES_PER_TOKEN = 3.0
"""Until an answer says better; English text has about four."""
BAD_IN_A_ROW = 16
"""So many answers of which none can be used stop the stage."""
FEW_AT_FIRST, DOUBTS_IN_A_ROW = 3, 5
"""So many refusals that look as if they were meant for every request: when nothing was answered yet, and after that."""

MEANING = {
    "bad_request": "every request is refused",
    "bad_json": "no answer is JSON of the given schema; set critique.structured=false",
    "bad_reply": "no reply is a chat completion; see critique.base_url",
    "refused": "every answer is refused (content filter); see {prompt}",
    "truncated": "answers are cut off at critique.max_tokens = {max_tokens}; raise critique.max_tokens (a model that "
    "thinks before it writes needs several thousand), or set critique.reasoning_effort",
    "empty": "answers hold no text; a model that thinks may have used up critique.max_tokens = {max_tokens}: raise it, "
    "or set critique.reasoning_effort",
    **dict.fromkeys(("unreadable_line", "unknown_type", "wrong_steps"), "no answer could be read; see {errors}"),
}
FORM = "no answer has the form of a critique; see {prompt}, or set critique.structured=true"

AnyCritique = TypeVar("AnyCritique", bound=Critique)


class EndpointGone(WorkStopped):
    """The endpoint, or the storage of its answers, is down; a rerun goes on."""


class StopAtBudget(WorkStopped):
    """`critique.max_usd` is reached; what was bought is kept and a rerun with more money goes on from there."""

    tells_all = True


def prices(section: Critique) -> tuple[float | None, float | None]:
    """USD per million input and output tokens: the config's, else the table's, else None."""
    table = {model: usd for source in yaml.safe_load(TABLE.read_text()) for model, usd in source["prices"].items()}
    configured = section.usd_per_million_input, section.usd_per_million_output
    input, output = table.get(section.model, (None, None))
    return (input if configured[0] is None else configured[0], output if configured[1] is None else configured[1])


def with_model(section: AnyCritique) -> AnyCritique:
    """The section with the name of the model that answers: the offline critic has one of its own."""
    if section.base_url != OFFLINE:
        return section
    from minos_ray.miniature.critic_server import MODEL  # late: `minos check` needs no server

    return section.model_copy(update={"model": MODEL})


def has_prices(section: Critique) -> bool:
    """Whether both prices are known."""
    return None not in prices(section)


def priced(section: Critique) -> Critique:
    """The section with its prices filled in. UserError when there is a limit on money and no price to hold it by."""
    if not has_prices(section) and section.max_usd is not None:
        raise UserError(
            f"critique.max_usd = {section.max_usd:g}, but no price of critique.model = '{section.model}' is known: "
            "set critique.usd_per_million_input and critique.usd_per_million_output"
        )
    input, output = prices(section)
    return section.model_copy(update={"usd_per_million_input": input or 0, "usd_per_million_output": output or 0})


def cost(section: Critique, prompt_tokens: float, completion_tokens: float) -> float:
    """USD for that many tokens."""
    input, output = section.usd_per_million_input or 0, section.usd_per_million_output or 0
    return (prompt_tokens * input + completion_tokens * output) / 1e6


def most_tokens(messages: Messages) -> int:
    """An upper bound: no tokenizer makes more tokens of the messages than they have bytes."""
    return sum(len(message["content"].encode()) + 16 for message in messages)


def most_usd(section: Critique, messages: Messages) -> float:
    """The most that a request can cost, USD."""
    return cost(section, most_tokens(messages), section.max_tokens)


@dataclass
class Budget:
    """A request reserves the most that it can cost, so that the limit holds with many requests in flight.

    What was sent and never answered (a timeout, a cut connection) may have been billed: it counts as `lost` at the
    price of the dearest answer so far.
    """

    limit: float | None
    spent: float
    reserved: float = 0.0
    lost: float = 0.0
    dearest: float = 0.0

    def fits(self, usd: float) -> bool:
        """Whether a request that costs at most that much may still be sent."""
        return self.limit is None or self.spent + self.lost + self.reserved + usd <= self.limit

    def reserve(self, usd: float) -> None:
        """Sets the most that a request can cost aside."""
        self.reserved += usd

    def settle(self, reserved: float, spent: float | None) -> None:
        """Gives a reservation back and books what was spent, or what may have been (None)."""
        self.reserved -= reserved
        if spent is None:
            self.lost += min(reserved, self.dearest or reserved)
        else:
            self.spent += spent
            self.dearest = max(self.dearest, spent)

    def exhausted(self, usd: float) -> StopAtBudget:
        """The end of the money, which has no room for one more request of at most `usd`."""
        lost = f" and at most {self.lost:.4f} on answers that never came" if self.lost else ""
        return StopAtBudget(
            f"critique.max_usd = {self.limit}: stopped at {self.spent:.4f} USD{lost}, the next request may cost "
            f"{usd:.4f}; what was bought is kept: raise critique.max_usd and run again"
        )


class Pace:
    """A rate held by spacing, without a burst: the generic cell rate algorithm (ITU-T I.371), amounts per minute."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self.per_second = per_minute * USED / 60 if per_minute else None
        self.free_at = now
        self.started = False

    def start(self, now: float) -> float:
        """The moment at which the next amount may start."""
        return max(now, self.free_at)

    def take(self, amount: float, start: float) -> None:
        """Books an amount that starts then."""
        if self.per_second:
            earliest = start - SLACK_S if self.started else start
            self.free_at, self.started = max(self.free_at, earliest) + amount / self.per_second, True

    def correct(self, amount: float) -> None:
        """Books what an amount turned out to be more (or less) than was taken."""
        if self.per_second:
            self.free_at += amount / self.per_second

    def pause(self, until: float) -> None:
        """Nothing starts before that moment, and nothing is caught up with after it."""
        self.free_at = max(self.free_at, until)


class Usage:
    """Tokens per byte of prompt and tokens per answer, as means over what came back."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.bytes = self.prompt = self.completion = self.answers = 0

    def learn(self, size: int, prompt_tokens: int, completion_tokens: int) -> None:
        """One answer to a prompt of `size` bytes."""
        self.bytes += size
        self.prompt += prompt_tokens
        self.completion += completion_tokens
        self.answers += 1

    def expected(self, size: int) -> float:
        """Tokens of a prompt of `size` bytes and its answer."""
        per_byte = self.prompt / self.bytes if self.bytes else 1 / BYTES_PER_TOKEN
        return size * per_byte + (self.completion / self.answers if self.answers else self.max_tokens)


def advice(section: Critique, statuses: Counter[str]) -> str:
    """What the most frequent of these statuses means, and which key would help."""
    [(status, _)] = statuses.most_common(1)
    keys = {"prompt": f"critique.prompt = {section.prompt}", "errors": "error_analysis.prompt"}
    return MEANING.get(status, FORM).format(max_tokens=section.max_tokens, **keys)


class StopRules:
    """Counts how rows end, among `before` ones of earlier runs too, and says when to stop.

    A status is what a reader made of an answer (`ok`: it can be used), or the outcome of a row without one.
    """

    def __init__(self, section: Critique, total: int, before: Mapping[str, int]) -> None:
        self.section, self.total = section, total
        self.critic = f"critique.model = '{section.model}' at critique.base_url = '{section.base_url}'"
        self.before = Counter(before)
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.doubts = 0

    def attempt_failed(self, error: str, message: str) -> Exception | None:
        """A request came to nothing, whether it will be sent again or is set aside; `error` is its short name."""
        self.errors[error] += 1
        if error == "bad_reply" and not self._answers() and self.errors[error] >= BAD_IN_A_ROW:
            return UserError(f"{self.critic}: {MEANING['bad_reply']}: {message}")
        return None

    def row_ended(self, status: str, message: str, doubt: Exception | None, in_flight: int) -> Exception | None:
        """The last attempt of a row ended so. `doubt` is a reason to stop when others end like it.

        A refusal comes at once, an answer takes its time: what is in flight is waited for before such a stop.
        """
        self.statuses[status] += 1
        self.messages[status] = message
        self.doubts = self.doubts + bool(doubt) if status in ("bad_request", "failed") else 0
        if doubt and self.doubts >= self._doubts_to_stop() and not in_flight:
            return doubt
        if why := self.none_usable(message):
            return why
        if too_many_failed(failed := self.statuses["failed"], self.total):
            return EndpointGone(f"critique: {failed} requests failed after all retries ({message}); run again to go on")
        return None

    def room(self) -> float:
        """How many requests may be in flight: after a refusal only as many as it takes to be sure."""
        return max(1, self._doubts_to_stop() - self.doubts) if self.doubts else inf

    def none_usable(self, message: str) -> UserError | None:
        """When none of the first answers can be used. Where these are all, the stage itself says what they are."""
        seen = self.before + self.statuses
        failed, usable = seen.pop("failed", 0), seen.pop("ok", 0)
        count, refused = seen.total(), any(seen.total() == seen[kind] for kind in ("bad_request", "bad_json"))
        if usable or count < min(BAD_IN_A_ROW, self.total) or (count + failed >= self.total and not refused):
            return None
        none = f"none of {count} answers can be used ({dict(seen.most_common())}): {advice(self.section, seen)}"
        [(most_frequent, _)] = seen.most_common(1)  # what the advice is about; other rows may have ended last
        message = self.messages.get(most_frequent) or message
        return UserError(f"{self.critic}: {none}{f': {message}' if message else ''}")

    def _doubts_to_stop(self) -> int:
        return min(DOUBTS_IN_A_ROW if self._answers() else FEW_AT_FIRST, self.total)

    def _answers(self) -> int:
        seen = self.before + self.statuses
        return seen.total() - seen["failed"] - seen["bad_request"]
