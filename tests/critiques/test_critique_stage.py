"""The whole stage: the offline critic, scripted critics, kill and rerun, the command line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from minos_ray.critiques.prompts import INSTRUCTION
from minos_ray.critiques.reply import Cache
from minos_ray.critiques.stage import critique
from minos_ray.errors import UserError
from minos_ray.miniature.critic_server import MODEL
from minos_ray.store.run import Manifest, Run
from minos_ray.units.lock import born
from tests.critiques.scripted import KEY, MakeConfig, MakeRun, Reply, ScriptedServer, Serve, completion, faithful


def rows(run: Run) -> list[dict[str, Any]]:
    """The critiques of a run."""
    return run.artefact("critiques").read().to_pylist()


def again(run: Run) -> None:
    """Throws the artefact away; what was bought stays."""
    run.delete("critiques")


def command(config: Any, path: Path) -> "subprocess.Popen[str]":
    """`minos critique CONFIG` in a process of its own."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    arguments = [sys.executable, "-m", "minos_ray", "critique", str(path)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_offline_critic_from_labels_to_usable_critiques(
    make_run: MakeRun, make_config: MakeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(problems=60, per_problem=6)
    manifest = critique(make_config(run, "offline", count=200), run)
    found = rows(run)
    by_id = {row["candidate_id"]: row for row in run.artefact("labels").read().to_pylist()}
    assert len(found) == len({row["candidate_id"] for row in found}) == 200
    for row in found:
        label = by_id[row["candidate_id"]]
        assert row["critic"] == MODEL and row["candidate_id"].startswith("miniature-train")
        if row["agrees"]:
            assert row["status"] == "ok" and row["step_verdicts"] == label["step_labels"]
            assert row["final_verdict"] == label["correct"]
    usable = [row for row in found if row["agrees"]]
    assert manifest.counts["usable"] == len(usable) > 180
    assert manifest.counts["asked"] == 200 and manifest.counts["from_cache"] == 0
    dropped = Counter("disagrees" if r["status"] == "ok" else r["status"] for r in found if not r["agrees"])
    assert {k: v for k, v in manifest.dropped.items() if not k.startswith("candidate_")} == dict(dropped)
    assert manifest.details["completion_tokens"] == sum(row["completion_tokens"] for row in found) > 0
    out = capfd.readouterr()
    assert "critique: 200 critiques in" in out.out and "Bearer" not in out.out + out.err


def test_offline_critic_says_the_same_again(make_run: MakeRun, make_config: MakeConfig) -> None:
    texts = []
    for name in ("a", "b"):
        run = make_run(name=name)
        critique(make_config(run, "offline"), run)
        texts.append([row["text"] for row in rows(run)])
    assert texts[0] == texts[1]


def test_offline_critic_finds_most_errors_itself_when_blind(make_run: MakeRun, make_config: MakeConfig) -> None:
    run = make_run()
    manifest = critique(make_config(run, "offline", prompt="minos_ray.critiques.prompts:blind"), run)
    assert 20 < manifest.counts["usable"] < 40


