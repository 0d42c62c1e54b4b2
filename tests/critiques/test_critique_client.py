"""The client against a real HTTP server that misbehaves."""

import asyncio
import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minos_ray.critiques.budget import StopAtBudget
from minos_ray.critiques.cache import Answer, Cache, content_key
from minos_ray.critiques.client import Critic, EndpointGone, Request
from minos_ray.critiques.prompts import Case, label_aware
from minos_ray.errors import UserError
from minos_ray.progress import Progress
from minos_ray.store import Run
from tests.critiques.scripted import KEY, MakeConfig, Reply, Script, ScriptedServer, Serve


@dataclass
class Ask:
    """Calls of the client on a scripted server; what they left is kept, also when they raise."""

    path: Path
    serve: Serve
    make_config: MakeConfig

    def __call__(
        self, script: Script, rows: int = 1, client: dict[str, Any] | None = None, key: str = KEY, **critique: Any
    ) -> tuple[dict[str, Answer], Critic, ScriptedServer]:
        """Asks `rows` requests."""
        run = Run(str(self.path))
        self.server, self.cache = self.serve(script), Cache(run)
        config = self.make_config(run, self.server.url, client, **critique)
        critic = Critic(config.critique, config.resources.client, self.server.url, key, self.cache, 0)
        with Progress("critique", rows) as progress:
            answers = asyncio.run(critic.ask(requests(rows), rows, progress))
        return answers, critic, self.server


@pytest.fixture
def ask(tmp_path: Path, serve: Serve, make_config: MakeConfig) -> Ask:
    """A client and a server."""
    return Ask(tmp_path, serve, make_config)


def requests(rows: int) -> list[Request]:
    """Different questions about one solution."""
    steps = ["Step 1: 1 + 1 = 2", "The answer is: 2"]
    texts = [label_aware(Case(f"Question {i}?", steps, [1, 1], True, "0", None)) for i in range(rows)]
    return [Request(content_key("m", text, 0.0, 9), text) for text in texts]


def only(answers: dict[str, Answer]) -> Answer:
    """The one answer."""
    [answer] = answers.values()
    return answer


def test_text_tokens_and_cost_arrive(ask: Ask) -> None:
    answers, _, _ = ask(lambda *_: Reply(), usd_per_million_input=30, usd_per_million_output=60)
    answer = only(answers)
    assert answer.text.endswith("The final answer is True.") and answer.outcome == "answered"
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 50)
    assert answer.cost_usd == pytest.approx((100 * 30 + 50 * 60) / 1e6)
    assert list(ask.cache.answers.values()) == [answer]


