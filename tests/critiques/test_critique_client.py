"""The client against a real HTTP server that misbehaves."""

import asyncio
import contextlib
import email.utils
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from minos_ray.critiques.cache import Answer, Cache, content_key
from minos_ray.critiques.client import Critic, Endpoint, Request, headers, preflight
from minos_ray.critiques.gate import Gate
from minos_ray.critiques.limiter import Limiter, Turn
from minos_ray.critiques.online import ERRORS, EndpointGone, StopAtBudget
from minos_ray.critiques.prompts import Case, label_aware
from minos_ray.critiques.stage import critique_status
from minos_ray.errors import UserError
from minos_ray.store.run import Run
from tests.critiques.scripted import (
    KEY,
    MakeConfig,
    Reply,
    Script,
    ScriptedHandler,
    ScriptedServer,
    Serve,
    completion,
    refusal,
)


class Seen:
    """What went wrong on the way to the answers."""

    def __init__(self) -> None:
        self.retries: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()


@dataclass
class Ask:
    """Clients with one limiter, in this process, on a scripted server; what they left is kept, also when they raise."""

    path: Path
    serve: Serve
    make_config: MakeConfig

    def __call__(
        self,
        script: Script,
        rows: int = 1,
        client: dict[str, Any] | None = None,
        key: str = KEY,
        clients: int = 1,
        models: int = 200,
        query: str = "",
        **critique: Any,
    ) -> tuple[dict[str, Answer], Seen, ScriptedServer]:
        """Asks `rows` requests, spread over `clients` clients."""
        run = Run(str(self.path))
        self.server, self.cache = self.serve(script), Cache(run)
        self.server.models = models
        config = self.make_config(run, self.server.url, client, **critique)
        url = self.server.url + query
        endpoint = Endpoint(config.critique, config.resources.client, url, key, headers(config.critique))
        return asyncio.run(self._ask(endpoint, requests(rows), clients))

    async def _ask(
        self, endpoint: Endpoint, wanted: list[Request], clients: int
    ) -> tuple[dict[str, Answer], Seen, ScriptedServer]:
        await preflight(endpoint)
        self.limiter = Limiter(endpoint.section, endpoint.limits, self.cache.spent_usd, len(wanted))
        gates = [Gate(self.limiter.turn, f"client {i}") for i in range(clients)]
        critics = [Critic(endpoint, self.cache, gate, f"{i}", critique_status) for i, gate in enumerate(gates)]
        calls = [asyncio.create_task(gate.run()) for gate in gates]
        shares = [wanted[i::clients] for i in range(clients)]
        asked = (critic.ask(share) for critic, share in zip(critics, shares, strict=True))
        replies = list(itertools.chain(*await asyncio.gather(*asked)))
        seen = Seen()
        for reply in replies:
            seen.retries.update(reply.retries)
            seen.complaints.update(reply.complaints)
        for call in calls:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
        for critic in critics:
            await critic.api.close()
        stop, _ = await self.limiter.state()
        if stop:
            raise ERRORS[stop.kind](stop.message)
        keys = [request.key for share in shares for request in share]
        return {k: r.answer for k, r in zip(keys, replies, strict=True)}, seen, self.server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait of a retry, when the endpoint asks for none, is short."""
    monkeypatch.setattr("minos_ray.critiques.retry.FIRST_WAIT_S", 0.05)


@pytest.fixture
def ask(tmp_path: Path, serve: Serve, make_config: MakeConfig) -> Ask:
    """A client and a server."""
    return Ask(tmp_path, serve, make_config)


def requests(rows: int) -> list[Request]:
    """Different questions about one solution."""
    steps = ["Step 1: 1 + 1 = 2", "The answer is: 2"]
    texts = [label_aware(Case(f"Question {i}?", steps, [1, 1], True, "0", None)) for i in range(rows)]
    return [Request(content_key("m", text, 0.0, 9), text, wanted=(2,)) for text in texts]


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
    with pytest.raises(UserError) as error:
        asyncio.run(preflight(Endpoint(config.critique, config.resources.client, config.critique.base_url, KEY)))
    assert str(error.value).startswith("critique.base_url = 'http://127.0.0.1:9/v1' cannot be reached: ")


def test_exhausted_retries_fail_the_row_and_are_not_kept(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=500) if "Question 1?" in content else Reply()

    answers, _, server = ask(script, rows=5, client={"max_retries": 1})
    assert sorted(answer.outcome for answer in answers.values()) == ["answered"] * 4 + ["failed"]
    assert sorted(server.times().values()) == [1, 1, 1, 1, 2] and len(ask.cache.answers) == 4


def test_a_dead_endpoint_stops_the_work(ask: Ask) -> None:
    with pytest.raises(EndpointGone, match=r"4 requests failed after all retries \(503"):
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


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("usage", [True, False])
def test_the_money_limit_holds_with_many_in_flight(ask: Ask, usage: bool, clients: int) -> None:
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_usd": 0.2, "max_tokens": 50}
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = 0\.2: stopped at"):
        ask(lambda *_: Reply(usage=usage, delay=0.005), rows=500, clients=clients, **prices)
    spent = ask.cache.spent_usd
    assert 0.15 < spent <= 0.2, "nearly all of it, never more"
    assert ask.limiter.budget.reserved == pytest.approx(0)
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


def moments(server: ScriptedServer) -> list[float]:
    """When the requests came, from the first on."""
    return [moment - server.seen[0][0] for moment, _ in server.seen]


@pytest.mark.parametrize("clients", [1, 3])
def test_requests_per_minute_is_held_by_all_clients_together(ask: Ask, clients: int) -> None:
    answers, _, server = ask(
        lambda *_: Reply(delay=0.02), rows=90, clients=clients, client={"requests_per_minute": 1800}
    )
    came = moments(server)
    assert len(answers) == 90
    for i, start in enumerate(came):
        within = sum(start <= moment < start + 1 for moment in came[i:])
        assert within <= 30 * 1.5 + 1, "30 a second, and half a second may be caught up with"
    assert came[-1] >= 89 / 30 - 0.3


def test_tokens_per_minute_is_held_with_what_the_answers_really_took(ask: Ask) -> None:
    """Before anything is known a request counts 1000 tokens and more; the answers say 150."""
    limits = {"tokens_per_minute": 150 * 30 * 60}
    _, _, server = ask(lambda *_: Reply(), rows=100, clients=2, client=limits, max_tokens=1000)
    came = moments(server)
    assert came[-1] >= 99 / 30 - 0.5
    settled = [moment for moment in came if moment > 1.5]
    assert len(settled) > 30 * (came[-1] - 1.5) * 0.7, "once they are known, most of the allowed rate is used"


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


def critique_json(steps: list[tuple[str, bool]], final: bool) -> str:
    """A critique as JSON."""
    return json.dumps({"steps": [{"explanation": e, "correct": c} for e, c in steps], "final": final})


def test_structured_answers_become_the_one_text_form(ask: Ask) -> None:
    text = critique_json([("Step 1: two\nis right. This step is correct.", True), ("", False)], False)
    answer = only(ask(lambda *_: Reply(text=text), structured=True)[0])
    assert answer.text == (
        "Step 1: two is right. This step is correct.\nStep 2: This step is incorrect.\nThe final answer is False."
    )
    [body] = ask.server.bodies
    assert body["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("text", ["Sure!", "[]", '{"steps": []}', '{"steps": [{}], "final": true}', "[" * 100_000])
def test_an_answer_that_is_no_json_is_set_aside_with_its_text(ask: Ask, text: str) -> None:
    answers, _, server = ask(
        lambda c, _: Reply(text=text if "Question 1?" in c else critique_json([("x", True)], True)),
        rows=4,
        structured=True,
    )
    spoilt = [answer for answer in answers.values() if answer.outcome == "bad_json"]
    assert [answer.text for answer in spoilt] == [text] and spoilt[0].completion_tokens == 50
    assert len(ask.cache.answers) == len(server.seen) == 4, "it was paid for, so it is kept and not asked again"


def test_an_endpoint_that_does_not_know_structured_output(ask: Ask) -> None:
    body = b'{"error": {"message": "response_format json_schema is not supported", "code": null}}'
    with pytest.raises(UserError, match=r"response_format.*set critique\.structured=false"):
        ask(lambda *_: Reply(status=400, body=body), rows=300, structured=True)
    with pytest.raises(UserError, match=r"no answer is JSON of the given schema; set critique\.structured=false"):
        ask(lambda *_: Reply(text="Step 1: fine."), rows=300, structured=True)
    assert len(ask.server.seen) < 40


def test_what_newer_models_take(ask: Ask) -> None:
    ask(lambda *_: Reply(), token_limit="max_completion_tokens", temperature=None, max_tokens=77)
    [body] = ask.server.bodies
    assert body["max_completion_tokens"] == 77 and not body.keys() & {"max_tokens", "temperature", "response_format"}
    told = b'{"error": {"message": "Unsupported parameter: use max_completion_tokens instead", "code": null}}'
    with pytest.raises(UserError, match=r"set critique\.token_limit=max_completion_tokens"):
        ask(lambda *_: Reply(status=400, body=told), rows=300)
    assert len(ask.server.seen) <= 16


TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 8192 tokens "
    "and your request has 8000 input tokens"
)
FLAGGED = "Invalid prompt: your prompt 'The temperature fell by 5 degrees' was flagged"


@pytest.mark.parametrize(
    "refused",
    [
        refusal(400, TOO_LARGE),
        refusal(400, "max_completion_tokens=4096 cannot be greater than max_model_len=2048"),
        refusal(400, FLAGGED),
        refusal(400, "'temperature' is not supported", param="temperature"),
        refusal(403, "openai/gpt-4 requires moderation. Your input was flagged for violence", code=403),
        refusal(403, "Forbidden"),
        refusal(404, "nothing here"),
        refusal(413, "too large"),
        Reply(body=json.dumps({"choices": None, "error": {"message": TOO_LARGE, "code": 400}}).encode()),
    ],
)
@pytest.mark.parametrize("rows", [[0], [5], [7, 20, 31, 50]])
def test_a_refusal_of_some_rows_is_theirs(ask: Ask, refused: Reply, rows: list[int]) -> None:
    asked = {f"Question {row}?" for row in rows}
    answers, _, server = ask(lambda c, _: refused if any(q in c for q in asked) else Reply(delay=0.002), rows=60)
    outcomes = Counter(answer.outcome for answer in answers.values())
    assert outcomes == {"answered": 60 - len(rows), "bad_request": len(rows)}
    assert max(server.times().values()) == 1 and len(ask.cache.answers) == 60 - len(rows)


@pytest.mark.parametrize(
    ("refused", "asked", "advice"),
    [
        (refusal(400, "no", param="max_tokens", code="unsupported_parameter"), {}, "set critique.token_limit=max_comp"),
        (
            refusal(400, "Unrecognized request argument supplied: max_completion_tokens"),
            {"token_limit": "max_completion_tokens"},
            "set critique.token_limit=max_tokens",
        ),
        (refusal(400, "Unsupported value: 'temperature' does not support 0"), {}, "leave critique.temperature empty"),
        (refusal(400, "no", param="temperature", code="unsupported_value"), {}, "leave critique.temperature empty"),
        (refusal(403, "no such right"), {}, r"critic refused the key in \$TEST_CRITIC_KEY \(403\).*no such right"),
        (refusal(404, "The model `m` does not exist"), {}, "every request is refused: 404: .*does not exist"),
        (Reply(body=json.dumps({"error": {"message": "no credits", "code": 402}}).encode()), {}, "no quota left"),
        (refusal(429, "no", type="insufficient_quota"), {}, "no quota left"),
    ],
)
def test_what_is_meant_for_every_request_stops_after_a_few(
    ask: Ask, refused: Reply, asked: dict[str, Any], advice: str
) -> None:
    with pytest.raises(UserError, match=advice):
        ask(lambda *_: refused, rows=300, **asked)
    assert len(ask.server.seen) <= 3 + 8


USELESS = {
    "truncated": (Reply(text="", finish="length"), r"critique\.max_tokens = 1024; raise critique\.max_tokens"),
    "empty": (
        Reply(body=json.dumps({"choices": [{"message": {"content": "", "reasoning": "x"}}]}).encode()),
        r"raise it, or set critique\.reasoning_effort: the text is in 'reasoning_content'",
    ),
    "no_verdict": (
        Reply(text="<think>hm</think>I like it."),
        r"see critique\.prompt = .*: one begins '(?:I like it\.|Sure!)'",
    ),
    "wrong_step_count": (Reply(text="The final answer is True."), r"see critique\.prompt"),
    "refused": (Reply(text="", refusal="I cannot"), r"content filter"),
    "bad_request": (refusal(400, "no"), "every request is refused: 400: "),
}


@pytest.mark.parametrize("status", USELESS)
@pytest.mark.parametrize("mixed", [False, True])
def test_answers_of_which_none_can_be_used_stop_the_work_and_name_the_key(ask: Ask, status: str, mixed: bool) -> None:
    reply, advice = USELESS[status]
    others = itertools.cycle([reply, reply, Reply(text="Sure!") if mixed else reply])
    with pytest.raises(UserError, match=rf"none of \d+ answers can be used \(.*'{status}': \d+.*{advice}"):
        ask(lambda *_: next(others), rows=300)
    assert 16 <= len(ask.server.seen) <= 16 + 8 + 8


@pytest.mark.parametrize("status", USELESS)
def test_a_good_answer_among_the_first_goes_on(ask: Ask, status: str) -> None:
    useless = replace(USELESS[status][0], delay=0.03)
    answers, _, _ = ask(lambda c, _: Reply() if "Question 3?" in c else useless, rows=100)
    assert len(answers) == 100 and ask.limiter.trouble.statuses == {"ok": 1, status: 99}


def test_replies_that_are_no_completions_stop_the_work(ask: Ask) -> None:
    with pytest.raises(UserError, match=r"no reply is a chat completion; see critique\.base_url: .*Ollama is running"):
        ask(lambda *_: Reply(body=b"Ollama is running"), rows=300)
    assert len(ask.server.seen) <= 16 + 16


def test_the_words_of_an_error_in_a_reply_are_told(ask: Ask) -> None:
    said = "Rate limit exceeded: free-models-per-day"
    reply = Reply(body=json.dumps({"choices": None, "error": {"message": said, "code": 429}}).encode())
    with pytest.raises(EndpointGone, match=rf"429: {said}"):
        ask(lambda *_: reply, rows=300, client={"max_retries": 1})


def test_a_list_of_models_that_is_refused_is_no_refusal_of_the_chat(ask: Ask) -> None:
    for models in (401, 403, 404, 405):
        assert len(ask(lambda *_: Reply(), rows=3, models=models)[0]) == 3
    with pytest.raises(UserError, match=r"critic refused the key in \$TEST_CRITIC_KEY \(401\)"):
        ask(lambda *_: Reply(), models=401, key="sk-wrong-0123456789")
    assert ask.server.seen == []


@pytest.mark.parametrize(
    ("base_url", "advice"),
    [
        ("HOST", r"is it critique\.base_url=http://127\.0\.0\.1:\d+/v1 \?"),
        ("HOST/v1/chat/completions", r"leave the end out: critique\.base_url=http://127\.0\.0\.1:\d+/v1$"),
        ("HOST/v1/models/", r"leave the end out: critique\.base_url=http://127\.0\.0\.1:\d+/v1$"),
        ("HOST/v2", r"every request is refused: 404: .*scripted$"),
    ],
)
def test_a_wrong_address_is_told_before_anything_is_asked(
    tmp_path: Path, serve: Serve, make_config: MakeConfig, base_url: str, advice: str
) -> None:
    server = serve(lambda *_: Reply())
    url = base_url.replace("HOST", server.url.removesuffix("/v1"))
    config = make_config(Run(str(tmp_path)), url)
    with pytest.raises(UserError, match=advice):
        asyncio.run(preflight(Endpoint(config.critique, config.resources.client, url, KEY)))
    assert server.seen == []


def test_a_slow_answer_gets_more_time_and_is_not_begun_again_for_ever(ask: Ask) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(delay=9 if "Question 1?" in content else 0.7 if "Question 2?" in content else 0)

    answers, seen, server = ask(script, rows=4, client={"timeout_s": 0.5})
    assert sorted(answer.outcome for answer in answers.values()) == ["answered"] * 3 + ["failed"]
    assert sorted(server.times().values()) == [1, 1, 2, 3] and ask.limiter.trouble.errors == {"timeout": 4}
    assert set(seen.complaints) == {"timeout: no answer in resources.client.timeout_s = 0.5"}


def test_odd_replies_are_bought_once_and_read_past(ask: Ask) -> None:
    bodies = [completion([{"type": "thinking"}]), completion(7), {"choices": [{"message": "x"}]}, completion("\ud83d")]
    odd = {f"Question {i}?": Reply(body=json.dumps(value).encode()) for i, value in enumerate(bodies)}
    for _ in range(2):
        answers, _, server = ask(lambda c, _: next((odd[q] for q in odd if q in c), Reply()), rows=8)
        assert len(answers) == 8 and {answer.outcome for answer in answers.values()} == {"answered", "bad_reply"}
        assert max(server.times().values(), default=0) <= 1
    assert server.seen == [], "all of it is in the cache"


def test_a_gate_ends_with_its_task_also_when_the_cancel_comes_with_news() -> None:
    async def scenario() -> None:
        async def turn(*_: Any) -> Turn:
            return Turn([], None)

        gate = Gate(turn, "a")
        task = asyncio.create_task(gate.run())
        await asyncio.sleep(0.01)
        gate.news.set()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert task in done and task.cancelled()

    asyncio.run(scenario())


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


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"reasoning_effort": "max"}, "leave critique.reasoning_effort empty"),
        ({"top_p": 0.9}, "leave critique.top_p empty"),
        ({"extra_body": {"top_k": 3}}, "take critique.extra_body.top_k out"),
    ],
)
def test_a_further_parameter_that_a_model_does_not_take_is_named(ask: Ask, keys: dict[str, Any], told: str) -> None:
    name = next(iter(keys.get("extra_body", keys)))
    with pytest.raises(UserError, match=told):
        ask(lambda *_: refusal(400, f"Unknown parameter: '{name}'.", param=name), rows=300, **keys)
    assert len(ask.server.seen) <= 3 + 8


@pytest.mark.parametrize("status", [200, 405])
def test_an_address_of_web_pages_is_told_before_anything_is_asked(
    tmp_path: Path, serve: Serve, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As of a server's own page, or of a site that answers every path with one."""
    page, send = b"<html>Ollama is running</html>", ScriptedHandler._send
    monkeypatch.setattr(ScriptedHandler, "do_GET", lambda self: send(self, 200, page, {}))
    monkeypatch.setattr(ScriptedHandler, "do_POST", lambda self: send(self, status, page, {}))
    url = serve(lambda *_: Reply()).url.removesuffix("/v1")
    config = make_config(Run(str(tmp_path)), url)
    with pytest.raises(UserError, match=r"critique\.base_url = .*; is it critique\.base_url=http://.*/v1 \?"):
        asyncio.run(preflight(Endpoint(config.critique, config.resources.client, url, KEY)))


def test_the_query_of_an_address_is_that_of_each_request(ask: Ask) -> None:
    _, _, server = ask(lambda *_: Reply(), rows=2, query="?api-version=2024-10-21")
    assert set(server.paths) == {"/v1/chat/completions?api-version=2024-10-21"}


def test_refusals_that_come_before_slower_answers_are_those_of_their_rows(ask: Ask) -> None:
    """A moderated input is refused at once, while the answers to the others take their time."""

    def script(content: str, _: int) -> Reply:
        row = int(content.partition("Question ")[2].partition("?")[0])
        return refusal(403, "Forbidden") if row < 4 else Reply(delay=0.3)

    answers, _, server = ask(script, rows=20)
    assert Counter(answer.outcome for answer in answers.values()) == {"answered": 16, "bad_request": 4}
    assert max(server.times().values()) == 1
