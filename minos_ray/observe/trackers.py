"""Trackers that `observe.tracker` may name: W&B, MLflow, trackio. Each takes its key from the environment."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minos_ray.config.base import leaves
from minos_ray.errors import UserError
from minos_ray.observe.tracker import TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
