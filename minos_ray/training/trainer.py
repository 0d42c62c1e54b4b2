"""The driver's side of training: one Ray Train run per stage, its models one after the other in one worker group."""

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minos_ray import cluster
from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.progress import Progress
from minos_ray.store import Manifest, Run
from minos_ray.training.batches import total_steps
from minos_ray.training.job import Job
from minos_ray.training.log import Record, log_name, read_log

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

POLL_S = 1.0


def fit(config: Config, run: Run, stage: str, jobs: Sequence[Job]) -> None:
    """Trains the jobs, which are complete after it; a fit that was stopped goes on from its last checkpoint."""
    if not jobs:
        return
    cluster.connect(config)
    cluster.require("train", config.resources.train, config.resources.wait_s)
    refuse_what_cannot_fit(run, jobs, config.resources.wait_s)
    folder = f"checkpoints/{stage}"
    refuse_other_layout(run, folder, jobs)
    for job in jobs:
        run.delete(log_name(job.name))
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(run, jobs, done), daemon=True)
    watcher.start()
    try:
        trainer(run, folder, jobs).fit()
    finally:
        done.set()
        watcher.join()
    run.delete(folder)


def finished(run: Run, artefact: str) -> Manifest:
    """The manifest of a model that must be there now."""
    manifest = run.artefact(artefact).manifest()
    if manifest is None:
        raise RuntimeError(f"training ended, yet {run.path}/{artefact} is not complete")
    return manifest


def trainer(run: Run, folder: str, jobs: Sequence[Job]) -> "TorchTrainer":
    """Ray Train, which starts the group again when a worker or a node is lost; checkpoints are ours."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from minos_ray.training.loop import train_all

    workers = jobs[0].workers
    root, _, name = f"{run.root}/{folder}".rpartition("/")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    return TorchTrainer(
        train_all,
        train_loop_config={"run": run.path, "checkpoints": folder, "jobs": [job.model_dump() for job in jobs]},
        scaling_config=ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=root,
            storage_filesystem=run.fs,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=workers.max_failures, controller_failure_limit=3),
        ),
    )


def refuse_what_cannot_fit(run: Run, jobs: Sequence[Job], wait_s: float) -> None:
    """UserError when the GPUs of the cluster cannot hold a training; one of them is asked unless the config says."""
    import ray

    from minos_ray.training import gpus, memory

    workers = jobs[0].workers
    if not workers.gpu:
        return
    has = workers.gpu_memory_gb
    if has is None:
        has = ray.get(ray.remote(gpus.memory_gb).options(num_gpus=1).remote(), timeout=wait_s)
    for job in jobs:
        memory.refuse_one(job.name, memory.shape_of(job.start, run), job.section, workers, job.kind, has)


def refuse_other_layout(run: Run, folder: str, jobs: Sequence[Job]) -> None:
    """ZeRO's shards belong to a number of workers: going on with another one is refused before anything starts."""
    from minos_ray.training.checkpoint import whole

    now = {"workers": jobs[0].workers.workers, "zero": jobs[0].workers.zero}
    for job in jobs:
        for made in whole(run, f"{folder}/{job.name}", job.key)[-1:]:
            before = {"workers": made.world, "zero": made.zero}
            if before != now and (before["zero"] or now["zero"]):
                raise UserError(
                    f"resources.train: the training stopped in {run.path}/{folder} ran with workers={made.world} "
                    f"zero={made.zero}, now {now}; go on with those, or delete that folder to start it again"
                )


def watch(run: Run, jobs: Sequence[Job], done: threading.Event) -> None:
    """Shows the progress that the workers write into the logs, model after model, until `done`."""
    for job in jobs:
        while not (records := read_log(run, job.name)):
            if done.wait(POLL_S):
                return
        follow(run, job, done, max(record["step"] for record in records if record["event"] == "start"))


def follow(run: Run, job: Job, done: threading.Event, seen: int) -> None:
    """Progress of one model, from its log; `seen` steps were done before."""
    steps = total_steps(job.table.rows, job.section.epochs, job.section.batch_rows)
    with Progress(job.name, steps, "steps", seen) as progress:
        stopped = False
        while seen < steps and not stopped:
            stopped = done.wait(POLL_S)
            for record in (records := train_records(run, job))[seen:]:
                speed = record["tokens"] / max(record["seconds"], 1e-9)
                progress.advance(1, loss=f"{record['loss']:.4f}", tokens_per_s=f"{speed:,.0f}")
            seen = len(records)


def train_records(run: Run, job: Job) -> list[Record]:
    """The steps done so far."""
    return [record for record in read_log(run, job.name) if record["event"] == "train"]
