"""The Batch API against a real HTTP server: money, records, waiting, crashes, and nothing bought twice."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from minos_ray.critiques.batch import FOLDER, Plan, request_line, require_no_open_batches
from minos_ray.critiques.limits import StopAtBudget, most_usd
from minos_ray.critiques.reply import Cache
from minos_ray.critiques.stage import critique
from minos_ray.errors import UserError, WorkStopped
from tests.critiques.asking import requests
from tests.critiques.batch_server import COST, PRICES, AskBatch, ServeBatch
from tests.critiques.scripted import KEY, MakeConfig, MakeRun, Reply


def test_answers_tokens_and_half_the_cost(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    answers, details = ask_batch(server, **PRICES)
    assert len(answers) == 4 and all(a.text.endswith("The final answer is True.") for a in answers)
    assert [(a.prompt_tokens, a.completion_tokens, a.outcome) for a in answers] == [(100, 50, "answered")] * 4
    assert [a.cost_usd for a in answers] == [pytest.approx(COST)] * 4
    assert details["batches"] == [{"id": "batch_0", "status": "completed", "requests": 4, "answers": 4}]
    assert set(server.bought.values()) == {1} and len(Cache(ask_batch.run).answers) == 4


def test_what_is_sent_is_what_is_sent_online(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    ask_batch(server, model="gpt-x", max_tokens=77, temperature=None, token_limit="max_completion_tokens")
    rows = [json.loads(line) for line in server.files["file_0"].splitlines()]
    assert [row["custom_id"] for row in rows] == [request.key for request in requests(4)]
    for row, request in zip(rows, requests(4), strict=True):
        assert row["body"] == {"model": "gpt-x", "messages": request.messages, "max_completion_tokens": 77}


def test_chunks_stay_under_both_limits(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    line = len(request_line(requests(1)[0].key, {"messages": requests(1)[0].messages}))
    answers, details = ask_batch(server, rows=10, plan=Plan(requests=4, size=3 * line + 600, first_pause_s=0.02))
    sizes = [file.count(b"\n") for file in (server.files[b["input_file_id"]] for b in server.batches.values())]
    assert sum(sizes) == 10 and max(sizes) <= 4 and len(sizes) == len(details["batches"]) >= 3
    for batch in server.batches.values():
        assert len(server.files[batch["input_file_id"]]) <= 3 * line + 600
    assert len(answers) == 10 and set(server.bought.values()) == {1}
    assert (Plan().requests, Plan().size) == (50_000, 200_000_000)


def test_a_rerun_asks_for_nothing(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    first, _ = ask_batch(server)
    assert ask_batch(server)[0] == first and len(server.batches) == 1


def test_every_batch_is_on_record_before_it_is_waited_for(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    seen: list[list[dict[str, Any]]] = []
    server.before["POST /files"] = lambda _: seen.append(ask_batch.records())
    server.hooks["GET batch_0"] = lambda _: seen.append(ask_batch.records()) is None
    ask_batch(server)
    (before_create,), (before_look,) = seen
    assert before_create["batch_id"] is None and before_look["batch_id"] == "batch_0"
    assert server.batches["batch_0"]["metadata"] == {"minos_chunk": before_look["name"]}
    assert before_look["keys"] == [request.key for request in requests(4)] and KEY not in json.dumps(seen)


def test_the_most_of_a_batch_never_passes_the_limit_and_money_is_used(
    ask_batch: AskBatch, serve_batch: ServeBatch
) -> None:
    server = serve_batch()
    section = ask_batch.make_config(ask_batch.run, "x", max_tokens=50, **PRICES).critique
    dearest = max(most_usd(section, request.messages) for request in requests(60)) / 2
    limit = 5 * dearest
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = .*: stopped at 0\.0"):
        ask_batch(server, rows=60, max_tokens=50, max_usd=limit, **PRICES)
    sizes = [server.files[b["input_file_id"]].count(b"\n") for b in server.batches.values()]
    assert sizes[0] == 5, "the first batch is what the limit can hold at worst"
    spent = Cache(ask_batch.run).spent_usd
    assert limit - dearest < spent <= limit and sum(sizes) == len(server.bought)
    answers, _ = ask_batch(server, rows=60, max_tokens=50, max_usd=1, **PRICES)
    assert len(answers) == 60 and set(server.bought.values()) == {1}


def test_open_batches_count_at_their_most(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    section = ask_batch.make_config(ask_batch.run, "x", max_tokens=50, **PRICES).critique
    dearest = max(most_usd(section, request.messages) for request in requests(9)) / 2
    server.gate.clear()
    small = Plan(requests=3, first_pause_s=0.02, longest_pause_s=0.02)
    with pytest.raises(WorkStopped, match=r"batch_wait_s = 0\.3: batches still open \(batch_0, batch_1\)"):
        ask_batch(
            server, rows=9, plan=small, max_tokens=50, max_usd=7 * dearest, client={"batch_wait_s": 0.3}, **PRICES
        )
    assert len(server.batches) == 2, "a third may cost more than what is left"
    with pytest.raises(UserError, match=r"open batches hold 2 of these requests: run with critique\.mode=batch"):
        require_no_open_batches(
            ask_batch.run, [request.key for request in (requests(9)[0], requests(9)[5], requests(9)[8])]
        )
    require_no_open_batches(ask_batch.run, [requests(9)[8].key])


def test_waiting_has_a_limit_and_a_rerun_goes_on_waiting(
    ask_batch: AskBatch, serve_batch: ServeBatch, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minos_ray.observe.progress.LINE_EVERY_S", 0.0)
    server = serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped, match=r"batch_wait_s = 0\.3: .*\(batch_0\); run again"):
        ask_batch(server, client={"batch_wait_s": 0.3})
    out = capfd.readouterr().out
    assert "in them completed 0, failed 0, window ends in 23h59m" in out and "open batches 1" in out
    server.gate.set()
    answers, _ = ask_batch(server)
    assert len(answers) == 4 and len(server.batches) == 1 and set(server.bought.values()) == {1}


def test_pauses_grow(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.gate.clear()
    looks: list[float] = []
    server.hooks["GET batch_0"] = lambda _: looks.append(time.monotonic()) is None
    with pytest.raises(WorkStopped):
        ask_batch(server, plan=Plan(first_pause_s=0.05, longest_pause_s=0.3), client={"batch_wait_s": 1.5})
    pauses = [b - a for a, b in itertools.pairwise(looks)]
    assert len(looks) < 12 and pauses[0] >= 0.05 and max(pauses) >= 0.2


def test_another_amount_takes_up_open_batches_and_sends_only_the_rest(
    ask_batch: AskBatch, serve_batch: ServeBatch
) -> None:
    server = serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped):
        ask_batch(server, rows=4, client={"batch_wait_s": 0.05})
    server.gate.set()
    ask_batch(server, rows=2)
    assert len(server.batches) == 1 and len(Cache(ask_batch.run).answers) == 4, "all of a batch is kept"
    ask_batch(server, rows=10)
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [4, 6]
    assert set(server.bought.values()) == {1}


@pytest.mark.parametrize("times", [1, 2])
def test_a_create_whose_reply_is_lost_is_found_again(ask_batch: AskBatch, serve_batch: ServeBatch, times: int) -> None:
    server = serve_batch()
    server.hooks["POST /batches"] = lambda n: n >= times
    answers, details = ask_batch(server)
    assert len(server.batches) == 1 and set(server.bought.values()) == {1} and len(answers) == 4
    assert details["retries"] == {"connection": 1}


def test_a_create_that_did_not_happen_is_sent_again(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.before["POST /batches"] = lambda n: 500 if n < 2 else None
    _, details = ask_batch(server)
    assert len(server.batches) == 1 and server.calls["POST /batches"] == 3 and details["retries"] == {"500": 2}


def test_passing_trouble_of_every_other_call_is_retried(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    for call in ("POST /files", "GET batch_0", "GET content"):
        server.hooks[call] = lambda n: n >= 1
    answers, details = ask_batch(server)
    assert len(answers) == 4 and details["retries"] == {"connection": 3} and set(server.bought.values()) == {1}


def test_the_list_is_searched_over_all_its_pages(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    server.longest_page = 2
    server.hooks["POST /batches"] = lambda _: False
    with pytest.raises(WorkStopped, match="does not answer"):
        ask_batch(server, client={"max_retries": 0})
    server.hooks.clear()
    other = server.keep(request_line("another", {}))
    for _ in range(5):
        fixed = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": None}
        server.create({"input_file_id": other, **fixed})
    ask_batch(server)
    assert len(server.batches) == 6 and set(server.bought.values()) == {1}


def test_an_endpoint_without_batches(ask_batch: AskBatch, serve_batch: ServeBatch, make_config: MakeConfig) -> None:
    server = serve_batch()
    server.url = server.url.replace("/v1", "/v2")
    with pytest.raises(UserError, match=r"critique\.mode = 'batch': .* has no Batch API \(404\); use .*'online'"):
        ask_batch(server)
    assert not ask_batch.run.files(FOLDER)


def test_wrong_key_and_unreachable(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server = serve_batch()
    with pytest.raises(UserError, match=r"refused the key in \$TEST_CRITIC_KEY \(401\)") as caught:
        ask_batch(server, key="sk-wrong")
    assert "sk-wrong" not in str(caught.value)
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"critique\.base_url = 'http://127\.0\.0\.1:9/v1' cannot be reached"):
        ask_batch(server)


def test_a_batch_of_another_account_is_not_bought_again_by_itself(ask_batch: AskBatch, serve_batch: ServeBatch) -> None:
    server, other = serve_batch(), serve_batch()
    server.gate.clear()
    with pytest.raises(WorkStopped):
        ask_batch(server, client={"batch_wait_s": 0.05})
    with pytest.raises(UserError, match=r"batch batch_0 is not known at .* delete .*cache/batches/.*\.json to buy"):
        ask_batch(other)
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
    server.hooks[call] = lambda _: there.set() or dead.wait(120)
    process = command(make_config(run, server.url, mode="batch"), tmp_path / "a.yaml")
    assert there.wait(180), process.communicate(timeout=5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    dead.set()
    server.hooks.clear()
    manifest = critique(make_config(run, server.url, mode="batch"), run)
    assert len(server.batches) == 1 and len(server.bought) == 40 and set(server.bought.values()) == {1}
    assert manifest.counts["usable"] == 40 and manifest.details["batches"][0]["answers"] == 40
    everything = b"".join(path.read_bytes() for path in Path(run.path).rglob("*") if path.is_file())
    assert KEY.encode() not in everything


TRIAL = Plan(trial=16, many=40, first_pause_s=0.02, longest_pause_s=0.1)


def test_a_large_order_begins_with_a_small_batch_and_ends_with_it_when_nothing_can_be_used(
    ask_batch: AskBatch, serve_batch: ServeBatch
) -> None:
    server = serve_batch(lambda *_: Reply(text="", finish="length"))
    with pytest.raises(
        UserError, match=r"none of 16 answers can be used \(\{'truncated': 16\}\): .*raise critique.max_t"
    ):
        ask_batch(server, rows=60, plan=TRIAL)
    assert len(server.batches) == 1 and server.bought.total() == 16
    server.script = lambda *_: Reply()
    answers, details = ask_batch(server, rows=60, plan=TRIAL, max_tokens=2000)
    assert [batch["requests"] for batch in details["batches"]] == [16, 28] and len(answers) == 60
