"""The driver's side of training: one Ray Train run per stage, its models one after the other in one worker group."""

import math
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from minos_ray.cluster import connect
from minos_ray.cluster.connect import Waiting
from minos_ray.cluster.room import bundles, on_nodes
from minos_ray.config.load import Config
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Model
from minos_ray.errors import StorageFailed, UserError, WorkStopped
from minos_ray.observe.failure import cause, deepest, first_to_fail
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Manifest, Run
from minos_ray.training.job import Job
from minos_ray.training.log import Record, log_name, read_log

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

POLL_S, REMOTE_POLL_S = 1.0, 15.0


def fit(config: Config, run: Run, stage: str, jobs: Sequence[Job]) -> None:
    """Trains the jobs, which are complete after it; a fit that was stopped goes on from its last checkpoint.

    Without jobs it clears away the checkpoints that a kill right after the last manifest has left.
    """
    folder = f"checkpoints/{stage}"
    if not jobs:
        run.delete(folder)
        return
    connect.join(config.resources)
    connect.require("train", config.resources.train, config.resources.wait_s)
    start = config.base if stage == "reward" else jobs[0].start
    check_gpu_memory(run, jobs, start, config.resources.wait_s)
    require_resumable(run, folder, jobs)
    for job in jobs:
        run.delete(log_name(job.name))
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(run, jobs, done), daemon=True)
    watcher.start()
    try:
        train(trainer(run, folder, jobs, config.resources.wait_s), jobs[0].workers, stage)
    finally:
        done.set()
        watcher.join()
    run.delete(folder)


def finished(run: Run, artefact: str) -> Manifest:
    """The manifest of a model that has just been trained."""
    manifest = run.artefact(artefact).manifest()
    if manifest is None:
        raise RuntimeError(f"training ended, yet {run.at(artefact)} is not complete")
    return manifest


def check_gpu_memory(run: Run, jobs: Sequence[Job], start: Model, wait_s: float) -> None:
    """UserError when the GPUs of the cluster cannot hold a training; one node is asked unless the config says.

    `start` has the sizes of the models they start from.
    """
    from minos_ray.training import memory

    workers = jobs[0].workers
    if not workers.gpu:
        return
    gpu_gb = workers.gpu_memory_gb or memory_of_a_gpu(workers, wait_s)
    shape = memory.shape_of(start, run)
    for job in jobs:
        memory.require_room(job.name, shape, job.section, workers, job.kind, gpu_gb)


def memory_of_a_gpu(workers: Workers, wait_s: float) -> float | None:
    """GB of a GPU where the workers may be, None when no node answers in time: Ray Train then waits for GPUs itself."""
    import ray
    from ray.exceptions import GetTimeoutError

    from minos_ray.cluster import nodes

    # A trial of Ray Tune would hold its tasks to its own placement group, which has no GPU.
    options = {"num_cpus": 0, "num_gpus": 1, "scheduling_strategy": "DEFAULT", **on_nodes(workers)}
    answer = ray.remote(nodes.gpu_memory_gb).options(**options).remote()
    try:
        return ray.get(answer, timeout=wait_s)
    except GetTimeoutError:
        ray.cancel(answer)
        return None


def require_resumable(run: Run, folder: str, jobs: Sequence[Job]) -> None:
    """UserError, before anything starts, when a stopped training had ZeRO and is to go on without it, or the reverse.

    Other numbers of workers, and stages 1 to 3, go on from the same checkpoint.
    """
    from minos_ray.training.checkpoint import complete_checkpoints

    zero = jobs[0].workers.zero
    for job in jobs:
        for checkpoint in complete_checkpoints(run, f"{folder}/{job.name}", job.key)[-1:]:
            if bool(checkpoint.zero) != bool(zero):
                stages = "0" if checkpoint.zero == 0 else "1, 2 or 3"
                raise UserError(
                    f"resources.train.zero = {zero}: the training stopped in {run.at(folder)} ran with "
                    f"zero={checkpoint.zero}; go on with {stages}, or delete that folder to start it again"
                )