def test_a_smaller_amount_is_the_beginning_of_a_larger_one_and_is_not_bought_again(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    run, server = make_run(), serve(lambda *_: Reply())
    found = {}
    for count in (30, 10, 50):
        manifest = critique(make_config(run, server.url, count=count), run)
        found[count] = rows(run)
        assert manifest.counts["from_cache"] == {30: 0, 10: 10, 50: 30}[count]
    assert found[50][:30] == found[30] and found[30][:10] == found[10]
    assert set(server.times().values()) == {1} and len(server.seen) == 50


def test_a_fresh_artefact_is_left_alone(make_run: MakeRun, make_config: MakeConfig, serve: Serve) -> None:
    run, server = make_run(), serve(lambda *_: Reply())
    first = critique(make_config(run, server.url), run)
    assert critique(make_config(run, server.url), run) == first and len(server.seen) == 40


def test_everything_that_cannot_be_used_is_counted(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    spoilt = {
        0: Reply(text=""),
        1: Reply(text="I like it."),
        2: Reply(text="The final answer is True."),
        3: Reply(finish="length"),
        4: Reply(refusal="no"),
        5: Reply(status=400),
        6: Reply(status=500),
    }
    order: list[str] = []

    def script(content: str, before: int) -> Reply:
        if before == 0:
            order.append(content)
        place = order.index(content)
        if place == 7:
            text = faithful(content)
            turned = text.replace("answer is True", "answer is X").replace("answer is False", "answer is True")
            return Reply(text=turned.replace("answer is X", "answer is False"))
        return spoilt.get(place, Reply())

    run, server = make_run(), serve(script)
    config = make_config(run, server.url, client={"max_retries": 1, "concurrency": 1})
    manifest = critique(config, run)
    reasons = ["empty", "no_verdict", "wrong_step_count", "truncated", "refused", "bad_request", "failed", "disagrees"]
    assert {k: v for k, v in manifest.dropped.items() if not k.startswith("candidate_")} == dict.fromkeys(reasons, 1)
    assert manifest.counts["usable"] == 32 and manifest.details["retries"] == {"500": 1}
    assert "retries 1, " in capfd.readouterr().out
    again(run)
    second = critique(config, run)
    assert second.counts["from_cache"] == 38 and len(server.seen) == 41 + 3, (
        "the failed and the bad one are asked again"
    )


def test_structured_critiques_are_read_like_the_others(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    def script(content: str, _: int) -> Reply:
        if "Answer as JSON" not in content:
            return Reply()
        critique_lines = faithful(content.removesuffix(f"\n{INSTRUCTION}")).split("\n")
        steps = [{"explanation": line, "correct": "is correct" in line} for line in critique_lines[:-1]]
        return Reply(text=json.dumps({"steps": steps, "final": "True" in critique_lines[-1]}))

    run, server = make_run(), serve(script)
    manifest = critique(make_config(run, server.url, structured=True), run)
    assert manifest.counts["usable"] == 40
    assert all(
        row["text"].startswith("Step 1: because") and row["prompt_version"].endswith("+json") for row in rows(run)
    )
    again(run)
    text = critique(make_config(run, server.url), run)
    assert text.counts["from_cache"] == 0, "JSON was asked for with other words"


def test_every_wrong_row_means_an_error(make_run: MakeRun, make_config: MakeConfig, serve: Serve) -> None:
    run = make_run()
    with pytest.raises(UserError, match=r"none of 12 critiques can be used \(\{'no_verdict': 12\}\)"):
        critique(make_config(run, serve(lambda *_: Reply(text="Sure!")).url, count=12), run)
    assert run.artefact("critiques").manifest() is None


def test_a_critic_that_nothing_can_be_made_of_is_not_paid_to_the_end(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    """Nor by a rerun, which finds in the cache what came of the first answers."""
    run, server = make_run(problems=40), serve(lambda *_: Reply(text="Sure!", delay=0.02))
    for most in (16 + 8, 0):
        before = len(server.seen)
        with pytest.raises(
            UserError, match=r"none of \d+ answers can be used .*see critique\.prompt .*one begins 'Sure!'"
        ):
            critique(make_config(run, server.url, count=200), run)
        assert len(server.seen) - before <= most + 8


def test_odd_replies_cost_their_row_alone_and_what_an_earlier_version_kept_of_them_is_read(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    """Chunks, thinking, half characters and a `usage` of nulls, first from the endpoint and then from the cache."""
    order: list[str] = []
    usage = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}

    def script(content: str, before: int) -> Reply:
        order.append(content)
        text = faithful(content)
        chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": text}]
        odd = [
            completion(chunks),
            completion(f"<think>\nStep 1: is the final answer false?\n</think>\n{text}", usage),
            completion(f"{text}\ud83d"),
            completion(7),
            {"choices": None, "error": {"message": "too long for me", "code": 400}},
        ]
        number = order.index(content)
        return Reply(body=json.dumps(odd[number]).encode()) if number < len(odd) else Reply()

    run, server = make_run(), serve(script)
    manifest = critique(make_config(run, server.url, client={"concurrency": 1}), run)
    assert manifest.counts["usable"] == 37 and set(server.times().values()) == {1}
    lost = {"bad_reply": 1, "bad_request": 1, "no_verdict": 1}
    assert {k: v for k, v in manifest.dropped.items() if not k.startswith("candidate_")} == lost
    assert not [row["text"] for row in rows(run) if "think" in row["text"] or row["text"].startswith("[")]
    [name] = [name for name in run.files("cache/critiques") if run.read_bytes(f"cache/critiques/{name}")]
    kept = [json.loads(line) for line in run.read_bytes(f"cache/critiques/{name}").splitlines()]
    for row in kept[:3]:
        row["text"] = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": f"{row['text']}"}]
    kept[3]["text"] = {"no": "text"}
    kept[4] |= {"text": f"<think>no</think>{kept[4]['text']}"}
    run.write_bytes(f"cache/critiques/{name}", b"".join(json.dumps(row).encode() + b"\n" for row in kept))
    again(run)
    second = critique(make_config(run, server.url), run)
    assert second.details["unreadable_cache_rows"] == 1 and second.counts["from_cache"] == 38
    assert second.counts["usable"] == 37 and sorted(server.times().values())[-3:] == [1, 2, 2], "the lost one, the 400"


def test_no_candidates_means_an_error(make_run: MakeRun, make_config: MakeConfig) -> None:
    run = make_run(problems=3, per_problem=0)
    with pytest.raises(UserError, match=r"no train candidate has a graded answer"):
        critique(make_config(run, "offline"), run)


def test_no_critiques_wanted(make_run: MakeRun, make_config: MakeConfig) -> None:
    run = make_run()
    manifest = critique(make_config(run, "http://127.0.0.1:9/v1", count=0), run)
    assert manifest.counts["rows"] == 0 and rows(run) == []


def test_key_is_missing(make_run: MakeRun, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    config = make_config(run, "http://127.0.0.1:9/v1")
    monkeypatch.delenv("TEST_CRITIC_KEY")
    with pytest.raises(UserError, match="TEST_CRITIC_KEY is not set"):
        critique(config, run)


def lines(err: str) -> list[str]:
    """What a user sees; Ray itself talks about the log level that the tests set."""
    return [line for line in err.splitlines() if "log level" not in line and line.strip()]


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_command_line_wrong_key_and_unreachable(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, server = make_run(), serve(lambda *_: Reply())
    monkeypatch.setenv("TEST_CRITIC_KEY", "sk-another-5e1f")
    code, out, err = finish(command(make_config(run, server.url), tmp_path / "a.yaml"))
    assert code == 2 and err.strip().count("\n") == 0 and "sk-another" not in out + err
    assert err.startswith("minos: critic refused the key in $TEST_CRITIC_KEY (401) at critique.base_url")
    code, _, err = finish(command(make_config(run, "http://127.0.0.1:9/v1", count=42), tmp_path / "b.yaml"))
    assert code == 2 and err.startswith("minos: critique.base_url = 'http://127.0.0.1:9/v1' cannot be reached")


def test_command_line_budget_stops_and_resumes(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, tmp_path: Path
) -> None:
    run, server = make_run(), serve(lambda *_: Reply())
    prices = {"usd_per_million_input": 10, "usd_per_million_output": 10, "max_tokens": 50}
    code, _, err = finish(command(make_config(run, server.url, max_usd=0.05, **prices), tmp_path / "a.yaml"))
    assert code == 1 and lines(err)[-1].startswith("minos: critique.max_usd = 0.05: stopped at 0.0")
    assert "Traceback" not in err and len(lines(err)) == 1
    assert run.artefact("critiques").manifest() is None
    partial = run.artefact("critiques").read(partial=True)
    assert partial.num_rows == len(server.seen) == len(Cache(run).answers) > 10
    assert sum(partial["cost_usd"].to_pylist()) <= 0.05
    code, _, err = finish(command(make_config(run, server.url, max_usd=5, **prices), tmp_path / "b.yaml"))
    assert (code, lines(err)) == (0, []) and run.artefact("critiques").manifest().counts["rows"] == 40
    assert set(server.times().values()) == {1}


def descendants(pid: int) -> list[psutil.Process]:
    """All processes under one: those of a local Ray are."""
    return psutil.Process(pid).children(recursive=True)


TWO = {"actors": 2, "cpus": 0.5, "concurrency": 8}


@pytest.mark.slow
def test_all_slots_share_the_rate_and_nothing_is_bought_twice(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    """`actors`, which were processes of their own, multiply the slots."""
    run, server = make_run(problems=60), serve(lambda *_: Reply(delay=0.05))
    config = make_config(run, server.url, count=180, client={**TWO, "requests_per_minute": 1800})
    manifest = critique(config, run)
    assert manifest.counts["usable"] == manifest.counts["rows"] == 180
    times = server.times()
    assert len(times) == 180 and max(times.values()) == 1
    came = sorted(moment for moment, _ in server.seen)
    busiest = max(sum(start <= moment < start + 1 for moment in came) for start in came)
    assert busiest <= 30 * 1.5 + 8, "30 a second for all; late ones may come together"


@pytest.mark.slow
def test_a_refused_key_stops_all_slots(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=401) if len(server.seen) > 60 else Reply(delay=0.02)

    run, server = make_run(problems=120), serve(script)
    with pytest.raises(UserError, match=r"refused the key in \$TEST_CRITIC_KEY \(401\)"):
        critique(make_config(run, server.url, count=600, client=TWO), run)
    assert len(server.seen) < 60 + 4 * 16
    assert len(Cache(run).answers) == server.answered() > 0, "whatever was answered is kept"
    files = [path for path in Path(run.path).rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in "".join(capfd.readouterr())


def test_an_interrupted_command_keeps_what_is_in_flight_and_goes_on(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, tmp_path: Path
) -> None:
    """Ctrl-C, and SIGTERM like it: what had been sent arrives, nothing more is sent, one line, exit code 1."""
    run, server = make_run(problems=60), serve(lambda *_: Reply(delay=0.3))
    for sign, seen in ((signal.SIGINT, 20), (signal.SIGTERM, 60)):
        process = command(make_config(run, server.url, count=200), tmp_path / "a.yaml")
        wait_for(server, seen)
        process.send_signal(sign)
        code, _, err = finish(process)
        assert (code, lines(err)) == (1, ["minos: interrupted; the same command resumes"])
        assert len(Cache(run).answers) == len(server.seen) < 200
    assert critique(make_config(run, server.url, count=200), run).counts["usable"] == 200
    assert set(server.times().values()) == {1}


def wait_for(server: ScriptedServer, seen: int) -> None:
    """Waits until the server has had that many requests."""
    limit = time.monotonic() + 180
    while len(server.seen) < seen:
        assert time.monotonic() < limit, f"only {len(server.seen)} requests came"
        time.sleep(0.005)


@pytest.mark.parametrize("seen", [3, 120])
def test_killed_and_run_again_nothing_is_bought_twice(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve, tmp_path: Path, seen: int
) -> None:
    """It gets no further than `seen` answers before it is killed."""
    killed = threading.Event()

    def script(content: str, before: int) -> Reply:
        assert len(server.seen) <= seen or killed.wait(60)
        return Reply(delay=0.02)

    run, server = make_run(problems=60), serve(script)
    config = make_config(run, server.url, count=200)
    process = command(config, tmp_path / "a.yaml")
    wait_for(server, seen)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed.set()
    out, err = process.communicate()
    time.sleep(0.1)
    at_kill, kept = server.times(), len(Cache(run).answers)
    assert len(at_kill) - kept <= 8, "only what was in flight is lost"
    manifest: Manifest = critique(config, run)
    times = server.times()
    assert len(times) == 200 and max(times.values()) <= 2
    twice = [content for content, number in times.items() if number == 2]
    assert len(twice) <= 8, "and only that is asked again"
    assert manifest.counts["from_cache"] >= kept and manifest.counts["usable"] == 200
    everything = b"".join(path.read_bytes() for path in Path(run.path).rglob("*") if path.is_file())
    assert KEY.encode() not in everything and KEY not in out + err
    assert b"The final answer is" in everything


def test_the_offline_critic_ends_with_a_killed_stage(
    make_run: MakeRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    run, slowly = make_run(problems=300), {"concurrency": 2, "requests_per_minute": 600}
    process = command(make_config(run, "offline", count=900, client=slowly), tmp_path / "a.yaml")
    limit = time.monotonic() + 240
    while not run.files("cache/critiques"):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    [server] = [
        child.pid for child in descendants(process.pid) if "minos_ray.miniature.critic_server" in child.cmdline()
    ]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    limit = time.monotonic() + 120
    while born(server):
        assert time.monotonic() < limit, "the server outlives the stage"
        time.sleep(0.02)
