"""The client against a real HTTP server that misbehaves: retries, limits of rate and money, interrupts."""

import email.utils
import itertools
import json
import threading
import time
from collections.abc import Callable

import pytest

from minos_ray.critiques.limits import StopAtBudget
from tests.critiques.asking import Ask, moments, only
from tests.critiques.scripted import KEY, Reply, completion, refusal


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
    "timeout": Reply(delay=60),
    "bad_reply": Reply(body=b"<html>gateway</html>"),
}


@pytest.mark.parametrize("kind", BAD)
def test_passing_trouble_is_retried(ask: Ask, kind: str) -> None:
    client = {"timeout_s": 1.5 if kind == "timeout" else 60}
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


def test_exhausted_retries_fail_the_row_and_are_not_kept(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=500) if "Question 1?" in content else Reply()

    answers, _, server = ask(script, rows=5, client={"max_retries": 1})
    assert sorted(answer.outcome for answer in answers.values()) == ["answered"] * 4 + ["failed"]
    assert sorted(server.times().values()) == [1, 1, 1, 1, 2] and len(ask.cache.answers) == 4


def test_no_more_in_flight_than_asked_for(ask: Ask) -> None:
    answers, _, server = ask(lambda *_: Reply(delay=0.02), rows=60, client={"concurrency": 5})
    assert len(answers) == 60 and 1 < server.most_in_flight <= 5
    assert server.times().total() == 60


def test_a_slow_answer_holds_up_nobody(ask: Ask) -> None:
    meanwhile = threading.Event()

    def script(content: str, _: int) -> Reply:
        if len(ask.server.seen) == 100:
            meanwhile.set()
        if "Question 0?" in content:
            assert meanwhile.wait(60), "the others were not all asked for meanwhile"
        return Reply(delay=0.01)

    answers, _, server = ask(script, rows=100)
    assert meanwhile.is_set() and len(answers) == len(server.seen) == 100


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("usage", [True, False])
def test_the_money_limit_holds_with_many_in_flight(ask: Ask, usage: bool, clients: int) -> None:
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_usd": 0.2, "max_tokens": 50}
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = 0\.2: stopped at"):
        ask(lambda *_: Reply(usage=usage, delay=0.005), rows=500, clients=clients, **prices)
    spent = ask.cache.spent_usd
    assert 0.15 < spent <= 0.2, "nearly all of it, never more"
    assert ask.critic.budget.reserved == pytest.approx(0)
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


def test_the_money_limit_counts_what_may_have_been_billed_and_never_came(ask: Ask) -> None:
    """A cut connection after the answer was made costs the user, too."""
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_usd": 0.2, "max_tokens": 50}
    with pytest.raises(StopAtBudget, match=r"and at most 0\.\d+ on answers that never came"):
        ask(lambda c, before: Reply(cut=before == 0 and "0?" in c, delay=0.01), rows=500, clients=2, **prices)
    billed = len(ask.server.seen) * (100 + 50) * 10 / 1e6
    assert 0.1 < billed <= 0.2


@pytest.mark.parametrize("clients", [1, 3])
def test_requests_per_minute_is_held_by_all_clients_together(ask: Ask, clients: int) -> None:
    start = time.monotonic()
    answers, _, server = ask(
        lambda *_: Reply(delay=0.02), rows=90, clients=clients, client={"requests_per_minute": 1800}
    )
    came = moments(server)
    assert len(answers) == 90
    for i, start in enumerate(came):
        within = sum(start <= moment < start + 1 for moment in came[i:])
        assert within <= 30 * 1.5 + 1, "30 a second, and half a second may be caught up with"
    assert server.seen[-1][0] - start >= 89 / 30 - 0.3