def trainer(run: Run, folder: str, jobs: Sequence[Job], wait_s: float) -> "TorchTrainer":
    """Ray Train, which starts the group again when a worker or a node is lost; checkpoints are ours."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from minos_ray.training import spares
    from minos_ray.training.elastic import LOOK_EVERY_S, START_S, excuse_drains, follow_cluster
    from minos_ray.training.loop import train_all

    workers = jobs[0].workers
    root, _, name = f"{run.root}/{folder}".rpartition("/")
    # A group that does not come up within its time fails like one that died; an elastic one is sized again, until the
    # time is over.
    elastic = workers.least < workers.most
    start_s = min(START_S, wait_s) if elastic else wait_s
    tries = workers.max_failures + (math.ceil(wait_s / start_s) if elastic else 0)
    failures = FailureConfig(max_failures=workers.max_failures, controller_failure_limit=tries)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(limit_s := workers.collective_timeout_s)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    if workers.gpu:  # it asks NCCL itself, and is to speak before NCCL's watchdog ends the processes
        os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
        os.environ.setdefault("RAY_TRAIN_NCCL_RAS_ACTION", "fail")
        os.environ.setdefault("RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S", str(min(600.0, limit_s / 2)))
    torch_trainer = TorchTrainer(
        train_all,
        train_loop_config={"run": run.path, "checkpoints": folder, "jobs": [job.model_dump() for job in jobs]},
        torch_config=TorchConfig(timeout_s=math.ceil(limit_s)),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.most) if elastic else workers.least,
            elastic_resize_monitor_interval_s=LOOK_EVERY_S,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
            **on_nodes(workers),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=root,
            storage_filesystem=run.fs,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=failures,
            worker_runtime_env=spares.environment(train_all.__module__, workers.cpus),
        ),
    )
    excuse_drains(torch_trainer)
    if elastic:
        follow_cluster(torch_trainer, workers, wait_s, run.path, [(f"{folder}/{job.name}", job.key) for job in jobs])
    return torch_trainer


def train(torch_trainer: "TorchTrainer", workers: Workers, stage: str) -> None:
    """Runs it. A worker's UserError is raised as such, every other failure as WorkStopped."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    # Ray Train's handler of SIGINT would stay for good, keep the controller alive and turn Ctrl-C into exit code 0.
    torch_trainer._register_sigint_handler = lambda controller: None
    try:
        torch_trainer.fit()
    except RayActorError as error:
        message = f"{stage}: Ray Train's controller died; the same command goes on from the last checkpoint"
        raise WorkStopped(message) from error
    except TrainingFailedError as error:
        if isinstance(origin := deepest(error), UserError):
            raise UserError(str(origin)) from error
        reason = cause(error)
        if isinstance(origin, WorkStopped):
            reason = str(origin)
        elif failures := getattr(error, "worker_failures", None):
            count = f"at most {workers.most}" if workers.least < workers.most else workers.most
            reason = f"worker {first_to_fail(failures) + 1} of {count} failed: {reason}"
        elif type(origin).__name__ == "WorkerGroupStartupTimeoutError":
            reason = f"no room within resources.wait_s for {Waiting('train', bundles(workers), 0.0).why()}"
        raise WorkStopped(f"{stage}: {reason}; a rerun goes on from the last checkpoint") from error


def watch(run: Run, jobs: Sequence[Job], done: threading.Event) -> None:
    """Shows the progress that the workers write into the logs, model after model, until `done`."""
    printed: dict[str, set[str]] = {job.name: set() for job in jobs}
    for job in jobs:
        if not done.is_set():
            follow(run, job, done, printed[job.name])
    done.wait()
    for job in jobs:
        for text in unseen(refresh(run, job, []), printed[job.name]):
            print(f"{job.name}: {text}", flush=True)


def follow(run: Run, job: Job, done: threading.Event, printed: set[str]) -> None:
    """Progress of one model, from its log; before its first step, that its workers are starting."""
    steps = job.steps
    pause = POLL_S if run.local else REMOTE_POLL_S
    records: list[Record] = []
    with Progress(job.name, steps, "steps", run=run) as progress:
        while not (starts := [r["step"] for r in refresh(run, job, records) if r["event"] == "start"]):
            progress.advance(0, workers="are starting")
            if done.wait(pause):
                return progress.give_up()
        progress.begin(seen := max(starts))
        for text in unseen(records, printed):
            progress.tell(text)
        stopped, tokens = False, 0
        while seen < steps and not stopped:
            stopped = done.wait(pause)
            trained = [r for r in refresh(run, job, records) if r["event"] == "train"]
            if len(trained) != seen:  # fewer when the workers have begun again at a checkpoint
                tokens += sum(record["tokens"] for record in trained[seen:])
                loss = {"loss": trained[-1]["loss"]} if trained else {}
                progress.note(tokens=tokens, **loss)
                progress.advance(len(trained) - seen, **{key: f"{value:.4f}" for key, value in loss.items()})
            seen = len(trained)
            for text in unseen(records, printed):
                progress.tell(text)
        if seen < steps:
            progress.give_up()


def unseen(records: list[Record], printed: set[str]) -> list[str]:
    """Texts of a training since its last start that were not printed yet; they count as printed then."""
    last = max((place for place, record in enumerate(records) if record["event"] == "start"), default=0)
    texts = [record["text"] for record in records[last:] if "text" in record and record["text"] not in printed]
    printed.update(texts)
    return texts


def refresh(run: Run, job: Job, records: list[Record]) -> list[Record]:
    """Replaces `records` by those of the log. A storage that fails changes nothing: the training may be going on."""
    with suppress(StorageFailed):
        records[:] = read_log(run, job.name)
    return records
