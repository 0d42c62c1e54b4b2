"""Numbers of trainings and evaluations sent to a tracker that the config names; its failure stops no work.

`observe.tracker` may name the trackers here (W&B, MLflow, trackio) or a function of your own. Each takes its key from
the environment.
"""

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minos_ray.config.load import resolve
from minos_ray.config.resources import Observe, leaves
from minos_ray.errors import UserError
from minos_ray.observe.failure import cause, without_secrets
from minos_ray.store.run import Run, fingerprint

if TYPE_CHECKING:
    from mlflow import MlflowClient

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


def require_library(observe: Observe) -> None:
    """UserError when the library of a shipped tracker is not installed."""
    library = SHIPPED.get(observe.tracker or "")
    spec = find_spec(library) if library else None
    if library and (spec is None or spec.origin is None):  # a folder `wandb`, in which W&B keeps files, has no origin
        raise UserError(f"observe.tracker = {observe.tracker}: install its library, pip install {library}")


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


def wandb(run: TrackedRun, **options: Any) -> Tracker:
    """Weights & Biases: the arguments of `wandb.init`; WANDB_API_KEY, or WANDB_MODE=offline.

    `project` is minos_ray unless it is given.
    """
    import wandb as client

    # Without a key `init` asks for one on a terminal, and waits.
    online = options.get("mode", client.setup().settings.mode) == "online"
    if online and not client.login(prompt=False, verify=False):
        raise UserError("W&B has no key: set WANDB_API_KEY, or WANDB_MODE=offline")
    fields = {"id": run.id, "name": run.name, "group": run.group, "config": run.settings, "resume": "allow"}
    return client.init(**{"project": "minos_ray", **fields, **options})


def trackio(run: TrackedRun, **options: Any) -> Tracker:
    """trackio: the arguments of `trackio.init`; a local database in TRACKIO_DIR, or `space_id` and HF_TOKEN.

    It knows runs by their names, so the name ends in the id.
    """
    import trackio as client

    fields = {"name": f"{run.name}-{run.id[:8]}", "group": run.group, "config": run.settings, "resume": "allow"}
    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    arguments: dict[str, Any] = {"project": "minos_ray", **fields, **quiet, **options}
    return client.init(**arguments)


def mlflow(run: TrackedRun, *, project: str = "minos_ray", tracking_uri: str | None = None) -> "MlflowRun":
    """MLflow: a run of the experiment `project`, at `tracking_uri` or MLFLOW_TRACKING_URI.

    MLflow gives runs ids of its own; ours is the tag `minos_ray.id`, by which a resumed training finds its run.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri)
    with suppress(MlflowException):  # it is there already
        client.create_experiment(project)
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    before = client.search_runs([experiment.experiment_id], f"tags.`minos_ray.id` = '{run.id}'", max_results=1)
    if before:
        client.update_run(before[0].info.run_id, status="RUNNING")
        return MlflowRun(client, before[0].info.run_id)
    tags = {"minos_ray.id": run.id, "minos_ray.group": run.group}
    identity = client.create_run(experiment.experiment_id, run_name=run.name, tags=tags).info.run_id
    client.log_batch(identity, params=[Param(key, str(value)) for key, value in leaves(run.settings)])
    return MlflowRun(client, identity)


class MlflowRun:
    """A run of MLflow as a tracker: one request for each step."""

    def __init__(self, client: "MlflowClient", identity: str) -> None:
        self.client, self.identity = client, identity

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        """Takes the numbers of one step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.identity, [Metric(key, value, now, step) for key, value in numbers.items()])

    def finish(self) -> None:
        """Says that the run is over."""
        self.client.set_terminated(self.identity)
