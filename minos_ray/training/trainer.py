"""The driver's side of training: what it needs of each GPU, before anything is loaded, and one Ray Train run per stage,
its models one after the other in one worker group.

Bytes per parameter after ZeRO (Rajbhandari et al. 2020, section 3); activations counted from what autograd keeps of a
decoder layer with flash attention and a gated MLP.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minos_ray.cluster import connect, nodes
from minos_ray.cluster.connect import Waiting, joins
from minos_ray.cluster.room import bundles, on_nodes
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Reward, Train
from minos_ray.errors import StorageFailed, UserError, WorkStopped
from minos_ray.graph.specs import begin, fresh
from minos_ray.observe.failure import cause, deepest, first_to_fail
from minos_ray.observe.progress import Progress
from minos_ray.store.model_files import locate
from minos_ray.store.run import Manifest, Run
from minos_ray.training.data import Job
from minos_ray.training.results import Record, log_name, read_log

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

POLL_S, REMOTE_POLL_S = 1.0, 15.0
ADAM = 8  # two moments in fp32
MASTER = 4  # the fp32 copy of weights trained in bf16
SUM = 4  # gradients are added up in fp32
CHUNK_BYTES = 2**26  # of logits, as `vocabulary.CHUNK_BYTES`
LIVE = 10**9  # DeepSpeed's stage3_max_live_parameters and sub_group_size
# CUDA context, buffers of NCCL and of DeepSpeed's buckets, fragmentation.
OVERHEAD_GB = 3.0
GB = 1e9


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


def fit_one(config: Config, run: Run, stage: str, artefact: str, job: Callable[[], Job]) -> Manifest:
    """Trains one model unless it is complete; `job` is called when its artefact has been begun."""
    jobs = []
    if not fresh(config, run, artefact):
        begin(config, run, artefact)
        jobs.append(job())
    fit(config, run, stage, jobs)
    return finished(run, artefact)


def finished(run: Run, artefact: str) -> Manifest:
    """The manifest of what has just been made."""
    manifest = run.artefact(artefact).manifest()
    if manifest is None:
        raise RuntimeError(f"the work ended, yet {run.at(artefact)} is not complete")
    return manifest


def check_gpu_memory(run: Run, jobs: Sequence[Job], start: Model, wait_s: float) -> None:
    """UserError when the GPUs of the cluster cannot hold a training; one node is asked unless the config says.

    `start` has the sizes of the models they start from.
    """
    workers = jobs[0].workers
    if not workers.gpu:
        return
    gpu_gb = workers.gpu_memory_gb or memory_of_a_gpu(workers, wait_s)
    shape = shape_of(start, run)
    for job in jobs:
        require_room(job.name, shape, job.section, workers, job.kind, gpu_gb)


def memory_of_a_gpu(workers: Workers, wait_s: float) -> float | None:
    """GB of a GPU where the workers may be, None when no node answers in time: Ray Train then waits for GPUs itself."""
    import ray
    from ray.exceptions import GetTimeoutError

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
    from minos_ray.training.engine import complete_checkpoints

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

    from minos_ray.training.elastic import LOOK_EVERY_S, START_S, follow_cluster, worker_environment
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
            worker_runtime_env=worker_environment(train_all.__module__, workers.cpus),
        ),
    )
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


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; `linears` as `models.linears` gives them."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv: int
    vocabulary: int
    head: int = 0  # parameters of a vocabulary head of its own
    linears: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """GB on one GPU, and in the memory of its node for each GPU when something is offloaded."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    host: float = 0.0
    update: float = 0.0  # the gradients again, while they are applied: activations are gone by then

    @property
    def gpu(self) -> float:
        """All that must fit on the GPU."""
        held = self.parameters + self.gradients + self.optimizer
        return held + max(self.activations, self.update) + OVERHEAD_GB


def shape(config: Any, trust_remote_code: bool = False) -> Shape:
    """The sizes that a transformers config names; parameters are counted on a model without memory."""
    from minos_ray.training import models

    model = models.on_meta(config, trust_remote_code)
    config = config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kv=groups * head,
        vocabulary=config.vocab_size,
        head=0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size,
        linears=models.linears(model),
    )


def estimate(model: Shape, section: Train, workers: Workers, kind: str) -> Estimate:
    """The peak of one training step of one worker; `kind` is lm, orm or prm."""
    size = 2 if section.precision == "bf16" else 4
    ranks = workers.least  # with more, each has less of it
    # A verifier with a language loss trains the vocabulary head along.
    with_head = kind == "lm" or (isinstance(section, Reward) and section.lm_weight > 0)
    backbone = model.parameters - (0 if with_head else model.head)
    added, trained = 0, backbone
    if section.lora is not None:
        from minos_ray.training import models

        added = models.adapter_size(section.lora, model.linears)
        trained = added + (0 if with_head else model.hidden)
    # DeepSpeed keeps a copy of the weights in fp32 under bf16, and under ZeRO 1 and 2 always.
    copied = size == 2 or workers.zero in (1, 2)
    optimizer = trained * (ADAM + (MASTER if copied else 0)) / (ranks if workers.zero >= 1 else 1)
    gradients, update = gradient_bytes(trained, size, workers)
    # Beside an optimizer in host memory lie the gradients that its rank applies.
    aside = gradients if workers.offload != "none" and workers.zero >= 2 else 0
    parameters = (backbone + added) * size / (ranks if workers.zero == 3 else 1)
    host = aside + (optimizer if workers.offload != "none" else 0) + (parameters if workers.offload == "all" else 0)
    # Partitioned weights are gathered layer by layer, and kept while so many more are not needed before them.
    gathered = max(2 * model.parameters / model.layers, min(backbone, LIVE)) * size if workers.zero == 3 else 0
    return Estimate(
        parameters=(gathered + (0 if workers.offload == "all" else parameters)) / GB,
        gradients=(gradients - aside) / GB,
        optimizer=(0 if workers.offload != "none" else optimizer) / GB,
        activations=activation_bytes(model, workers, with_head, size) / GB,
        host=host / GB,
        update=(update if workers.offload == "none" else 0) / GB,
    )