def soon(seconds: float) -> str:
    """An HTTP date."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("Retry-After", lambda: "2", 2.0), ("retry-after-ms", lambda: "1300", 1.3), ("Retry-After", lambda: soon(3), 1.9)],
)
def test_retry_after_is_honoured(ask: Ask, name: str, value: Callable[[], str], least: float) -> None:
    def script(_: str, before: int) -> Reply:
        return Reply(status=429, headers={name: value()}) if before == 0 else Reply()

    answers, critic, server = ask(script)
    (first, _), (second, _) = server.seen
    assert second - first >= least, "without the header it would be one second at most"
    assert only(answers).outcome == "answered" and critic.retries == {"429": 1}


@pytest.mark.parametrize("value", ["nonsense", "-5", "", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_senseless_retry_after_does_no_harm(ask: Ask, value: str) -> None:
    answers, _, server = ask(lambda _, n: Reply(status=429, headers={"Retry-After": value}) if n == 0 else Reply())
    assert only(answers).outcome == "answered" and len(server.seen) == 2


BAD = {
    "500": Reply(status=500),
    "503": Reply(status=503),
    "408": Reply(status=408),
    "connection": Reply(cut=True),
    "timeout": Reply(delay=1.5),
    "bad_reply": Reply(body=b"<html>gateway</html>"),
}


@pytest.mark.parametrize("kind", BAD)
def test_passing_trouble_is_retried(ask: Ask, kind: str) -> None:
    client = {"timeout_s": 0.7}
    answers, critic, server = ask(lambda _, before: BAD[kind] if before == 0 else Reply(), client=client)
    assert only(answers).outcome == "answered"
    assert len(server.seen) == 2 and critic.retries == {kind: 1}


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'"text"', b'{"choices": []}', b'{"choices": [{}]}', b"", b"null"])
def test_200_without_a_completion_is_retried(ask: Ask, body: bytes) -> None:
    answers, critic, _ = ask(lambda _, before: Reply(body=body) if before == 0 else Reply())
    assert only(answers).outcome == "answered" and critic.retries == {"bad_reply": 1}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply(finish="length"), "truncated"),
        (Reply(text="", refusal="I cannot help with that."), "refused"),
        (Reply(finish="content_filter"), "refused"),
        (Reply(text=""), "answered"),
    ],
)
def test_how_an_answer_ended(ask: Ask, reply: Reply, outcome: str) -> None:
    assert only(ask(lambda *_: reply)[0]).outcome == outcome
    assert len(ask.cache.answers) == 1, "it was paid for"


def test_one_bad_request_is_set_aside(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=400) if "Question 3?" in content else Reply()

    answers, critic, server = ask(script, rows=8)
    outcomes = [answer.outcome for answer in answers.values()]
    assert outcomes.count("answered") == 7 and outcomes.count("bad_request") == 1
    assert server.times().most_common(1)[0][1] == 1, "a 400 is not retried"
    assert len(ask.cache.answers) == 7 and critic.complaints.total() == 1


@pytest.mark.parametrize("status", [400, 404])
def test_nothing_but_bad_requests_stops_with_what_was_said(ask: Ask, status: int) -> None:
    with pytest.raises(UserError, match=r"critique\.model = .*every request is refused.*scripted"):
        ask(lambda *_: Reply(status=status), rows=200)
    assert len(ask.server.seen) < 30


def test_wrong_key_stops_at_the_door(ask: Ask) -> None:
    with pytest.raises(UserError) as error:
        ask(lambda *_: Reply(), rows=50, key="sk-wrong-0123456789")
    assert "critic refused the key in $TEST_CRITIC_KEY (401)" in str(error.value)
    assert "\n" not in str(error.value) and "sk-wrong" not in str(error.value)
    assert ask.server.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_key_refused_later_stops_before_more_is_asked(ask: Ask, status: int) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=status) if len(ask.server.seen) > 20 else Reply(delay=0.01)

    with pytest.raises(UserError, match=rf"refused the key in \$TEST_CRITIC_KEY \({status}\)"):
        ask(script, rows=300)
    assert len(ask.server.seen) <= 20 + 2 * 8
    assert len(ask.cache.answers) == ask.server.sent[200] > 10, "whatever was answered is kept"


def test_no_quota_stops(ask: Ask) -> None:
    body = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    with pytest.raises(UserError, match="no quota left"):
        ask(lambda *_: Reply(status=429, body=body), rows=50)
    assert len(ask.server.seen) <= 8


def test_unreachable_names_the_key_of_the_config(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(Run(str(tmp_path)), "http://127.0.0.1:9/v1")
    critic = Critic(config.critique, config.resources.client, config.critique.base_url, KEY, Cache(Run(config.run)), 0)
    with Progress("critique", 1) as progress, pytest.raises(UserError) as error:
        asyncio.run(critic.ask(requests(1), 1, progress))
    assert str(error.value).startswith("critique.base_url = 'http://127.0.0.1:9/v1' cannot be reached: ")


def test_exhausted_retries_fail_the_row_and_are_not_kept(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=500) if "Question 1?" in content else Reply()

    answers, _, server = ask(script, rows=5, client={"max_retries": 1})
    assert sorted(answer.outcome for answer in answers.values()) == ["answered"] * 4 + ["failed"]
    assert sorted(server.times().values()) == [1, 1, 1, 1, 2] and len(ask.cache.answers) == 4


def test_a_dead_endpoint_stops_the_work(ask: Ask) -> None:
    with pytest.raises(EndpointGone, match=r"failed 1 times each \(503"):
        ask(lambda *_: Reply(status=503), rows=300, client={"max_retries": 0})
    assert len(ask.server.seen) < 30


def test_no_more_in_flight_than_asked_for(ask: Ask) -> None:
    answers, _, server = ask(lambda *_: Reply(delay=0.02), rows=60, client={"concurrency": 5})
    assert len(answers) == 60 and 1 < server.most_in_flight <= 5
    assert server.times().total() == 60


def test_a_slow_answer_holds_up_nobody(ask: Ask) -> None:
    _, _, server = ask(lambda content, _: Reply(delay=3 if "Question 0?" in content else 0.01), rows=100)
    first = server.seen[0][0]
    assert all(moment - first < 3 for moment, _ in server.seen), "the others were all asked for meanwhile"


@pytest.mark.parametrize("usage", [True, False])
def test_the_money_limit_holds_with_many_in_flight(ask: Ask, usage: bool) -> None:
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_usd": 0.2, "max_tokens": 50}
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = 0\.2: stopped at"):
        ask(lambda *_: Reply(usage=usage, delay=0.005), rows=500, **prices)
    spent = ask.cache.spent_usd
    assert 0.15 < spent <= 0.2, "nearly all of it, never more"
    assert len(ask.cache.answers) == len(ask.server.seen), "all that was asked for was kept"


def test_the_money_limit_counts_what_earlier_runs_spent(ask: Ask) -> None:
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_usd": 0.2, "max_tokens": 50}
    for _ in range(2):
        with pytest.raises(StopAtBudget):
            ask(lambda *_: Reply(), rows=500, **prices)
    assert ask.cache.spent_usd <= 0.2


def test_the_key_is_not_in_what_the_endpoint_is_quoted_with(ask: Ask) -> None:
    body = f'{{"error": {{"message": "bad header {KEY}", "code": null}}}}'.encode()
    _, critic, _ = ask(lambda c, _: Reply(status=400, body=body) if "Question 1?" in c else Reply(), rows=3)
    [told] = critic.complaints
    assert "bad header ***" in told and KEY not in told