def test_tokens_per_minute_is_held_with_what_the_answers_really_took(ask: Ask) -> None:
    """Before anything is known a request counts 1000 tokens and more; the answers say 150."""
    limits = {"tokens_per_minute": 150 * 30 * 60}
    start = time.monotonic()
    _, _, server = ask(lambda *_: Reply(), rows=100, clients=2, client=limits, max_tokens=1000)
    assert server.seen[-1][0] - start >= 99 / 30 - 0.5
    settled = [moment for moment in moments(server) if moment > 1.5]
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(settled))[:-3]  # but for the machine's own
    assert len(gaps) > 30 * sum(gaps) * 0.7, "once they are known, most of the allowed rate is used"


def test_retry_after_of_one_client_slows_the_others(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        if "Question 30?" in content and before == 0:
            return Reply(status=429, headers={"Retry-After": "2"})
        return Reply(delay=0.05)

    _, seen, server = ask(script, rows=200, clients=3, client={"concurrency": 4})
    came = moments(server)
    gaps = [(later - earlier, earlier) for earlier, later in itertools.pairwise(came)]
    longest, begin = max(gaps)
    assert seen.retries == {"429": 1} and longest > 1.5
    assert sum(begin - 0.1 < moment <= begin for moment in came) < 40 and came[-1] > begin + 1.5


def test_ratelimit_headers_slow_everybody(ask: Ask) -> None:
    """Nothing is left, and 60 are there again in 60 s: one per second."""
    head = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-reset-requests": "1m0s",
    }
    _, _, server = ask(lambda *_: Reply(headers=head), rows=5, clients=2, client={"concurrency": 1})
    came = moments(server)
    assert came[-1] >= 2 - 0.2, "two at once, then one second each time"


def test_a_slow_answer_gets_more_time_and_is_not_begun_again_for_ever(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        if "Question 2?" in content:
            return Reply(delay=1.2 if before else 60)
        return Reply(delay=60 if "Question 1?" in content else 0)

    answers, seen, server = ask(script, rows=4, client={"timeout_s": 1})
    assert sorted(answer.outcome for answer in answers.values()) == ["answered"] * 3 + ["failed"]
    assert sorted(server.times().values()) == [1, 1, 2, 3] and ask.critic.rules.errors == {"timeout": 4}
    assert set(seen.complaints) == {"timeout: no answer in resources.client.timeout_s = 1"}


def test_odd_replies_are_bought_once_and_read_past(ask: Ask) -> None:
    bodies = [completion([{"type": "thinking"}]), completion(7), {"choices": [{"message": "x"}]}, completion("\ud83d")]
    odd = {f"Question {i}?": Reply(body=json.dumps(value).encode()) for i, value in enumerate(bodies)}
    for _ in range(2):
        answers, _, server = ask(lambda c, _: next((odd[q] for q in odd if q in c), Reply()), rows=8)
        assert len(answers) == 8 and {answer.outcome for answer in answers.values()} == {"answered", "bad_reply"}
        assert max(server.times().values(), default=0) <= 1
    assert server.seen == [], "all of it is in the cache"


def test_further_parameters_and_headers_are_sent_and_no_secret_of_them_is_told(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "s3cret-0123")
    keys = {"top_p": 0.9, "reasoning_effort": "low", "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    told = refusal(400, "header api-key: s3cret-0123 is odd")
    _, seen, server = ask(
        lambda c, _: told if "Question 1?" in c else Reply(),
        rows=3,
        extra_headers={"X-Org": "minos", "api-key": "$GATEWAY_KEY"},
        **keys,
    )
    assert all(body | keys.pop("extra_body", {}) | keys == body for body in server.bodies)
    assert {(head["x-org"], head["api-key"]) for head in server.headers} == {("minos", "s3cret-0123")}
    assert [text.endswith("api-key: *** is odd") for text in seen.complaints] == [True]


def test_the_query_of_an_address_is_that_of_each_request(ask: Ask) -> None:
    _, _, server = ask(lambda *_: Reply(), rows=2, query="?api-version=2024-10-21")
    assert set(server.paths) == {"/v1/chat/completions?api-version=2024-10-21"}
