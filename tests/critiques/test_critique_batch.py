"""The Batch API against a real HTTP server: money, limits, states, errors by row, crashes, and nothing bought twice."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minos_ray.critiques import batch_api
from minos_ray.critiques.batch import FOLDER, Batches, Plan, require_no_open_batches
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.endpoint import Endpoint, headers
from minos_ray.critiques.limits import StopAtBudget, most_usd
from minos_ray.critiques.reply import Answer
from minos_ray.critiques.stage import critique, critique_status
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Run
from tests.critiques.asking import requests
from tests.critiques.batch_server import BatchServer, Fate, Script
from tests.critiques.scripted import KEY, MakeConfig, MakeRun, Reply, completion, refusal

QUICK = Plan(first_pause_s=0.02, longest_pause_s=0.1)
PRICES = {"usd_per_million_input": 10.0, "usd_per_million_output": 20.0}
COST = (100 * 10 + 50 * 20) / 1e6 / 2
"""What a scripted answer of 100 and 50 tokens costs in a batch."""

ServeBatch = Callable[..., BatchServer]


@pytest.fixture
def serve_batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeBatch]:
    """`serve_batch(script, fate)` starts a server; retries of a call come at once."""
    monkeypatch.setattr("minos_ray.critiques.retry.FIRST_WAIT_S", 0.01)
    servers: list[BatchServer] = []

    def start(script: Script = lambda *_: Reply(), fate: Callable[[int], Fate] = lambda _: Fate()) -> BatchServer:
        server = BatchServer(script, fate)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.gate.set()
        server.shutdown()
        server.server_close()


class Ask:
    """Calls of `ask_batch` on one run directory."""

    def __init__(self, path: Path, make_config: MakeConfig) -> None:
        self.run, self.make_config = Run(str(path)), make_config

    def __call__(
        self,
        server: BatchServer,
        rows: int = 4,
        plan: Plan = QUICK,
        key: str = KEY,
        client: dict[str, Any] | None = None,
        **critique: Any,
    ) -> tuple[list[Answer], dict[str, Any]]:
        """Answers in the order of the requests (those that the cache has too), and the details."""
        config = self.make_config(self.run, server.url, client, mode="batch", **critique)
        self.cache = Cache(self.run)
        missing = [request for request in requests(rows) if request.key not in self.cache.answers]
        endpoint = Endpoint(config.critique, config.resources.client, server.url, key, headers(config.critique))
        with Progress("critique", rows, "critiques", rows - len(missing)) as progress:
            batches = Batches(endpoint, self.cache, progress, critique_status, plan=plan)
            answers = self.cache.answers | asyncio.run(batches.ask(missing))
        return [answers[request.key] for request in requests(rows)], batches.details()

    def records(self) -> list[dict[str, Any]]:
        """What is on record of batches."""
        return [json.loads(self.run.read_bytes(f"{FOLDER}/{name}")) for name in self.run.files(FOLDER)]


@pytest.fixture
def ask(tmp_path: Path, make_config: MakeConfig) -> Ask:
    """Calls on a fresh run directory."""
    return Ask(tmp_path / "run", make_config)


def question(number: int) -> str:
    """What stands in the prompt of one request and in no other."""
    return f"Question {number}?"


def test_answers_tokens_and_half_the_cost(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    answers, details = ask(server, **PRICES)
    assert len(answers) == 4 and all(a.text.endswith("The final answer is True.") for a in answers)
    assert [(a.prompt_tokens, a.completion_tokens, a.outcome) for a in answers] == [(100, 50, "answered")] * 4
    assert [a.cost_usd for a in answers] == [pytest.approx(COST)] * 4
    assert details["batches"] == [{"id": "batch_0", "status": "completed", "requests": 4, "answers": 4}]
    assert set(server.bought.values()) == {1} and len(Cache(ask.run).answers) == 4


def test_what_is_sent_is_what_is_sent_online(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    ask(server, model="gpt-x", max_tokens=77, temperature=None, token_limit="max_completion_tokens")
    rows = [json.loads(line) for line in server.files["file_0"].splitlines()]
    assert [row["custom_id"] for row in rows] == [request.key for request in requests(4)]
    for row, request in zip(rows, requests(4), strict=True):
        assert row["body"] == {"model": "gpt-x", "messages": request.messages, "max_completion_tokens": 77}


def test_chunks_stay_under_both_limits(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    line = len(batch_api.request_line(requests(1)[0].key, {"messages": requests(1)[0].messages}))
    answers, details = ask(server, rows=10, plan=Plan(requests=4, size=3 * line + 600, first_pause_s=0.02))
    sizes = [file.count(b"\n") for file in (server.files[b["input_file_id"]] for b in server.batches.values())]
    assert sum(sizes) == 10 and max(sizes) <= 4 and len(sizes) == len(details["batches"]) >= 3
    for batch in server.batches.values():
        assert len(server.files[batch["input_file_id"]]) <= 3 * line + 600
    assert len(answers) == 10 and set(server.bought.values()) == {1}
    assert (Plan().requests, Plan().size) == (50_000, 200_000_000)


def test_a_rerun_asks_for_nothing(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    first, _ = ask(server)
    assert ask(server)[0] == first and len(server.batches) == 1


def test_every_batch_is_on_record_before_it_is_waited_for(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    seen: list[list[dict[str, Any]]] = []
    server.before["POST /files"] = lambda _: seen.append(ask.records())
    server.hooks["GET batch_0"] = lambda _: seen.append(ask.records()) is None
    ask(server)
    (before_create,), (before_look,) = seen
    assert before_create["batch_id"] is None and before_look["batch_id"] == "batch_0"
    assert server.batches["batch_0"]["metadata"] == {"minos_chunk": before_look["name"]}
    assert before_look["keys"] == [request.key for request in requests(4)] and KEY not in json.dumps(seen)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_expired_keeps_what_is_there_and_sends_the_rest_again(ask: Ask, serve_batch: ServeBatch, share: float) -> None:
    server = serve_batch(fate=lambda n: Fate("expired", share) if n == 0 else Fate())
    answers, details = ask(server, rows=8)
    assert {a.outcome for a in answers} == {"answered"} and set(server.bought.values()) == {1}
    assert [b["requests"] for b in details["batches"]] == [8, 8 - round(8 * share)]
    assert sum(details["complaints"].values()) == 8 - round(8 * share)


def test_rows_that_are_in_no_file_are_sent_again(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(fate=lambda n: Fate("completed", 0.5, silent=True) if n == 0 else Fate())
    answers, details = ask(server)
    assert {a.outcome for a in answers} == {"answered"} and set(server.bought.values()) == {1}
    assert details["complaints"] == {"503: no row in the files of its batch": 2}


def test_what_never_comes_is_set_aside_after_so_many_resends(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda content, _: Reply(status=500) if question(2) in content else Reply())
    answers, details = ask(server)
    assert [a.outcome for a in answers] == ["answered", "answered", "failed", "answered"]
    assert [b["requests"] for b in details["batches"]] == [4, 1, 1] and set(server.bought.values()) == {0, 1}
    assert requests(4)[2].key not in Cache(ask.run).answers, "a rerun asks for it again"
    server.script = lambda *_: Reply()
    assert {a.outcome for a in ask(server)[0]} == {"answered"}


def test_more_failed_than_a_run_may_lose_stops_it(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda content, _: Reply(status=500) if int(content.count("Question 1")) else Reply())
    with pytest.raises(WorkStopped, match=r"5 requests failed in 3 batches each \(500: scripted\); run again"):
        ask(server, rows=14)
    assert len(Cache(ask.run).answers) == 9


@pytest.mark.parametrize(
    ("status", "outcome", "calls"), [(400, "bad_request", 1), (422, "bad_request", 1), (429, "answered", 2)]
)
def test_errors_of_rows_are_sorted_as_online(
    ask: Ask, serve_batch: ServeBatch, status: int, outcome: str, calls: int
) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=status) if question(1) in content and before == 0 else Reply()

    server = serve_batch(script)
    answers, details = ask(server)
    assert [a.outcome for a in answers] == ["answered", outcome, "answered", "answered"]
    [content] = [content for content in server.calls if question(1) in content]
    assert server.calls[content] == calls and details["complaints"] == {f"{status}: scripted": 1}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(Reply(finish="length"), "truncated"), (Reply(refusal="no"), "refused"), (Reply(usage=False), "answered")],
)
def test_how_an_answer_ended(ask: Ask, serve_batch: ServeBatch, reply: Reply, outcome: str) -> None:
    answers, _ = ask(serve_batch(lambda *_: reply), rows=1, **PRICES)
    assert answers[0].outcome == outcome
    config = ask.make_config(ask.run, "x", **PRICES).critique
    at_most = most_usd(config, requests(1)[0].messages) / 2
    assert answers[0].cost_usd == pytest.approx(COST if reply.usage else at_most)


def test_a_reply_that_is_no_completion_is_asked_again(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda _, before: Reply(body=b'{"choices": []}') if before == 0 else Reply())
    answers, _ = ask(server, rows=2)
    assert {a.outcome for a in answers} == {"answered"} and len(server.batches) == 2


NO_QUOTA = Reply(status=429, body=b'{"error": {"message": "You exceeded", "code": "insufficient_quota"}}')


@pytest.mark.parametrize(
    ("reply", "told"),
    [(NO_QUOTA, r"account of the key in \$TEST_CRITIC_KEY has no quota"), (Reply(status=401), r"refused the key in")],
)
def test_an_empty_account_stops_after_what_is_there_is_kept(
    ask: Ask, serve_batch: ServeBatch, reply: Reply, told: str
) -> None:
    server = serve_batch(lambda content, _: reply if question(3) in content else Reply())
    with pytest.raises(UserError, match=told) as caught:
        ask(server)
    assert KEY not in str(caught.value) and len(Cache(ask.run).answers) == 3
    server.script = lambda *_: Reply()
    assert {a.outcome for a in ask(server)[0]} == {"answered"} and set(server.bought.values()) == {1}


def failed(code: str, line: int | None = None) -> Fate:
    """A batch that was not begun."""
    return Fate("failed", errors=[{"code": code, "message": f"scripted {code}", "line": line, "param": None}])


def test_a_line_that_is_not_understood_is_set_aside_and_the_others_are_sent_again(
    ask: Ask, serve_batch: ServeBatch
) -> None:
    server = serve_batch(fate=lambda n: failed("invalid_request", 2) if n == 0 else Fate())
    answers, _ = ask(server)
    assert [a.outcome for a in answers] == ["answered", "bad_request", "answered", "answered"]
    assert sum(server.bought.values()) == 3


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("billing_hard_limit_reached", r"no quota left \(402\)"),
        ("model_not_found", r"critique\.mode = 'batch': .* refuses the batch: 400: scripted model_not_found"),
    ],
)
def test_a_batch_that_is_refused_as_a_whole(ask: Ask, serve_batch: ServeBatch, code: str, told: str) -> None:
    server = serve_batch(fate=lambda _: failed(code))
    with pytest.raises(UserError, match=told):
        ask(server)
    assert len(server.batches) == 1


def test_nothing_but_bad_requests_stops_with_what_was_said(ask: Ask, serve_batch: ServeBatch) -> None:
    with pytest.raises(UserError, match=r"critique\.model = .*every request of a batch is refused: 400: scripted"):
        ask(serve_batch(lambda *_: Reply(status=400)))


def test_a_full_queue_means_smaller_batches_later(ask: Ask, serve_batch: ServeBatch) -> None:
    def fate(number: int) -> Fate:
        size = server.batches[f"batch_{number}"]["request_counts"]["total"]
        return failed("token_limit_exceeded") if size > 3 else Fate()

    server = serve_batch(fate=fate)
    answers, details = ask(server, rows=12)
    sizes = [batch["request_counts"]["total"] for batch in server.batches.values()]
    assert sizes == [12, 6, 6, 3, 3, 3, 3] and {a.outcome for a in answers} == {"answered"}
    assert set(server.bought.values()) == {1} and not details["complaints"]


def test_cancelled_keeps_what_is_there_and_sends_nothing_by_itself(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(fate=lambda n: Fate("cancelled", 0.5) if n == 0 else Fate())
    with pytest.raises(WorkStopped, match=r"batch batch_0 was cancelled with 2 requests unanswered; .* run again"):
        ask(server)
    assert len(server.batches) == 1 and len(Cache(ask.run).answers) == 2
    ask(server)
    assert set(server.bought.values()) == {1} and len(server.bought) == 4


def test_the_most_of_a_batch_never_passes_the_limit_and_money_is_used(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    section = ask.make_config(ask.run, "x", max_tokens=50, **PRICES).critique
    dearest = max(most_usd(section, request.messages) for request in requests(60)) / 2
    limit = 5 * dearest
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = .*: stopped at 0\.0"):
        ask(server, rows=60, max_tokens=50, max_usd=limit, **PRICES)
    sizes = [server.files[b["input_file_id"]].count(b"\n") for b in server.batches.values()]
    assert sizes[0] == 5, "the first batch is what the limit can hold at worst"
    spent = Cache(ask.run).spent_usd
    assert limit - dearest < spent <= limit and sum(sizes) == len(server.bought)
    answers, _ = ask(server, rows=60, max_tokens=50, max_usd=1, **PRICES)
    assert len(answers) == 60 and set(server.bought.values()) == {1}


def test_open_batches_count_at_their_most(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    section = ask.make_config(ask.run, "x", max_tokens=50, **PRICES).critique
    dearest = max(most_usd(section, request.messages) for request in requests(9)) / 2
    server.gate.clear()
    small = Plan(requests=3, first_pause_s=0.02, longest_pause_s=0.02)
    with pytest.raises(WorkStopped, match=r"batch_wait_s = 0\.3: batches still open \(batch_0, batch_1\)"):
        ask(server, rows=9, plan=small, max_tokens=50, max_usd=7 * dearest, client={"batch_wait_s": 0.3}, **PRICES)
    assert len(server.batches) == 2, "a third may cost more than what is left"
    with pytest.raises(UserError, match=r"open batches hold 2 of these requests: run with critique\.mode=batch"):
        require_no_open_batches(ask.run, [request.key for request in (requests(9)[0], requests(9)[5], requests(9)[8])])
    require_no_open_batches(ask.run, [requests(9)[8].key])


def test_waiting_has_a_limit_and_a_rerun_goes_on_waiting(
    ask: Ask, serve_batch: ServeBatch, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minos_ray.observe.progress.LINE_EVERY_S", 0.0)
    server = serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped, match=r"batch_wait_s = 0\.3: .*\(batch_0\); run again"):
        ask(server, client={"batch_wait_s": 0.3})
    out = capfd.readouterr().out
    assert "in them completed 0, failed 0, window ends in 23h59m" in out and "open batches 1" in out
    server.gate.set()
    answers, _ = ask(server)
    assert len(answers) == 4 and len(server.batches) == 1 and set(server.bought.values()) == {1}


def test_pauses_grow(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.gate.clear()
    looks: list[float] = []
    server.hooks["GET batch_0"] = lambda _: looks.append(time.monotonic()) is None
    with pytest.raises(WorkStopped):
        ask(server, plan=Plan(first_pause_s=0.05, longest_pause_s=0.3), client={"batch_wait_s": 1.0})
    pauses = [b - a for a, b in itertools.pairwise(looks)]
    assert len(looks) < 12 and pauses[0] >= 0.05 and max(pauses) >= 0.2


def test_another_amount_takes_up_open_batches_and_sends_only_the_rest(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped):
        ask(server, rows=4, client={"batch_wait_s": 0.05})
    server.gate.set()
    ask(server, rows=2)
    assert len(server.batches) == 1 and len(Cache(ask.run).answers) == 4, "all of a batch is kept"
    ask(server, rows=10)
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [4, 6]
    assert set(server.bought.values()) == {1}


@pytest.mark.parametrize("times", [1, 2])
def test_a_create_whose_reply_is_lost_is_found_again(ask: Ask, serve_batch: ServeBatch, times: int) -> None:
    server = serve_batch()
    server.hooks["POST /batches"] = lambda n: n >= times
    answers, details = ask(server)
    assert len(server.batches) == 1 and set(server.bought.values()) == {1} and len(answers) == 4
    assert details["retries"] == {"connection": 1}


def test_a_create_that_did_not_happen_is_sent_again(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.before["POST /batches"] = lambda n: 500 if n < 2 else None
    _, details = ask(server)
    assert len(server.batches) == 1 and server.calls["POST /batches"] == 3 and details["retries"] == {"500": 2}


def test_passing_trouble_of_every_other_call_is_retried(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    for call in ("POST /files", "GET batch_0", "GET content"):
        server.hooks[call] = lambda n: n >= 1
    answers, details = ask(server)
    assert len(answers) == 4 and details["retries"] == {"connection": 3} and set(server.bought.values()) == {1}


def test_the_list_is_searched_over_all_its_pages(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.longest_page = 2
    server.hooks["POST /batches"] = lambda _: False
    with pytest.raises(WorkStopped, match="does not answer"):
        ask(server, client={"max_retries": 0})
    server.hooks.clear()
    other = server.keep(batch_api.request_line("another", {}))
    for _ in range(5):
        fixed = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": None}
        server.create({"input_file_id": other, **fixed})
    ask(server)
    assert len(server.batches) == 6 and set(server.bought.values()) == {1}


def test_an_endpoint_without_batches(ask: Ask, serve_batch: ServeBatch, make_config: MakeConfig) -> None:
    server = serve_batch()
    server.url = server.url.replace("/v1", "/v2")
    with pytest.raises(UserError, match=r"critique\.mode = 'batch': .* has no Batch API \(404\); use .*'online'"):
        ask(server)
    assert not ask.run.files(FOLDER)


def test_wrong_key_and_unreachable(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    with pytest.raises(UserError, match=r"refused the key in \$TEST_CRITIC_KEY \(401\)") as caught:
        ask(server, key="sk-wrong")
    assert "sk-wrong" not in str(caught.value)
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"critique\.base_url = 'http://127\.0\.0\.1:9/v1' cannot be reached"):
        ask(server)


def test_a_batch_of_another_account_is_not_bought_again_by_itself(ask: Ask, serve_batch: ServeBatch) -> None:
    server, other = serve_batch(), serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped):
        ask(server, client={"batch_wait_s": 0.05})
    with pytest.raises(UserError, match=r"batch batch_0 is not known at .* delete .*cache/batches/.*\.json to buy"):
        ask(other)
    assert not other.batches


def test_the_offline_critic_has_no_batches(make_run: MakeRun, make_config: MakeConfig) -> None:
    run = make_run()
    with pytest.raises(UserError, match=r"critique\.mode = 'batch'"):
        critique(make_config(run, "offline", mode="batch"), run)


def command(config: Any, path: Path) -> "subprocess.Popen[str]":
    """`minos critique CONFIG` in a process of its own."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    arguments = [sys.executable, "-m", "minos_ray", "critique", str(path)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


