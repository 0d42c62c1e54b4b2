"""`minos rank --critic` against a real HTTP server: shares by count, nothing bought twice, errors name the options."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.cli import main
from tests.critiques.scripted import KEY, Reply, Script, ScriptedServer, scripted_servers
from tests.serving.test_rank_file import rows, write_rows

Start = Callable[[Script], ScriptedServer]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a scripted server, whose key is in the environment; all are ended after the test."""
    monkeypatch.setenv("TEST_CRITIC_KEY", KEY)
    with scripted_servers() as start:
        yield start


def verdict(content: str, before: int) -> Reply:
    """Accepts answers of 5; of others every second critique. Every first step is right; nothing is said about an 8."""
    lines = content.partition("[Solution]\n")[2].partition("\n\n[Task]")[0].split("\n")
    if lines[-1].endswith("8"):
        return Reply(text="I like it.")
    right = "5" in lines[-1] or before % 2 == 0
    judged = [
        f"Step {k}: so. This step is {'correct' if right or k == 1 else 'incorrect'}." for k in range(1, len(lines))
    ]
    return Reply(text="\n".join([*judged, f"The final answer is {right}."]))


def arguments(source: str, out: Path, url: str, *options: str) -> list[str]:
    """The command line."""
    columns = ["--question", "q", "--text", "text", "--out", str(out)]
    critic = ["--critic", "m", "--base-url", url, "--api-key-env", "TEST_CRITIC_KEY"]
    return ["rank", source, *columns, *critic, *options]


def ranked(*words: Any) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    assert main(arguments(*words)) == 0
    return pq.read_table(words[1]).to_pylist()


