"""The cache on real files: rows survive, torn lines cost one row, remote runs get small files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from minos_ray.config.schema import Critique
from minos_ray.critiques.client import until_usable
from minos_ray.critiques.prompts import Request, content_key, key_of
from minos_ray.critiques.reply import FOLDER, Answer, Cache
from minos_ray.critiques.stage import critique_status
from minos_ray.errors import StorageFailed
from minos_ray.store.run import Run

MESSAGES = [{"role": "user", "content": "2 + 2 = 5?"}]


def remote(path: Path) -> Run:
    """A run on a file system that pyarrow does not call local (a folder behind SubTreeFileSystem)."""
    run = Run(str(path))
    path.mkdir()
    run.fs, run.root = SubTreeFileSystem(str(path), LocalFileSystem()), "run"
    return run


async def fill(cache: Cache, count: int) -> None:
    """Adds `count` rows at the same time."""
    await asyncio.gather(
        *(cache.add(f"k{i}", Answer(f"text {i}\n\u00e9", "answered", i, 1, 0.5)) for i in range(count))
    )


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_rows_are_there_after_a_restart(tmp_path: Path, kind: str) -> None:
    run = remote(tmp_path / "run") if kind == "remote" else Run(str(tmp_path / "run"))
    for again in range(2):
        cache = Cache(run)
        assert len(cache.answers) == 50 * again
        asyncio.run(fill(cache, 50 + 50 * again))
    cache = Cache(run)
    assert cache.answers["k7"] == Answer("text 7\n\u00e9", "answered", 7, 1, 0.5)
    assert (len(cache.answers), cache.unreadable) == (100, 0)
    assert cache.spent_usd == 75.0, "what was paid twice counts twice"
    assert len(run.files(FOLDER)) < 20, "rows that arrive together share a write"


def test_a_torn_line_costs_one_row(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    asyncio.run(fill(Cache(run), 10))
    [name] = run.files(FOLDER)
    path = tmp_path / FOLDER / name
    for cut in range(1, 60):
        torn = path.read_bytes()[:-cut]
        (tmp_path / "other" / FOLDER).mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / FOLDER / name).write_bytes(torn)
        cache = Cache(Run(str(tmp_path / "other")))
        assert len(cache.answers) + cache.unreadable == 10 and cache.unreadable == (cut > 1)


def test_what_was_not_written_is_not_kept_or_is_written_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write works, the second, of all that waits meanwhile, tears its last line."""
    run = Run(str(tmp_path))
    cache, whole, writes = Cache(run), Cache._write, []

    def write(self: Cache, content: bytes) -> None:
        writes.append(content)
        whole(self, content[:-9] if len(writes) == 2 else content)
        if len(writes) == 2:
            raise StorageFailed("away")

    async def add() -> list[BaseException | None]:
        adding = [cache.add(f"k{i}", Answer("x", "answered", cost_usd=0.5)) for i in range(5)]
        return await asyncio.gather(*adding, return_exceptions=True)

    monkeypatch.setattr(Cache, "_write", write)
    ends = asyncio.run(add())
    assert [type(end) for end in ends].count(StorageFailed) == 1
    settled = {f"k{i}" for i, end in enumerate(ends) if end is None}
    again = Cache(run)
    assert settled <= again.answers.keys() and again.unreadable == 1
    assert cache.answers.keys() == settled


