"""The arithmetic of the limits: pace, money, tokens; and how the client obeys them."""

import asyncio
import datetime
import os
import signal
import threading
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.schema import Critique
from minos_ray.critiques.endpoint import hold_s
from minos_ray.critiques.limits import (
    SLACK_S,
    TABLE,
    USED,
    Budget,
    Pace,
    StopAtBudget,
    Usage,
    has_prices,
    priced,
    prices,
)
from minos_ray.errors import UserError
from tests.critiques.asking import Ask, requests
from tests.critiques.scripted import Reply

# A request may cost some .0104 USD at most; each answer of 150 tokens costs .0015.
PRICES = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_tokens": 50}


@given(st.floats(1, 1e5), st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_no_window_sees_more_than_the_rate_allows(per_minute: float, idle: list[float]) -> None:
    pace, now, starts = Pace(per_minute, 0.0), 0.0, []
    for wait in idle:
        now = max(now + wait, 0.0)
        start = pace.start(now)
        pace.take(1, start)
        starts.append(start)
    rate = per_minute * USED / 60
    for i, first in enumerate(starts):
        for k, last in enumerate(starts[i:]):
            assert k <= (last - first + SLACK_S) * rate + 1e-6 * (k + 1)


@given(st.floats(60, 1e5), st.integers(2, 200))
def test_with_enough_to_do_the_whole_rate_is_used(per_minute: float, count: int) -> None:
    pace = Pace(per_minute, 0.0)
    for _ in range(count):
        start = pace.start(0.0)
        pace.take(1, start)
    assert start == pytest.approx((count - 1) / (per_minute * USED / 60))


def test_nothing_is_caught_up_with_at_the_start() -> None:
    pace, starts = Pace(600, 0.0), []
    for _ in range(20):
        starts.append(pace.start(100.0))
        pace.take(1, starts[-1])
    assert starts[-1] == pytest.approx(100 + 19 / (10 * USED))


def test_a_pause_holds_without_a_rate_and_is_not_caught_up_with() -> None:
    free, paced = Pace(None, 0.0), Pace(600, 0.0)
    for pace in (free, paced):
        pace.pause(5.0)
    assert free.start(1.0) == paced.start(1.0) == 5.0 and free.start(6.0) == 6.0
    starts = []
    for _ in range(20):
        starts.append(paced.start(5.0))
        paced.take(1, starts[-1])
    assert starts[0] == 5.0 and starts[-1] == pytest.approx(5 + 19 / (10 * USED))


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1), st.booleans()), max_size=80), st.floats(0.1, 5))
def test_the_budget_never_exceeds_its_limit(requests: list[tuple[float, float, bool]], limit: float) -> None:
    budget, held, paid = Budget(limit, 0.0), [], 0.0
    for most, share, comes in requests:
        if budget.fits(most):
            budget.reserve(most)
            held.append((most, share * most, comes))
        elif held:
            reserved, spent, comes = held.pop(0)
            paid += spent if comes else 0.0
            budget.settle(reserved, spent if comes else None)
    assert paid <= limit + 1e-9
    assert budget.spent + budget.lost + budget.reserved <= limit + 1e-9


def test_tokens_are_learned() -> None:
    usage = Usage(1000)
    assert usage.expected(300) == pytest.approx(300 / 3 + 1000)
    for _ in range(5):
        usage.learn(400, 100, 50)
    assert usage.expected(800) == 250


def test_a_stop_reaches_who_waits(ask: Ask) -> None:
    """For a start of the slow rate, and to be sent again."""

    async def scenario() -> None:
        critic = ask.prepare(
            lambda *_: Reply(status=429, headers={"Retry-After": "60"}), rows=3, client={"requests_per_minute": 0.001}
        )
        asking = asyncio.create_task(critic.ask(requests(3)))
        while not ask.server.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        critic.halt(UserError("enough"))
        with pytest.raises(UserError, match="enough"):
            await asyncio.wait_for(asking, 60)

    asyncio.run(scenario())
    assert len(ask.server.seen) == 1


def test_money_stops_only_when_nothing_in_flight_can_turn_out_cheaper(ask: Ask) -> None:
    """At their most, two requests fit into the limit; what answers really cost leaves room for many more."""
    most = ask.prepare(lambda *_: Reply(), **PRICES).budget
    with pytest.raises(StopAtBudget) as caught:
        ask(lambda *_: Reply(delay=0.02), rows=60, max_usd=0.045, **PRICES)
    assert most.reserved == 0 and 1 < ask.server.most_in_flight < 4
    bought = len(ask.server.seen)
    assert bought > 10 and f"stopped at {bought * 0.0015:.4f} USD" in str(caught.value)


