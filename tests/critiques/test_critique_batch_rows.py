"""The Batch API against a real HTTP server: rows without an answer, and batches that end otherwise."""

import json

import pytest

from minos_ray.critiques import endpoint
from minos_ray.critiques.limits import most_usd
from minos_ray.critiques.reply import Cache
from minos_ray.errors import UserError, WorkStopped
from tests.critiques.asking import requests
from tests.critiques.batch_server import COST, PRICES, AskBatch, Fate, ServeBatch, question
from tests.critiques.scripted import KEY, Reply, completion, refusal


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_expired_keeps_what_is_there_and_sends_the_rest_again(
    ask_batch: AskBatch, serve_batch: ServeBatch, share: float
) -> None:
    server = serve_batch(fate=lambda n: Fate("expired", share) if n == 0 else Fate())
    answers, details = ask_batch(server, rows=8)
    assert {a.outcome for a in answers} == {"answered"} and set(server.bought.values()) == {1}
    assert [b["requests"] for b in details["batches"]] == [8, 8 - round(8 * share)]
    assert sum(details["complaints"].values()) == 8 - round(8 * share)


def test_rows_that_are_in_no_file_are_sent_again(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch(fate=lambda n: Fate("completed", 0.5, silent=True) if n == 0 else Fate())
    answers, details = ask_batch(server)
    assert {a.outcome for a in answers} == {"answered"} and set(server.bought.values()) == {1}
    assert details["complaints"] == {"503: no row in the files of its batch": 2}


def test_what_never_comes_is_set_aside_after_so_many_resends(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda content, _: Reply(status=500) if question(2) in content else Reply())
    answers, details = ask_batch(server)
    assert [a.outcome for a in answers] == ["answered", "answered", "failed", "answered"]
    assert [b["requests"] for b in details["batches"]] == [4, 1, 1] and set(server.bought.values()) == {0, 1}
    assert requests(4)[2].key not in Cache(ask_batch.run).answers, "a rerun asks for it again"
    server.script = lambda *_: Reply()
    assert {a.outcome for a in ask_batch(server)[0]} == {"answered"}


def test_more_failed_than_a_run_may_lose_stops_it(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda content, _: Reply(status=500) if int(content.count("Question 1")) else Reply())
    with pytest.raises(WorkStopped, match=r"5 requests failed in 3 batches each \(500: scripted\); run again"):
        ask_batch(server, rows=14)
    assert len(Cache(ask_batch.run).answers) == 9


@pytest.mark.parametrize(
    ("status", "outcome", "calls"), [(400, "bad_request", 1), (422, "bad_request", 1), (429, "answered", 2)]
)
def test_errors_of_rows_are_sorted_as_online(
    ask_batch: AskBatch, serve_batch: ServeBatch, status: int, outcome: str, calls: int
) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=status) if question(1) in content and before == 0 else Reply()

    server = serve_batch(script)
    answers, details = ask_batch(server)
    assert [a.outcome for a in answers] == ["answered", outcome, "answered", "answered"]
    [content] = [content for content in server.calls if question(1) in content]
    assert server.calls[content] == calls and details["complaints"] == {f"{status}: scripted": 1}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(Reply(finish="length"), "truncated"), (Reply(refusal="no"), "refused"), (Reply(usage=False), "answered")],
)
def test_how_an_answer_ended(ask_batch: AskBatch, serve_batch: ServeBatch, reply: Reply, outcome: str) -> None:
    answers, _ = ask_batch(serve_batch(lambda *_: reply), rows=1, **PRICES)
    assert answers[0].outcome == outcome
    config = ask_batch.make_config(ask_batch.run, "x", **PRICES).critique
    at_most = most_usd(config, requests(1)[0].messages) / 2
    assert answers[0].cost_usd == pytest.approx(COST if reply.usage else at_most)


def test_a_reply_that_is_no_completion_is_asked_again(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda _, before: Reply(body=b'{"choices": []}') if before == 0 else Reply())
    answers, _ = ask_batch(server, rows=2)
    assert {a.outcome for a in answers} == {"answered"} and len(server.batches) == 2


NO_QUOTA = Reply(status=429, body=b'{"error": {"message": "You exceeded", "code": "insufficient_quota"}}')


@pytest.mark.parametrize(
    ("reply", "told"),
    [(NO_QUOTA, r"account of the key in \$TEST_CRITIC_KEY has no quota"), (Reply(status=401), r"refused the key in")],
)
def test_an_empty_account_stops_after_what_is_there_is_kept(
    ask_batch: AskBatch, serve_batch: ServeBatch, reply: Reply, told: str
) -> None:
    server = serve_batch(lambda content, _: reply if question(3) in content else Reply())
    with pytest.raises(UserError, match=told) as caught:
        ask_batch(server)
    assert KEY not in str(caught.value) and len(Cache(ask_batch.run).answers) == 3
    server.script = lambda *_: Reply()
    assert {a.outcome for a in ask_batch(server)[0]} == {"answered"} and set(server.bought.values()) == {1}