KILLED_AT = ["POST /files", "POST /batches", "GET batch_0", "GET content"]


@pytest.mark.slow
@pytest.mark.parametrize("call", KILLED_AT)
def test_killed_and_run_again_nothing_is_bought_twice(
    make_run: MakeRun, make_config: MakeConfig, serve_batch: ServeBatch, tmp_path: Path, call: str
) -> None:
    """Killed while the reply to `call` is on its way: what it did has happened, the client does not know."""
    run, server = make_run(), serve_batch()
    there, dead = threading.Event(), threading.Event()
    server.hooks[call] = lambda _: there.set() or dead.wait(30)
    process = command(make_config(run, server.url, mode="batch"), tmp_path / "a.yaml")
    assert there.wait(60), process.communicate(timeout=5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    dead.set()
    server.hooks.clear()
    manifest = critique(make_config(run, server.url, mode="batch"), run)
    assert len(server.batches) == 1 and len(server.bought) == 40 and set(server.bought.values()) == {1}
    assert manifest.counts["usable"] == 40 and manifest.details["batches"][0]["answers"] == 40
    everything = b"".join(path.read_bytes() for path in Path(run.path).rglob("*") if path.is_file())
    assert KEY.encode() not in everything


def test_odd_replies_of_a_batch_are_bought_once_and_read_past(ask: Ask, serve_batch: ServeBatch) -> None:
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
        answers, details = ask(server, rows=8)
    outcomes = [answer.outcome for answer in answers]
    assert outcomes == ["answered"] * 2 + ["bad_reply"] * 2 + ["bad_request"] + ["answered"] * 3
    assert [answer.text for answer in answers[:2]] == ["Step", "half \ufffd"]
    assert details["complaints"] == {"400: too long for me": 1}
    assert sorted(server.bought.values()) == [1] * 7 + [2], "a refused one is asked again, as online"


def test_lines_of_a_result_file_that_are_no_rows_are_left_out() -> None:
    content = b"[]\n" + b"[" * 100_000 + b'\n\xff\n{"custom_id": "a"}\n'
    assert list(batch_api._objects(content)) == [{"custom_id": "a"}]


def test_a_row_that_is_forbidden_is_set_aside(ask: Ask, serve_batch: ServeBatch) -> None:
    server = serve_batch(lambda c, _: refusal(403, "flagged") if question(1) in c else Reply())
    assert [answer.outcome for answer in ask(server)[0]].count("bad_request") == 1


TRIAL = Plan(trial=16, many=40, first_pause_s=0.02, longest_pause_s=0.1)


def test_a_large_order_begins_with_a_small_batch_and_ends_with_it_when_nothing_can_be_used(
    ask: Ask, serve_batch: ServeBatch
) -> None:
    server = serve_batch(lambda *_: Reply(text="", finish="length"))
    with pytest.raises(
        UserError, match=r"none of 16 answers can be used \(\{'truncated': 16\}\): .*raise critique.max_t"
    ):
        ask(server, rows=60, plan=TRIAL)
    assert len(server.batches) == 1 and server.bought.total() == 16
    server.script = lambda *_: Reply()
    answers, details = ask(server, rows=60, plan=TRIAL, max_tokens=2000)
    assert [batch["requests"] for batch in details["batches"]] == [16, 28] and len(answers) == 60
