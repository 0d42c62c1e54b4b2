"""Progress of long work: a bar on a terminal, one line per 30 seconds in a log, and records for the meter."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minos_ray.store.run import Run

LINE_EVERY_S = 30.0
# How often to check whether a line or a record is due, also while nothing advances.
BEAT_S = 5.0
RECORD_EVERY_S = 10.0


def duration(seconds: float) -> str:
    """`75` -> `1m15s`."""
    minutes, remainder = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{remainder:02d}s" if minutes else f"{remainder}s"


class Progress:
    """Counts `total` units of work; `advance` shows done, rate, time left and what the caller adds.

    With a `run` the numbers are also kept in `logs/metrics/` of it and sent as Ray metrics.
    """

    def __init__(self, label: str, total: int, unit: str = "rows", done: int = 0, run: "Run | None" = None) -> None:
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
            from minos_ray.observe.meter import Meter

            self.meter = Meter(self.run, self.label)
        if sys.stderr.isatty():
            self._open_bar()
        elif self.first:
            self._say_before()
        self.thread.start()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune copies what its callbacks hold. A copy has not begun, and has no thread."""
        return Progress, (self.label, self.total, self.unit, self.first)

    def _say_before(self) -> None:
        print(f"{self.label}: {self.first:,} of {self.total:,} {self.unit} were done before", flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.bar = Bar(*columns, console=Console(stderr=True))
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, text="")

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
            print(f"{self.label}: {self.done:,}/{self.total:,} {self._text()}{self._stall(now)}", flush=True)

    def _seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def _text(self) -> str:
        rate = self._rate()
        going_on = rate > 0 and self.done < self.total and not self.over.is_set()
        remaining = f", {duration(self._remaining_s(rate))} left" if going_on else ""
        tokens = f", {self.numbers['tokens'] / self._seconds():,.0f} tokens/s" if self.numbers.get("tokens") else ""
        failed = f", failed {sum(self.failures.values()):,}" if any(self.failures.values()) else ""
        extra = "".join(f", {key} {value}" for key, value in self.shown.items())
        slow = 0 < rate < 0.5
        pace = f"{1 / rate:,.1f} s/{self.unit.removesuffix('s')}" if slow else f"{rate:,.1f} {self.unit}/s"
        return f"{pace}{remaining}{tokens}{extra}{failed}"

    def _rate(self) -> float:
        """Units a second, measured up to the last one that was done: units still in work do not lower it."""
        seconds = self._seconds() if self.over.is_set() else self.moved - self.start
        return (self.done - self.first) / max(seconds, 1e-9)

    def _remaining_s(self, rate: float) -> float:
        """Seconds for the remaining units, one of which has been in work since the last one was done."""
        units = self.total - self.done
        return max(units / rate - (time.monotonic() - self.moved), (units - 1) / rate)

    def _stall(self, now: float) -> str:
        quiet = now - self.moved
        return f", nothing new for {duration(quiet)}" if quiet >= LINE_EVERY_S else ""

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
