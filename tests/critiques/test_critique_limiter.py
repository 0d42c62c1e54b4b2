"""The limiter's arithmetic: pace, money, tokens, and what a dead client held."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques import limiter as module
from minos_ray.critiques.budget import Budget
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.limiter import Done, Limiter, Stop, Want
from minos_ray.critiques.online import Tally
from minos_ray.critiques.pace import SLACK_S, USED, Pace
from minos_ray.critiques.usage import Usage
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Run

PRICES = {"usd_per_million_input": 10, "usd_per_million_output": 10}


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


def shared(max_usd: float | None = None, **limits: float) -> Limiter:
    """A limiter for 100 rows."""
    return Limiter(Critique(max_usd=max_usd, **PRICES), Client(**limits), 0.0, 100)


def wants(count: int, usd: float = 0.01) -> list[Want]:
    """Requests of 300 bytes."""
    return [Want(ticket, 300, usd) for ticket in range(count)]


def test_what_a_dead_client_held_comes_back() -> None:
    async def scenario() -> None:
        limiter = shared(max_usd=0.1)
        await limiter.hello("a")
        await limiter.hello("b")
        assert len((await limiter.turn("b", wants(1), [])).starts) == 1
        await limiter.turn("b", [], [Done(0, 0.001, 100, 50)])
        assert len((await limiter.turn("a", wants(20), [])).starts) == 9
        assert (await limiter.turn("b", wants(1), [])).starts == []
        await limiter.hello("a")  # its follower has the same name
        assert limiter.budget.reserved == pytest.approx(0)
        assert limiter.budget.lost == pytest.approx(9 * 0.001), "they may have been billed, at the dearest price so far"
        assert len((await limiter.turn("b", wants(20), [])).starts) == 9

    asyncio.run(scenario())


def test_a_client_that_never_comes_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(module, "SILENT_S", 0.3)
        limiter = shared(max_usd=0.1)
        await limiter.hello("a")
        await limiter.hello("b")
        await limiter.turn("b", wants(1), [])
        await limiter.turn("b", [], [Done(0, 0.001, 100, 50)])
        await limiter.turn("a", wants(20), [])
        starts: list[float] = []
        while not starts:
            turn = await limiter.turn("b", wants(1), [])
            assert turn.stop is None
            starts = turn.starts
        await asyncio.wait_for(limiter.drained(), 5)

    asyncio.run(scenario())


def test_a_stop_reaches_who_waits() -> None:
    async def scenario() -> None:
        limiter = shared(requests_per_minute=0.001)
        await limiter.turn("a", wants(1), [])
        waiting = asyncio.create_task(limiter.turn("a", wants(1), []))
        await asyncio.sleep(0)
        await limiter.halt(Stop("user", "enough"))
        assert (await waiting) == ([], Stop("user", "enough"))

    asyncio.run(scenario())


def test_money_stops_only_when_nothing_in_flight_can_turn_out_cheaper() -> None:
    async def scenario() -> None:
        limiter = shared(max_usd=0.025)
        assert len((await limiter.turn("a", wants(5), [])).starts) == 2
        assert (await limiter.turn("b", wants(5), [])).stop is None
        turn = await limiter.turn("b", wants(5), [Done(99, 1.0)])
        assert turn.stop is None, "what was never granted is not booked"
        await limiter.turn("a", [], [Done(0, 0.01), Done(1, 0.01)])
        turn = await limiter.turn("b", wants(5), [])
        assert turn.stop is not None and turn.stop.kind == "budget" and "stopped at 0.0200 USD" in turn.stop.message

    asyncio.run(scenario())


def test_answers_and_timeouts_are_shown_before_their_batch_is_complete(tmp_path: Path) -> None:
    """The progress counts what has come, and names the key that decides how long is waited."""

    async def scenario() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        limiter = shared()
        await limiter.turn("a", wants(20), [])
        late = [Done(ticket, None, error="timeout", told="timeout") for ticket in range(3)]
        ended = [Done(3, outcome="ok"), Done(4, outcome="truncated"), Done(5, outcome="failed", error="500")]
        await limiter.turn("a", [], [*late, *ended])
        return (await limiter.load(), *await limiter.ends())

    with Progress("critique", 100, "critiques", 40) as progress:
        tally = Tally(Cache(Run(str(tmp_path))), progress, "resources.client.timeout_s = 120")
        tally.look(*asyncio.run(scenario()))
        assert progress.done == 43 and "timeout 3 (resources.client.timeout_s = 120)" in progress._text()
        assert progress.failures == {"truncated": 1, "failed": 1} and progress.numbers["in_flight"] == 14
        row = {"key": "k", "text": "x", "outcome": "answered", "prompt_tokens": 1, "completion_tokens": 1}
        tally.add({**row, "cost_usd": 0.0, "retries": ["timeout"], "complaints": []})
        assert progress.done == 43, "a row counts once"
