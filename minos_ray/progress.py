"""Progress of long work: a bar on a terminal, one line per 30 seconds in a log."""

import sys
import time
from types import TracebackType

LINE_EVERY_S = 30.0


def duration(seconds: float) -> str:
    """`75` -> `1m15s`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
    """Counts `total` units of work; `advance` shows done, rate, time left and what the caller adds."""

    def __init__(self, label: str, total: int, unit: str = "rows", done: int = 0) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.first, self.start = done, time.monotonic()
        self.shown: dict[str, object] = {}
        self.last_line = self.start
        self.bar = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._open_bar()
        elif self.first:
            print(f"{self.label}: {self.first:,} of {self.total:,} {self.unit} were done before", flush=True)
        return self

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

    def advance(self, count: int, **shown: object) -> None:
        """`count` more units are done; keyword values are shown beside the rate."""
        self.done += count
        self.shown.update(shown)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, text=self._text())
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            print(f"{self.label}: {self.done:,}/{self.total:,} {self._text()}", flush=True)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.first) / seconds
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        extra = "".join(f", {key} {value}" for key, value in self.shown.items())
        return f"{rate:,.1f} {self.unit}/s{left}{extra}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        if kind is None:
            took = duration(time.monotonic() - self.start)
            print(f"{self.label}: {self.done:,} {self.unit} in {took} ({self._text()})", flush=True)
