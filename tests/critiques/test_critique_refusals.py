"""What the client makes of refusals and of answers that cannot be used: set aside, or a reason to stop."""

import asyncio
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minos_ray.critiques.endpoint import Endpoint, preflight
from minos_ray.critiques.limits import EndpointGone
from minos_ray.errors import UserError
from minos_ray.store.run import Run
from tests.critiques.asking import Ask, only
from tests.critiques.scripted import KEY, MakeConfig, Reply, ScriptedHandler, Serve, refusal


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
        server = ask.server
        if content in {seen for _, seen in server.seen[:20]}:
            return Reply(delay=0.01)
        # After the answers: a late one would say that the key still holds, and the client begin to count again.
        until = time.monotonic() + 60
        while server.sent[200] < 20 and time.monotonic() < until:
            time.sleep(0.001)
        return Reply(status=status)

    with pytest.raises(UserError, match=rf"refused the key in \$TEST_CRITIC_KEY \({status}\)"):
        ask(script, rows=300)
    assert len(ask.server.seen) <= 20 + 2 * 8
    assert len(ask.cache.answers) == ask.server.answered() > 10, "whatever was answered is kept"


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


def test_a_dead_endpoint_stops_the_work(ask: Ask) -> None:
    with pytest.raises(EndpointGone, match=r"4 requests failed after all retries \(503"):
        ask(lambda *_: Reply(status=503), rows=300, client={"max_retries": 0})
    assert len(ask.server.seen) < 30


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

    def script(content: str, _: int) -> Reply:
        """The others are answered when the good one is."""
        if "Question 3?" in content:
            return Reply()
        until = time.monotonic() + 60
        while not ask.server.sent[200]:
            assert time.monotonic() < until
            time.sleep(0.01)
        return USELESS[status][0]

    answers, _, _ = ask(script, rows=100)
    assert len(answers) == 100 and ask.critic.rules.statuses == {"ok": 1, status: 99}


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


def test_refusals_that_come_before_slower_answers_are_those_of_their_rows(ask: Ask) -> None:
    """A moderated input is refused at once, while the answers to the others take their time."""

    def script(content: str, _: int) -> Reply:
        row = int(content.partition("Question ")[2].partition("?")[0])
        return refusal(403, "Forbidden") if row < 4 else Reply(delay=0.3)

    answers, _, server = ask(script, rows=20)
    assert Counter(answer.outcome for answer in answers.values()) == {"answered": 16, "bad_request": 4}
    assert max(server.times().values()) == 1
