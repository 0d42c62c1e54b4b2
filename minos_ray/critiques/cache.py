"""What was bought, kept by content in RUN/cache/critiques: no critique is paid for twice.

The key is a hash of all that decides the text: critic, messages, temperature, longest answer, further parameters. The
address of the endpoint is not part of it, so a proxy or another region of the same critic buys nothing again; another
critic needs another model name. The cache outlives the artefact: another amount, share or seed finds here what it
shares with the earlier one.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from minos_ray.critiques.reply import BOUGHT, Answer, visible
from minos_ray.errors import StorageFailed
from minos_ray.store.filesystem import prefetch
from minos_ray.store.run import Run

FOLDER = "cache/critiques"
DEAREST_USD = 1e9
"""No answer costs more; an amount above it is none."""


def checked(text: Any, outcome: Any, prompt_tokens: Any = 0, completion_tokens: Any = 0, cost_usd: Any = 0.0) -> Answer:
    """An answer out of a file, whoever wrote it; TypeError or ValueError when it cannot be one.

    Earlier versions kept what the endpoint sent: chunks, thinking, half characters. That is paid for, and read.
    """
    visible_text = visible(text)
    if visible_text is None or outcome not in BOUGHT:
        raise ValueError("no text that was bought")
    counts = [count for count in (prompt_tokens, completion_tokens) if 0 <= count < 2**63]
    if len(counts) < 2 or not 0 <= cost_usd <= DEAREST_USD:
        raise ValueError("no counts")
    return Answer(visible_text, outcome, int(counts[0]), int(counts[1]), float(cost_usd))


class Cache:
    """Rows by key. `add` returns once the row is stored, in one write with all rows that wait at that moment."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unreadable = 0
        self.answers: dict[str, Answer] = {}
        self.spent_usd = 0.0
        """What all answers of this run directory have cost so far."""
        names = (f"{FOLDER}/{name}" for name in run.files(FOLDER) if name.endswith(".jsonl"))
        for _, content in prefetch(run.read_bytes, names):
            self._load(content.split(b"\n"))
        self.name = f"{FOLDER}/{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.parts = 0
        self.waiting: list[bytes] = []
        self.lock = asyncio.Lock()

    def _load(self, lines: Iterable[bytes]) -> None:
        """Takes in whole lines; one torn by a crash is counted and asked for again."""
        for line in filter(None, lines):
            try:
                row = json.loads(line)
                key = row.pop("key")
                self.take(key, checked(**row))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self.unreadable += 1

    def take(self, key: str, answer: Answer) -> None:
        """Takes in a row that is stored already."""
        self.answers[key] = answer
        self.spent_usd += answer.cost_usd

    async def add(self, key: str, answer: Answer) -> None:
        """Keeps a row for good."""
        self.waiting.append(json.dumps({"key": key, **asdict(answer)}).encode() + b"\n")
        async with self.lock:
            rows, self.waiting = self.waiting, []
            if rows:
                try:
                    await asyncio.to_thread(self._write, b"".join(rows))
                except (OSError, StorageFailed):
                    # Whoever waits tries again, behind the end of a line that is torn now.
                    self.waiting = [b"\n", *rows, *self.waiting]
                    raise
        self.take(key, answer)

    def _write(self, content: bytes) -> None:
        """Local: appended and synced. Remote, where nothing can be appended: a small file of its own."""
        if not self.run.local:
            self.parts += 1
            self.run.write_bytes(f"{self.name}-{self.parts:06d}.jsonl", content)
            return
        path = f"{self.run.root}/{self.name}.jsonl"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with self.run.storage_errors("written", f"{self.name}.jsonl", len(content)), open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