def test_scores_are_shares_of_critiques_and_nothing_is_bought_twice(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server, source, out = start(verdict), write_rows(tmp_path / "in.csv", rows()), tmp_path / "out.parquet"
    two = ranked(source, out, server.url, "--samples", "2", "--group", "q")
    assert [int(row["id"]) for row in two] == list(range(40))
    for row in two:
        last = (row["text"] or "").split("\n")[-1]
        expected = None if not row["text"] or last.endswith("8") else 1.0 if "5" in last else 0.5
        assert row["score"] == expected
        steps = row["text"].split("\n") if expected else []
        assert row["step_scores"] == ([1.0, *[expected] * (len(steps) - 1)] if steps else [])
    for question in {row["q"] for row in two}:
        members = [row for row in two if row["q"] == question]
        sums: dict[float, float] = defaultdict(float)
        for row in members:
            if row["score"]:
                sums[float(row["answer"])] += row["score"]
        assert {sums[float(row["vote"])] for row in members} == {max(sums.values())}
        assert max((row for row in members if row["score"]), key=lambda row: row["score"])["score"] == next(
            row["score"] for row in members if row["rank"] == 1
        )
    unread = sum(row["text"].endswith("8") for row in two)
    printed = capsys.readouterr().out
    assert f"{unread + 1} without a score (no critique with a verdict)" in printed
    assert f"critiques: ok {78 - 2 * unread}, no_verdict {2 * unread}, no_steps 1" in printed
    distinct = {(row["q"], row["text"]) for row in two if row["text"]}
    assert server.times() == Counter({content: 2 for content in server.times()}) and len(server.times()) == len(
        distinct
    )

    assert ranked(source, out, server.url, "--samples", "2", "--group", "q") == two
    assert set(server.times().values()) == {2}
    ranked(source, out, server.url, "--samples", "3")
    assert set(server.times().values()) == {3}


def test_a_killed_command_goes_on_and_buys_the_rest(tmp_path: Path, start: Start) -> None:
    enough = threading.Event()

    def slow(content: str, before: int) -> Reply:
        if len(server.seen) > 20 and not killed.is_set():
            enough.set()
            killed.wait(60)
        return verdict(content, before)

    killed, server = threading.Event(), start(slow)
    made = [row for row in rows() if row["text"]]
    words = arguments(
        write_rows(tmp_path / "in.jsonl", made), tmp_path / "out.parquet", server.url, "--concurrency", "2"
    )
    command = subprocess.Popen([sys.executable, "-m", "minos_ray", *words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert enough.wait(120)
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait(60)
    killed.set()
    assert not (tmp_path / "out.parquet").exists()
    assert main(words) == 0
    again = [content for content, times in server.times().items() if times > 1]
    assert len(again) <= 2, "only what was in flight"
    assert [row["score"] is None for row in pq.read_table(tmp_path / "out.parquet").to_pylist()] == [
        row["text"].endswith("8") for row in made
    ]


def test_money_runs_out_cleanly_and_more_buys_the_rest(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server, source = start(verdict), write_rows(tmp_path / "in.jsonl", rows())
    prices = ["--set", "usd_per_million_input=1", "--set", "usd_per_million_output=1", "--set", "max_tokens=100"]
    words = [source, tmp_path / "out.parquet", server.url, "--concurrency", "1", *prices]
    assert main(arguments(*words, "--max-usd", "0.004")) == 1
    error = capsys.readouterr().err
    assert "--max-usd = 0.004: stopped at" in error and "raise --max-usd" in error and "critique." not in error
    assert 0 < len(server.seen) <= 27, "at 150 tokens each"
    assert ranked(*words, "--max-usd", "1")
    assert set(server.times().values()) == {1}


def test_an_endpoint_that_does_not_answer_costs_a_count_not_the_command(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected: list[str] = []

    def script(content: str, before: int) -> Reply:
        rejected.extend([content] * (not rejected))
        return Reply(status=400) if content == rejected[0] and not before else verdict(content, before)

    judged = [row for row in rows(20) if row["text"] and not row["text"].endswith("8")]
    server, source = start(script), write_rows(tmp_path / "in.jsonl", judged)
    words = [source, tmp_path / "out.parquet", server.url, "--concurrency", "1"]
    first = ranked(*words)
    assert "1 critiques got no answer" in capsys.readouterr().out
    second = ranked(*words)
    assert [row["score"] for row in first].count(None) == 1 and None not in [row["score"] for row in second]
    assert server.times().pop(rejected[0]) == 2


def test_requests_that_failed_are_no_critiques(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(content: str, before: int) -> Reply:
        return Reply(status=400) if before % 4 > 1 or "none" in content else verdict(content, 0)

    server = start(script)
    two = [{"q": question, "text": "Step 1: 2 + 3 = 5\nThe answer is: 5"} for question in ("2 + 3?", "none?")]
    source = write_rows(tmp_path / "in.jsonl", two)
    scores = ranked(source, tmp_path / "out.parquet", server.url, "--samples", "4", "--concurrency", "1")
    assert [row["score"] for row in scores] == [1.0, None]
    assert "bad_request 6, ok 2" in capsys.readouterr().out


def test_wrong_requests_are_one_line_that_names_the_option(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, source = start(verdict), write_rows(tmp_path / "in.jsonl", rows())
    cases = {
        ("--samples", "0"): "--samples = 0",
        ("--samples", "2", "--temperature", "0"): "samples > 1 needs a temperature",
        ("--prompt", "minos_ray.critiques.prompts:label_aware"): "--prompt = minos_ray.critiques.prompts:label_aware",
        ("--prompt", "minos_ray.critiques.prompts:answer_guided"): "shows the right answer",
        ("--prompt", "minos_ray.nowhere:it"): "--prompt",
        ("--set", "tempo=1"): "unknown --set tempo",
        ("--max-usd", "1"): "--set usd_per_million_input",
        ("--base-url", "http://127.0.0.1:9/v1"): "--base-url = 'http://127.0.0.1:9/v1' cannot be reached",
        ("--api-key-env", "NO_SUCH_KEY"): "--api-key-env: the environment variable NO_SUCH_KEY is not set",
        ("--question", "nowhere"): "--question 'nowhere'",
    }
    for options, words in cases.items():
        assert main([*arguments(source, tmp_path / "out.parquet", server.url), *options]) == 2, options
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and not re.search(r"meta\.critics|critique\.[a-z]", error)
    monkeypatch.setenv("TEST_CRITIC_KEY", "sk-another")
    assert main(arguments(source, tmp_path / "out.parquet", server.url)) == 2
    assert "sk-another" not in capsys.readouterr().err
    assert not server.seen and not (tmp_path / "out.parquet").exists()
    assert (
        main(["rank", source, "--verifier", "x", "--question", "q", "--text", "text", "--out", "o", "--samples", "2"])
        == 2
    )
    assert "--samples is an option of --critic" in capsys.readouterr().err
