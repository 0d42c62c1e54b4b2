"""What requests may take: money (prices, `critique.max_usd`), requests per minute, tokens per minute."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from minos_ray.config.schema import Critique
from minos_ray.critiques.prompts import Messages
from minos_ray.errors import UserError, WorkStopped

TABLE = Path(__file__).with_name("prices.yaml")
USED = 0.97
"""Fraction of an allowed rate that is used: endpoints count on arrival, some milliseconds off ours."""
SLACK_S = 0.5
"""So much unused time may be caught up with, but not what passed before the first start."""
BYTES_PER_TOKEN = 3.0
"""Until an answer says better; English text has about four."""


class StopAtBudget(WorkStopped):
    """`critique.max_usd` is reached; what was bought is kept and a rerun with more money goes on from there."""

    tells_all = True


@cache
def price_table() -> dict[str, tuple[float, float]]:
    """Model -> USD per million input and output tokens."""
    sources = yaml.safe_load(TABLE.read_text())
    return {model: (input, output) for source in sources for model, (input, output) in source["prices"].items()}


def prices(section: Critique) -> tuple[float | None, float | None]:
    """USD per million input and output tokens: the config's, else the table's, else None."""
    input, output = price_table().get(section.model, (None, None))
    configured = section.usd_per_million_input, section.usd_per_million_output
    return (input if configured[0] is None else configured[0], output if configured[1] is None else configured[1])


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