def failed(code: str, line: int | None = None) -> Fate:
    """A batch that was not begun."""
    return Fate("failed", errors=[{"code": code, "message": f"scripted {code}", "line": line, "param": None}])


def test_a_line_that_is_not_understood_is_set_aside_and_the_others_are_sent_again(
    ask_batch: AskBatch, serve_batch: ServeBatch
) -> None:
    server = serve_batch(fate=lambda n: failed("invalid_request", 2) if n == 0 else Fate())
    answers, _ = ask_batch(server)
    assert [a.outcome for a in answers] == ["answered", "bad_request", "answered", "answered"]
    assert sum(server.bought.values()) == 3


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("billing_hard_limit_reached", r"no quota left \(402\)"),
        ("model_not_found", r"critique\.mode = 'batch': .* refuses the batch: 400: scripted model_not_found"),
    ],
)
def test_a_batch_that_is_refused_as_a_whole(ask_batch: AskBatch, serve_batch: ServeBatch, code: str, told: str) -> None:
    server = serve_batch(fate=lambda _: failed(code))
    with pytest.raises(UserError, match=told):
        ask_batch(server)
    assert len(server.batches) == 1


def test_nothing_but_bad_requests_stops_with_what_was_said(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    with pytest.raises(UserError, match=r"critique\.model = .*every request of a batch is refused: 400: scripted"):
        ask_batch(serve_batch(lambda *_: Reply(status=400)))


def test_a_full_queue_means_smaller_batches_later(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    def fate(number: int) -> Fate:
        size = server.batches[f"batch_{number}"]["request_counts"]["total"]
        return failed("token_limit_exceeded") if size > 3 else Fate()

    server = serve_batch(fate=fate)
    answers, details = ask_batch(server, rows=12)
    sizes = [batch["request_counts"]["total"] for batch in server.batches.values()]
    assert sizes == [12, 6, 6, 3, 3, 3, 3] and {a.outcome for a in answers} == {"answered"}
    assert set(server.bought.values()) == {1} and not details["complaints"]


def test_cancelled_keeps_what_is_there_and_sends_nothing_by_itself(
    ask_batch: AskBatch, serve_batch: ServeBatch
) -> None:
    server = serve_batch(fate=lambda n: Fate("cancelled", 0.5) if n == 0 else Fate())
    with pytest.raises(WorkStopped, match=r"batch batch_0 was cancelled with 2 requests unanswered; .* run again"):
        ask_batch(server)
    assert len(server.batches) == 1 and len(Cache(ask_batch.run).answers) == 2
    ask_batch(server)
    assert set(server.bought.values()) == {1} and len(server.bought) == 4


def test_odd_replies_of_a_batch_are_bought_once_and_read_past(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    bodies = [
        completion([{"type": "thinking"}, {"type": "text", "text": "Step"}], usage={"prompt_tokens": None}),
        completion("half \ud83d"),
        completion(7),
        {"choices": {"0": "x"}},
        {"choices": None, "error": {"message": "too long for me", "code": 400}},
    ]
    odd = {question(i): Reply(body=json.dumps(body).encode()) for i, body in enumerate(bodies)}
    server = serve_batch(lambda c, _: next((odd[q] for q in odd if q in c), Reply()))
    for _ in range(2):
        answers, details = ask_batch(server, rows=8)
    outcomes = [answer.outcome for answer in answers]
    assert outcomes == ["answered"] * 2 + ["bad_reply"] * 2 + ["bad_request"] + ["answered"] * 3
    assert [answer.text for answer in answers[:2]] == ["Step", "half \ufffd"]
    assert details["complaints"] == {"400: too long for me": 1}
    assert sorted(server.bought.values()) == [1] * 7 + [2], "a refused one is asked again, as online"


def test_lines_of_a_result_file_that_are_no_rows_are_left_out() -> None:
    content = b"[]\n" + b"[" * 100_000 + b'\n\xff\n{"custom_id": "a"}\n'
    assert list(endpoint._objects(content)) == [{"custom_id": "a"}]


def test_a_row_that_is_forbidden_is_set_aside(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda c, _: refusal(403, "flagged") if question(1) in c else Reply())
    assert [answer.outcome for answer in ask_batch(server)[0]].count("bad_request") == 1