def test_a_restart_never_appends_to_a_torn_line(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    asyncio.run(fill(Cache(run), 3))
    [name] = run.files(FOLDER)
    path = tmp_path / FOLDER / name
    path.write_bytes(path.read_bytes()[:-9])
    cache = Cache(run)
    asyncio.run(cache.add("new", Answer("x", "answered")))
    assert Cache(run).answers.keys() == {"k0", "k1", "new"}


@pytest.mark.parametrize("line", [b"{}", b"[]", b"3", b'{"key": "a", "text": 1, "wrong": 2}', b"\xff\xfe"])
def test_foreign_lines_are_counted_not_trusted(tmp_path: Path, line: bytes) -> None:
    run = Run(str(tmp_path))
    run.write_bytes(f"{FOLDER}/1-1.jsonl", line + b"\n")
    assert (Cache(run).answers, Cache(run).unreadable) == ({}, 1)


def test_what_earlier_versions_bought_is_found_again() -> None:
    """Keys as version 0.1 made them; parameters that came later are part of the key where they are set."""
    messages = [{"role": "user", "content": "2 + 2 = 5? \u00e9"}]
    section = Critique(model="gpt-4", base_url="http://127.0.0.1:1/v1", token_limit="max_completion_tokens")
    assert key_of(section, messages) == "e1b6f2d975f624a544b76f9b5612c4f0"
    structured = {"temperature": None, "structured": True}
    assert key_of(section.model_copy(update=structured), messages) == "311384731a7de1932a68978936cd5247"
    later = ({"top_p": 0.9}, {"reasoning_effort": "low"}, {"extra_body": {"seed": 1}}, {"extra_body": {"seed": 2}})
    keys = {key_of(section.model_copy(update=update), messages) for update in ({}, *later)}
    assert len(keys) == 5
    orders = [{"extra_body": dict(order)} for order in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])]
    assert len({key_of(section.model_copy(update=order), messages) for order in orders}) == 1


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Step 1"}]}, "Step 1"),
        ({"text": "<think>no</think>Step 1"}, "Step 1"),
        ({"text": "Step 1\ud83d"}, "Step 1\ufffd"),
        ({"text": 7}, None),
        ({"text": {"a": 1}}, None),
        ({"text": "x", "outcome": "unheard of"}, None),
        ({"text": "x", "outcome": ["answered"]}, None),
        ({"text": "x", "prompt_tokens": None}, None),
        ({"text": "x", "completion_tokens": 10**30}, None),
        ({"text": "x", "cost_usd": float("nan")}, None),
        ({"text": "x", "prompt_tokens": -1}, None),
        ({"text": "x", "cost_usd": 10**400}, None),
        ({"text": "x", "cost_usd": -5}, None),
        ({"text": "x", "prompt_tokens": 7.0}, "x"),
    ],
)
def test_rows_of_earlier_versions_are_read_or_counted(tmp_path: Path, row: dict[str, Any], text: str | None) -> None:
    run = Run(str(tmp_path))
    whole = {"key": "k", "outcome": "answered", "prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.5} | row
    run.write_bytes(f"{FOLDER}/1-1.jsonl", json.dumps(whole).encode() + b"\n")
    cache = Cache(run)
    assert [answer.text for answer in cache.answers.values()] == ([] if text is None else [text])
    assert (cache.unreadable, cache.spent_usd) == ((1, 0.0) if text is None else (0, 0.5))


def test_the_key_is_the_content() -> None:
    key = content_key("gpt-4", MESSAGES, 0.0, 100)
    others = {
        content_key("gpt-5", MESSAGES, 0.0, 100),
        content_key("gpt-4", [{"role": "user", "content": "2 + 2 = 4?"}], 0.0, 100),
        content_key("gpt-4", MESSAGES, 0.7, 100),
        content_key("gpt-4", MESSAGES, 0.0, 101),
    }
    assert key == content_key("gpt-4", [dict(m) for m in MESSAGES], 0.0, 100)
    assert len(others | {key}) == 5


def test_what_was_bought_before_is_read_up_to_the_first_answer_of_use(tmp_path: Path) -> None:
    """However many there are before it."""
    cache, good = Cache(Run(str(tmp_path))), "Step 1: fine. This step is correct.\nThe final answer is True."
    for number in range(400):
        outcome = "truncated" if number % 2 else "answered"
        cache.take(f"k{number}", Answer(good if number >= 300 else "Sure!", outcome))
    requests = [Request(f"k{number}", MESSAGES, expected=(2,)) for number in range(-5, 400)]
    assert until_usable(requests, cache, critique_status) == {"no_verdict": 150, "truncated": 150, "ok": 1}