def gradient_bytes(trained: int, size: int, workers: Workers) -> tuple[float, float]:
    """Of the gradients' sums in fp32, and of their copy while they are applied; as DeepSpeed 0.19 keeps them."""
    sums, copied = SUM * trained, SUM * trained / workers.least
    if workers.zero == 0:
        return sums, 0
    if workers.zero == 1:
        # Sums of all weights; those of a pass in bf16 stay beside them, and DeepSpeed then applies its part in place.
        return (sums + size * trained, 0) if size == 2 else (sums, copied)
    return copied, copied if workers.zero == 2 else min(copied, SUM * LIVE)


def activation_bytes(model: Shape, workers: Workers, with_head: bool, size: int) -> float:
    """Of what autograd keeps for one packed micro-batch, and of the vocabulary's logits."""
    # Residuals, norms, queries and attention output: 9 hidden; keys and values, rotated too: 3; the MLP: 4.
    layer = size * (9 * model.hidden + 3 * model.kv + 4 * model.intermediate)
    checkpointed = model.layers * size * model.hidden + layer
    per_token = checkpointed if workers.gradient_checkpointing else model.layers * layer
    # The vocabulary head works chunk by chunk, with the gradient of its weights in fp32 (`vocabulary`).
    head = 3 * CHUNK_BYTES + SUM * model.vocabulary * model.hidden if with_head else 0
    return workers.micro_tokens * per_token + head


def plans(workers: Workers) -> Iterator[Workers]:
    """The plan itself, then ones that need less and less of the GPU, the cheapest change first."""
    yield workers
    changes: dict[str, Any] = {"gradient_checkpointing": True}
    yield workers.model_copy(update=changes)
    for zero in range(max(workers.zero, 1) + 1, 4):
        changes["zero"] = zero
        yield workers.model_copy(update=changes)
    for offload in ("optimizer", "all"):
        changes |= {"zero": 3, "offload": offload}
        yield workers.model_copy(update=changes)
    tokens = workers.micro_tokens
    while tokens > 1024:
        tokens //= 2
        yield workers.model_copy(update=changes | {"micro_tokens": tokens})


def first_fit(model: Shape, section: Train, workers: Workers, kind: str, gpu_gb: float) -> Workers | None:
    """The first plan that fits into so many GB, None when none does."""
    return next((plan for plan in plans(workers) if estimate(model, section, plan, kind).gpu <= gpu_gb), None)


def trainings(config: Config, todo: Set[str]) -> list[tuple[str, Train, str]]:
    """Name, section and kind of the stages to be done."""
    return [(name, section, "prm" if name == "reward" else "lm") for name, section in config.trainings(todo)]


def summary(config: Config, run: Run, todo: Set[str]) -> Iterator[str]:
    """A line for each stage to be done; UserError when the base model is not there."""
    model, workers = shape_of(config.base, run), config.resources.train
    for name, section, kind in trainings(config, todo):
        e = estimate(model, section, workers, kind)
        host = f" and {e.host:.1f} GB of host memory for each" if e.host else ""
        yield (
            f"resources.train: {name} needs about {e.gpu:.1f} GB on each GPU (weights {e.parameters:.1f}, gradients "
            f"{e.gradients:.1f}, optimizer {e.optimizer:.1f}, activations {e.activations:.1f}, the rest "
            f"{OVERHEAD_GB:.1f}){host}"
        )


def check_memory(config: Config, run: Run, todo: Set[str]) -> None:
    """UserError when a GPU of `resources.train.gpu_memory_gb`, or of this machine if it is to train, cannot hold it."""
    workers = config.resources.train
    gpu_gb = workers.gpu_memory_gb or (None if joins(config.resources) else nodes.gpu_memory_gb())
    model = shape_of(config.base, run)
    for name, section, kind in trainings(config, todo):
        require_room(name, model, section, workers, kind, gpu_gb)


def require_room(name: str, model: Shape, section: Train, workers: Workers, kind: str, gpu_gb: float | None) -> None:
    """UserError when GPUs of so many GB cannot hold one training, with the first plan that fits."""
    needed = estimate(model, section, workers, kind).gpu
    if gpu_gb is not None and needed > gpu_gb:
        plan = first_fit(model, section, workers, kind, gpu_gb)
        raise UserError(
            f"resources.train: {name} needs about {needed:.0f} GB on each GPU, which has {gpu_gb:.0f} "
            f"(resources.train.gpu_memory_gb, else what nvidia-smi says); {advice(workers, plan)}"
        )


def advice(workers: Workers, plan: Workers | None) -> str:
    """What to change so that the training fits."""
    if plan is None:
        return "no setting fits: take more workers"
    present = workers.model_dump()
    changes = {key: value for key, value in plan.model_dump().items() if value != present[key]}
    return "this fits: " + " ".join(f"resources.train.{key}={value}" for key, value in changes.items())


def shape_of(model: Model, run: Run) -> Shape:
    """The sizes of a model, from its config alone."""
    from transformers import AutoConfig

    trusted = model.trust_remote_code
    return shape(AutoConfig.from_pretrained(locate(model, run), trust_remote_code=trusted), trusted)