def test_answers_and_timeouts_are_shown_as_they_come(ask: Ask) -> None:
    """The progress counts what has come, and names the key that decides how long is waited."""

    def script(content: str, before: int) -> Reply:
        if "Question 0?" in content:
            return Reply(delay=60 if before == 0 else 0)
        return Reply(finish="length") if "Question 1?" in content else Reply()

    ask(script, rows=6, client={"timeout_s": 2})
    assert ask.progress.done == 6, "a row counts once"
    assert "timeout 1 (resources.client.timeout_s = 2)" in ask.progress._text()
    assert ask.progress.failures == {"truncated": 1}
    assert ask.progress.numbers["in_flight"] == ask.progress.numbers["queue"] == 0
    assert ask.progress.numbers["retries"] == 1 and ask.progress.numbers["tokens"] == 6 * 150


def test_after_an_interrupt_nothing_is_sent_and_what_is_in_flight_is_kept(ask: Ask) -> None:
    """The first 16 are answered at once, eight more when the client knows of the interrupt."""
    noticed = threading.Event()

    def script(content: str, before: int) -> Reply:
        assert len(ask.server.seen) <= 16 or noticed.wait(60)
        return Reply()

    def interrupt() -> None:
        while len(ask.server.seen) < 16 + 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while not critic.stopped.is_set():
            time.sleep(0.01)
        noticed.set()

    critic = ask.prepare(script, rows=100)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(critic.ask(requests(100)))
    assert len(ask.server.seen) == 16 + 8
    assert len(ask.cache.answers) == len(ask.server.seen), "all of it had been paid for"


def test_more_slots_than_one_pool_has_connections_are_all_used(ask: Ask) -> None:
    used = threading.Event()

    def script(content: str, before: int) -> Reply:
        if ask.server.most_in_flight == 120:
            used.set()
        assert used.wait(60)
        return Reply()

    answers, _, server = ask(script, rows=130, client={"concurrency": 60}, clients=2)
    assert len(answers) == len(server.seen) == 130 and server.most_in_flight == 120


def test_every_price_has_a_public_source_and_a_date() -> None:
    sources = yaml.safe_load(TABLE.read_text())
    models = [model for source in sources for model in source["prices"]]
    assert len(models) == len(set(models)) > 15
    for source in sources:
        assert source["source"] and isinstance(source["date"], datetime.date)
        for asked, written in source["prices"].values():
            assert 0 <= asked <= written <= 200


def test_the_config_wins() -> None:
    assert prices(Critique(model="gpt-4.1")) == (2, 8)
    assert prices(Critique(model="gpt-4.1", usd_per_million_output=9)) == (2, 9)
    free = priced(Critique(model="gpt-4.1", usd_per_million_input=0, usd_per_million_output=0))
    assert (free.usd_per_million_input, free.usd_per_million_output) == (0, 0)


def test_unknown_prices() -> None:
    section = Critique(model="of-my-own", usd_per_million_input=1)
    assert not has_prices(section) and priced(section).usd_per_million_output == 0
    with pytest.raises(UserError, match=r"critique\.max_usd = 5, but no price of critique\.model = 'of-my-own'"):
        priced(section.model_copy(update={"max_usd": 5.0}))


def head(kind: str, remaining: str, reset: str, limit: str | None = None) -> dict[str, str]:
    """Headers of an endpoint."""
    known = {f"x-ratelimit-limit-{kind}": limit} if limit else {}
    return {f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset, **known}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        (head("requests", "3", "1s"), 0),
        (head("requests", "0", "6m0s"), 360),
        (head("requests", "0", "20ms"), 0.02),
        (head("requests", "0", "1m30.5s"), 90.5),
        (head("requests", "0", "7"), 7),
        (head("requests", "0", "60s", "120"), 0.5),
        (head("requests", "0", "1d"), 600),
        (head("requests", "0", "soon"), 0),
        (head("requests", "none", "9s"), 0),
        (head("tokens", "999", "9s"), 9),
        (head("tokens", "1000", "9s"), 0),
        (head("tokens", "0", "60s", "60000"), 1),
        (head("tokens", "0", "10s", "500"), 10),
        ({**head("requests", "0", "2s"), **head("tokens", "0", "3s")}, 3),
    ],
)
def test_seconds_to_hold(headers: dict[str, str], seconds: float) -> None:
    assert hold_s(headers, 1000) == pytest.approx(seconds)


def test_a_reset_may_be_a_moment() -> None:
    assert hold_s(head("requests", "0", str(time.time() + 30)), 1) == pytest.approx(30, abs=1)
