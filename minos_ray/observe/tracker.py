"""Numbers of trainings and evaluations sent to a tracker that the config names; its failure stops no work."""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from minos_ray.config.functions import NamedFunction
from minos_ray.config.load import resolve
from minos_ray.config.resources import Observe
from minos_ray.errors import UserError
from minos_ray.observe.cause import cause
from minos_ray.observe.failure import without_secrets
from minos_ray.store.run import Run, fingerprint

FORM = "(run, **observe.options) -> an object with log(numbers, step=...) and finish()"
SHIPPED = {f"minos_ray.observe.trackers:{name}": name for name in ("wandb", "mlflow", "trackio")}
MAX_WAITING = 100_000  # records in memory for a tracker that is slower than the work
FINISH_S = 60.0  # the longest that work waits, in the end, for its tracker


class TrackedRun(NamedTuple):
    """What a tracker function is called with.

    A training that is stopped and resumed has the same `id` (16 hex digits) again. `name` is that of the model, or
    `evaluation`; `group` the last part of the run directory's path; `settings` holds JSON values.
    """

    id: str
    name: str
    group: str
    settings: dict[str, Any]


class Tracker(Protocol):
    """What a tracker function returns; runs of W&B and trackio are of this form."""

    def log(self, numbers: dict[str, float], /, *, step: int) -> object:
        """Takes the numbers of one step."""

    def finish(self) -> object:
        """Sends what is still to be sent."""


def named_tracker(observe: Observe) -> list[NamedFunction]:
    """The function that the config names, if it names one."""
    name, key = observe.tracker, "observe.tracker"
    return [NamedFunction(key, name, FORM, (None,), observe.options)] if name else []


def require_library(observe: Observe) -> None:
    """UserError when the library of a shipped tracker is not installed."""
    library = SHIPPED.get(observe.tracker or "")
    spec = find_spec(library) if library else None
    if library and (spec is None or spec.origin is None):  # a folder `wandb`, in which W&B keeps files, has no origin
        raise UserError(f"observe.tracker = {observe.tracker}: install its library, pip install 'minos_ray[{library}]'")


class Tracking:
    """One tracked run. Its tracker is called in a thread, so that neither an error nor a slow network delays the work.

    `error` is the first thing that went wrong, in one line without keys.
    """

    def __init__(self, observe: Observe, run: Run, name: str, key: str | None, settings: dict[str, Any]) -> None:
        identity = fingerprint({"run": run.path, "name": name, "key": key})
        group = run.root.rstrip("/").rpartition("/")[2]
        self.observe, self.run = observe, TrackedRun(identity, name, group, settings)
        self.added = self.taken = 0
        self.error: str | None = None
        self.records: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._call_tracker, daemon=True)
        self.thread.start()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Hands over the numbers of one step, unless the tracker is gone or far behind; returns at once."""
        self.added += 1
        if self.thread.is_alive() and self.records.qsize() < MAX_WAITING:
            self.records.put((dict(numbers), step))

    def close(self) -> dict[str, Any]:
        """Waits for the tracker to finish, for a minute at most; returns what the manifest says of it."""
        self.records.put(None)
        self.thread.join(FINISH_S)
        if self.thread.is_alive():
            self.error = self.error or f"it has not finished within {FINISH_S:.0f} s"
        return {"tracker": {"function": self.observe.tracker, "lost": self.added - self.taken}}

    @property
    def warning(self) -> str | None:
        """One line for the user, when something went wrong."""
        return self.error and f"observe.tracker = {self.observe.tracker}: {self.error}; the work goes on without it"

    def _call_tracker(self) -> None:
        tracker: Tracker | None = None
        with self._noting_errors():
            tracker = resolve(self.observe.tracker or "")(self.run, **self.observe.options)
        while tracker is not None and (record := self.records.get()) is not None:
            with self._noting_errors():
                tracker.log(record[0], step=record[1])
                self.taken += 1
        with self._noting_errors():
            if tracker is not None:
                tracker.finish()

    @contextmanager
    def _noting_errors(self) -> Generator[None]:
        """Keeps the first error of a library that no work depends on; `close` counts what it did not take."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.error = self.error or without_secrets(cause(error)).rstrip(".")
