"""Progress of long work: a bar on a terminal, one line per 30 seconds in a log, and its numbers as a JSONL file in the
run directory and as Ray metrics.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from minos_ray.errors import StorageFailed
from minos_ray.store.run import Run

FOLDER = "logs/metrics"
# The file is written anew at each record, since object stores cannot append. Halving keeps it small.
MAX_RECORDS = 1000
Record = dict[str, Any]
TAGS = ("stage", "run")
# Name -> (key of a record, description).
COUNTERS = {
    "minos_done": ("done", "Units of work that were finished"),
    "minos_tokens": ("tokens", "Tokens that were made, read or trained on"),
}
GAUGES = {
    "minos_total": ("total", "Units of work in all"),
    "minos_remaining": ("remaining", "Units of work that are still to be done"),
    "minos_rate": ("rate", "Units of work per second"),
    "minos_tokens_per_s": ("tokens_per_s", "Tokens per second"),
    "minos_queue": ("queue", "What waits to be begun"),
    "minos_in_flight": ("in_flight", "Requests that the critic's endpoint is working on"),
    "minos_cost_usd": ("cost_usd", "What the critic has cost"),
}
# Gauges that are 0 when the work is over.
ZERO_AT_END = ("rate", "tokens_per_s", "queue", "in_flight")
FAILURES = ("minos_failures", "What failed or was refused, by reason")
LINE_EVERY_S = 30.0
# How often to check whether a line or a record is due, also while nothing advances.
BEAT_S = 5.0
RECORD_EVERY_S = 10.0


class Meter:
    """Writes the records of one piece of work of this process.

    All go to Ray. The file keeps every `stride`-th; the stride doubles whenever the file has grown too long.

    A failing storage stops no work: failed writes are counted in `unwritten`, and the next write has their records.
    """

    def __init__(self, run: Run, stage: str) -> None:
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.run, self.name = run, f"{FOLDER}/{stage.replace(' ', '-')}-{began}-{os.getpid()}.jsonl"
        self.records: list[Record] = []
        self.taken, self.stride, self.unwritten = 0, 1, 0
        self.tags = {"stage": stage, "run": run.root.rstrip("/").rpartition("/")[2]}
        self.sent: dict[str, float] = {}

    def add(self, record: Record) -> None:
        """Adds a record with the present time."""
        self.send(record)
        self.taken += 1
        if self.taken % self.stride and record["state"] == "running":
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        late = {"unwritten": self.unwritten} if self.unwritten else {}
        self.records.append({"time": now, **record, **late})
        if len(self.records) > MAX_RECORDS:
            self.records = self.records[::2]
            self.stride *= 2
        try:
            self.run.write_bytes(self.name, "".join(json.dumps(r) + "\n" for r in self.records).encode())
        except StorageFailed:
            self.unwritten += 1

    def send(self, record: Mapping[str, Any]) -> None:
        """Increases Ray's counters by what is new since the last record and sets gauges; some are 0 at the end.

        Each node serves them to Prometheus. Without a Ray nothing is sent.
        """
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            return
        from ray.util.metrics import Gauge

        for name, (key, description) in COUNTERS.items():
            self.increase(name, description, record.get(key) or 0, self.tags)
        for name, (key, description) in GAUGES.items():
            if record.get(key) is not None:
                is_over = key in ZERO_AT_END and record["state"] != "running"
                gauge = Gauge(name, description=description, tag_keys=TAGS)
                gauge.set(0.0 if is_over else float(record[key]), tags=self.tags)
        for reason, number in record["failures"].items():
            self.increase(*FAILURES, number, {**self.tags, "reason": reason})

    def increase(self, name: str, description: str, total: float, tags: dict[str, str]) -> None:
        """Increases a counter to `total`. Ray adds up counters of one name in a process."""
        from ray.util.metrics import Counter

        key = f"{name} {tags.get('reason', '')}"
        difference = total - self.sent.get(key, 0)
        if difference > 0:
            Counter(name, description=description, tag_keys=tuple(tags)).inc(difference, tags=tags)
            self.sent[key] = total


def duration(seconds: float) -> str:
    """`75` -> `1m15s`."""
    minutes, remainder = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{remainder:02d}s" if minutes else f"{remainder}s"


class Progress:
    """Counts `total` units of work; `advance` shows done, rate, time left and what the caller adds.

    With a `run` the numbers are also kept in `logs/metrics/` of it and sent as Ray metrics.
    """

    def __init__(self, label: str, total: int, unit: str = "rows", done: int = 0, run: Run | None = None) -> None:
        self.label, self.total, self.unit, self.done, self.run = label, total, unit, done, run
        self.first, self.start = done, time.monotonic()
        self.shown: dict[str, object] = {}
        self.numbers: dict[str, Any] = {}
        self.failures: dict[str, int] = {}
        self.last_line = self.last_record = self.moved = self.start
        self.bar, self.meter, self.gave_up = None, None, False
        self.lock, self.over = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Progress":
        if self.run is not None:
            self.meter = Meter(self.run, self.label)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description:<16}"), BarColumn(24), MofNCompleteColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, text="")
        elif self.first:
            self._say_before()
        self.thread.start()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune copies what its callbacks hold. A copy has not begun, and has no thread."""
        return Progress, (self.label, self.total, self.unit, self.first)

    def _say_before(self) -> None:
        print(f"{self.label}: {self.first:,} of {self.total:,} {self.unit} were done before", flush=True)

    def begin(self, done: int) -> None:
        """The work begins now, after a wait; `done` units were done before."""
        with self.lock:
            self.first = self.done = done
            self.shown.clear()
            self.start = self.moved = time.monotonic()
            if done and self.bar is None:
                self._say_before()

    def advance(self, count: int, **shown: object) -> None:
        """`count` more units are done; keyword values are shown beside the rate."""
        with self.lock:
            self.done += count
            self.shown.update(shown)
            self.moved = time.monotonic() if count else self.moved
            if self.bar is not None:
                self.bar.update(self.task, completed=self.done, text=self._text())
            self._line()

    def tell(self, text: str) -> None:
        """One line of its own."""
        with self.lock:
            if self.bar is not None:
                self.bar.console.print(f"{self.label}: {text}")
            else:
                print(f"{self.label}: {text}", flush=True)

    def note(self, failures: dict[str, int] | None = None, /, **numbers: float) -> None:
        """Numbers so far: failures by reason, `tokens`, `queue`, `cost_usd` and the like."""
        with self.lock:
            self.failures.update(failures or {})
            self.numbers.update(numbers)

    def give_up(self) -> None:
        """The work has failed, although no exception passes through this block."""
        self.gave_up = True

    def _beat(self) -> None:
        while not self.over.wait(BEAT_S):
            self.beat()

    def beat(self) -> None:
        """Prints a line and writes a record if they are due. A slow storage delays no work: this thread writes."""
        with self.lock:
            self._line()
            now = time.monotonic()
            due = self.meter is not None and now - self.last_record >= RECORD_EVERY_S
            record = self._record("running") if due else None
        if self.meter is not None and record is not None:
            self.last_record = now
            self.meter.add(record)

    def _line(self) -> None:
        now = time.monotonic()
        if self.bar is None and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            quiet = now - self.moved
            stall = f", nothing new for {duration(quiet)}" if quiet >= LINE_EVERY_S else ""
            print(f"{self.label}: {self.done:,}/{self.total:,} {self._text()}{stall}", flush=True)

    def _seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def _text(self) -> str:
        # Up to the last unit that was done: units still in work do not lower the rate.
        seconds = self._seconds() if self.over.is_set() else self.moved - self.start
        rate, units, remaining = (self.done - self.first) / max(seconds, 1e-9), self.total - self.done, ""
        if rate > 0 and units > 0 and not self.over.is_set():
            # One unit has been in work since the last one was done.
            remaining_s = max(units / rate - (time.monotonic() - self.moved), (units - 1) / rate)
            remaining = f", {duration(remaining_s)} left"
        tokens = f", {self.numbers['tokens'] / self._seconds():,.0f} tokens/s" if self.numbers.get("tokens") else ""
        failed = f", failed {sum(self.failures.values()):,}" if any(self.failures.values()) else ""
        extra = "".join(f", {key} {value}" for key, value in self.shown.items())
        slow = 0 < rate < 0.5
        pace = f"{1 / rate:,.1f} s/{self.unit.removesuffix('s')}" if slow else f"{rate:,.1f} {self.unit}/s"
        return f"{pace}{remaining}{tokens}{extra}{failed}"

    def _record(self, state: str) -> dict[str, Any]:
        """A record for the meter. `done` counts the work of this process, `before` what was done before it."""
        seconds, done = self._seconds(), self.done - self.first
        tokens = self.numbers.get("tokens")
        return {
            "stage": self.label,
            "state": state,
            "unit": self.unit,
            "done": done,
            "before": self.first,
            "total": self.total,
            "remaining": self.total - self.done,
            "seconds": round(seconds, 1),
            "rate": round(done / seconds, 3),
            "tokens_per_s": None if tokens is None else round(tokens / seconds, 1),
            "failures": dict(self.failures),
            **{"tokens": None, "queue": None, **self.numbers},
        }

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        succeeded = kind is None and not self.gave_up
        self.over.set()
        self.thread.join()
        if self.bar is not None:
            self.bar.stop()
        if self.meter is not None:
            self.meter.add(self._record("done" if succeeded else "failed"))
        if succeeded:
            took = duration(time.monotonic() - self.start)
            print(f"{self.label}: {self.done:,} {self.unit} in {took} ({self._text()})", flush=True)
