"""DeepSpeed: the engine around an objective, its optimizer step, the full weights out of it, and checkpoints of it in
the run directory: written aside, complete when every rank has said so, and loaded by any number of ranks.

A checkpoint is a folder `step-STEP-ATTEMPT` with DeepSpeed's state of all ranks and one `rank-R.json` of each rank, its
last file. Ray Train's own list of checkpoints is written in place, so a kill at the wrong moment leaves one that stops
every later start; here nothing is ever overwritten, and what is incomplete is passed over.

ZeRO keeps the fp32 weights and Adam's moments of many parameters in flat tensors and divides these among the ranks; a
checkpoint has them as they were divided. For other ranks, or another stage, each rank takes from it, parameter by
parameter, what is its own now, and hands that to DeepSpeed's loader. The files are mapped into memory, so a rank reads
only those pages, and beside what it trains with there is at most its own part once more in host memory. DeepSpeed's
universal checkpoints would write every parameter into files of its own first: twice the disk.
"""

import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from minos_ray.config.resources import Workers
from minos_ray.config.training import Train
from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run, fingerprint
from minos_ray.training import models, vocabulary
from minos_ray.training.base import persistent
from minos_ray.training.data import Job
from minos_ray.training.objective import Objective
from minos_ray.training.results import Record
from minos_ray.training.vocabulary import backbone_of
from minos_ray.units.actor import long_lived_imports

TAG = "state"
WEIGHTS = "weights"
STATES = (WEIGHTS, "exp_avg", "exp_avg_sq")
MODEL_STATES, RANK_STATES = "*mp_rank_00_model_states.pt", "*zero_pp_rank_{}_mp_rank_00_optim_states.pt"
# Of a file that DeepSpeed wrote a tensor is read when it is used.
MAPPED: dict[str, Any] = {"map_location": "cpu", "mmap": True, "weights_only": False}
# What DeepSpeed 0.19 calls the flat weights of all groups and the optimizer in the state of a rank, by "is ZeRO 3".
FLAT_NAMES = {
    False: ("single_partition_of_fp32_groups", "base_optimizer_state"),
    True: ("fp32_flat_groups", "optimizer_state_dict"),
}
# Of one group of parameters on one rank: flat tensors by what they hold (`STATES`), and Adam's `step`.
Flat = Mapping[str, torch.Tensor]


def prepare(gpu: bool) -> None:
    """To be called before deepspeed is imported: on CPUs nothing is compiled; libraries log errors only."""
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    with long_lived_imports("deepspeed"):
        import deepspeed.ops
        import transformers.models.auto.modeling_auto  # noqa: F401 what loading a model imports
        from deepspeed.utils import logger
        from transformers.utils import logging

    if not gpu:
        deepspeed.ops.__compatible_ops__ = {}
    logger.setLevel("ERROR")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def start(objective: Objective, section: Train, workers: Workers) -> Any:
    """An engine whose `step()` ends an accumulation of any number of `backward()`."""
    import deepspeed

    if section.lora is not None:
        models.attach(objective, section.lora, section.seed)
    if workers.zero < 3:  # whose shards DeepSpeed gathers by its own linear function
        vocabulary.take_layers(backbone_of(objective.model))
    if workers.gradient_checkpointing:
        objective.model.gradient_checkpointing_enable({"use_reentrant": False})
    # The loop sets the rate of each step; a rate of 0 until then: DeepSpeed's own first step must not decay weights.
    optimizer = torch.optim.AdamW(parameter_groups(objective, section.weight_decay), lr=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings(section, workers))
    # In bf16 without ZeRO, DeepSpeed 0.19 makes the state by a step without gradients, and Adam's bias correction would
    # count it: the first update was a quarter too small.
    for state in optimizer.state.values():
        state["step"].zero_()
    if section.precision == "bf16" and not workers.zero:
        # Gradients of bf16 weights are added up in fp32: in bf16 a sum over many packs stops growing. With ZeRO the
        # settings say so; without it DeepSpeed 0.19 has no setting, and its own first step needs bf16 gradients.
        for parameter in objective.parameters():
            parameter.grad_dtype = torch.float32
    return engine


def update(engine: Any) -> None:
    """One optimizer step.

    What no pack has used (an expert) gets a gradient of zero: DeepSpeed would make one in bf16, and torch accepts fp32
    only where `grad_dtype` is set.
    """
    for parameter in engine.module.parameters():
        if parameter.requires_grad and parameter.grad is None and parameter.grad_dtype != parameter.dtype:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
    engine.step()


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained: matrices decay, norms and biases do not. No group is empty, DeepSpeed could not flatten it."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    # A parameter that ZeRO 3 has partitioned is empty; its true shape is beside it.
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def settings(section: Train, workers: Workers) -> dict[str, Any]:
    """DeepSpeed's configuration. The loop owns accumulation: a step has as many micro-batches as it needs.

    Gradients are added up, over packs and over ranks, in fp32.
    """
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if workers.zero else {}
    # Where the optimizer's state, and with ZeRO 3 the weights, live between their uses.
    host = {"device": "cpu", "pin_memory": workers.gpu}
    offload = {"offload_optimizer": host} if workers.offload != "none" else {}
    offload |= {"offload_param": host} if workers.offload == "all" else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": section.clip,
        "bf16": {"enabled": section.precision == "bf16"},
        "communication_data_type": "fp32",
        **sums,
        # In fp32 as many bytes as DeepSpeed's own 5e8 in bf16.
        "zero_optimization": {"stage": workers.zero, "reduce_bucket_size": 250_000_000, **offload},
        # torch's fused AdamW runs on host memory as well; DeepSpeed's own would have to be compiled on every node.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def full_weights(engine: Any, zero: int) -> dict[str, torch.Tensor]:
    """Every weight of the transformers model and every saved buffer, on the CPU of rank 0 (empty elsewhere).

    All ranks must call it.
    """
    import deepspeed

    state = {}
    for name, weight in engine.module.model.named_parameters():
        gathered = deepspeed.zero.GatheredParameters([weight]) if zero == 3 else nullcontext()
        with gathered:
            if engine.global_rank == 0:
                state[name] = weight.detach().to("cpu", copy=True)
    if engine.global_rank == 0:
        state |= {name: buffer.to("cpu", copy=True) for name, buffer in persistent(engine.module.model).items()}
    return state


class RankFile(BaseModel):
    """The last file that a rank writes of a checkpoint: of which training it is, and the sizes of all its files."""

    model_config = ConfigDict(extra="forbid")

    key: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None
    files: dict[str, int]


class Checkpoint(NamedTuple):
    """A checkpoint of which every rank's files are complete."""

    folder: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None


def complete_checkpoints(run: Run, place: str, key: str) -> list[Checkpoint]:
    """The complete checkpoints of a training in a folder of the run, the newest last."""
    folders = [f"{place}/{name}" for name in run.folders(place)]
    checkpoints = [checkpoint for folder in folders if (checkpoint := inspect(run, folder, key))]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def inspect(run: Run, folder: str, key: str) -> Checkpoint | None:
    """The checkpoint in a folder, None when it is of another training or incomplete."""
    names = [name for name in run.files(folder) if name.startswith("rank-") and name.endswith(".json")]
    try:
        ranks = [RankFile.model_validate_json(run.read_bytes(f"{folder}/{name}")) for name in names]
    except (ValidationError, FileNotFoundError):  # torn, or deleted meanwhile
        return None
    if not ranks or any(rank.key != key or rank.world != len(ranks) for rank in ranks):
        return None
    sizes = run.sizes(folder)
    if any(sizes.get(name) != size for rank in ranks for name, size in rank.files.items()):
        return None
    return Checkpoint(folder, ranks[0].step, ranks[0].world, ranks[0].zero, ranks[0].held_out_loss)


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest loss on held-out rows among those saved right after an evaluation."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.held_out_loss is not None]
    return min(evaluated, key=lambda checkpoint: checkpoint.held_out_loss, default=None)


class Checkpoints:
    """The checkpoints of one training, as one rank sees them. Saving returns when the state is on the local disk."""

    def __init__(self, run: Run, place: str, job: Job) -> None:
        self.run, self.place, self.job = run, f"{place}/{job.name}", job
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # Ranks of an attempt that was given up may still be writing: they have folders of their own.
        self.attempt = from_rank_0(token_hex(4))
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.prefix = f"minos-checkpoint-{fingerprint({'run': run.path, 'key': job.key})}-{self.rank}-"
        # A killed attempt leaves its folder on this disk.
        for folder in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def resume(self, engine: Any) -> tuple[int, list[Record]]:
        """Loads the newest: the step to go on with and the history so far; (0, []) when there is none."""
        checkpoints = complete_checkpoints(self.run, self.place, self.job.key)
        newest = from_rank_0(checkpoints[-1] if checkpoints else None)
        return self.load(engine, newest) if newest else (0, [])

    def load_best(self, engine: Any) -> int:
        """Loads the one with the lowest held-out loss; its step."""
        self.wait()
        dist.barrier()
        checkpoint = from_rank_0(best(complete_checkpoints(self.run, self.place, self.job.key)))
        if checkpoint is None:
            raise RuntimeError(f"no checkpoint of an evaluated step is left in {self.run.at(self.place)}")
        return self.load(engine, checkpoint)[0]

    def load(self, engine: Any, checkpoint: Checkpoint) -> tuple[int, list[Record]]:
        """Loads what is this rank's part now, whoever wrote it; returns the step and the history."""
        world, zero = checkpoint.world, checkpoint.zero
        with self.local(checkpoint.folder) as path:
            if zero == 0 or (world, zero) == (self.world, self.job.workers.zero):
                # Frozen weights are in no checkpoint, so that one of LoRA is small.
                _, state = engine.load_checkpoint(path, tag=TAG, load_module_strict=self.job.section.lora is None)
            else:
                state = load_repartitioned(engine, Path(path, TAG), world, zero)
            dist.barrier()
        return state["step"], state["history"]

    @contextmanager
    def local(self, folder: str) -> Generator[str]:
        """The folder on a disk of this node; from an object store one rank of each node fetches it."""
        if self.run.local:
            yield f"{self.run.root}/{folder}"
            return
        with tempfile.TemporaryDirectory() as mine:
            first = int(os.environ["LOCAL_RANK"]) == 0
            if first:
                self.run.download(folder, mine)
            folders = gathered(mine if first else None)
            yield next(path for path in folders[self.rank :: -1] if path)

    def save(self, engine: Any, step: int, history: list[Record], held_out_loss: float | None) -> None:
        """All ranks write their state to their disks; a thread uploads it to the run directory while training goes on.

        Raises what went wrong with the checkpoint before.
        """
        self.wait()
        aside = tempfile.mkdtemp(prefix=self.prefix)
        state = {"step": step, "history": history}
        engine.save_checkpoint(aside, tag=TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True)
        self.pending = self.thread.submit(self.upload, aside, step, held_out_loss)

    def upload(self, aside: str, step: int, held_out_loss: float | None) -> None:
        """Moves this rank's files into the run directory, its `rank-R.json` last; rank 0 then deletes older ones."""
        folder = f"{self.place}/step-{step:07}-{self.attempt}"
        files = {str(f.relative_to(aside)): f.stat().st_size for f in Path(aside).rglob("*") if f.is_file()}
        try:
            self.run.upload(aside, folder)
        finally:
            shutil.rmtree(aside)
        zero = self.job.workers.zero
        done = RankFile(
            key=self.job.key, step=step, world=self.world, zero=zero, held_out_loss=held_out_loss, files=files
        )
        self.run.write_bytes(f"{folder}/rank-{self.rank}.json", done.model_dump_json().encode())
        if self.rank == 0:
            clear(self.run, self.place, self.job)

    def wait(self) -> None:
        """Waits until the last checkpoint is in the run directory; raises what went wrong with it."""
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        """Ends the thread; rank 0 removes every checkpoint, to be called when the model is complete.

        What went wrong with the last one does not matter any more.
        """
        self.thread.shutdown(wait=True)
        dist.barrier()
        if self.rank == 0:
            self.run.delete(self.place)


def clear(run: Run, place: str, job: Job) -> None:
    """Deletes what is older than the newest complete checkpoint, except the last `keep` and the best."""
    checkpoints = complete_checkpoints(run, place, job.key)
    if not checkpoints:
        return
    needed = {checkpoint.folder for checkpoint in (*checkpoints[-job.workers.keep :], best(checkpoints)) if checkpoint}
    newest = checkpoints[-1].folder.rpartition("/")[2]
    for name in run.folders(place):
        if name < newest and f"{place}/{name}" not in needed:
            try:
                run.delete(f"{place}/{name}")
            except WorkStopped as error:  # a rank that was given up still writes there; the next call tries again
                logging.getLogger(__name__).warning("%s", error)


def from_rank_0(value: Any) -> Any:
    """The value of rank 0, on every rank: what ranks see of a storage may differ for a moment."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The value of each rank, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Span(NamedTuple):
    """A part of a parameter: its elements from `first` on, which begin at `offset` in a rank's flat tensor."""

    name: str
    first: int
    length: int
    offset: int


def spans(sizes: Mapping[str, int], rank: int, world: int, part: int | None) -> Iterator[Span]:
    """What a rank has of a group of parameters, given the number of elements of each.

    ZeRO 1 and 2 lay them one after the other and give every rank `part` elements; ZeRO 3 (`part` None) divides each
    of them. What is filled up to equal parts belongs to no parameter.
    """
    start = 0
    for name, size in sizes.items():
        if part is None:
            length = -(-size // world)
            first, last, offset = rank * length, min(size, (rank + 1) * length), start
            start += length
        else:
            first, last = max(0, rank * part - start), min(size, (rank + 1) * part - start)
            offset = start + first - rank * part
            start += size
        if first < last:
            yield Span(name, first, last - first, offset)


class Parts:
    """The parts of all parameters in a checkpoint, by name."""

    def __init__(self) -> None:
        self.of: defaultdict[str, list[tuple[Span, Flat]]] = defaultdict(list)

    def add(self, rank_spans: Iterator[Span], flat: Flat) -> None:
        """Adds what one rank has of one group."""
        for span in rank_spans:
            self.of[span.name].append((span, flat))

    def flat(self, key: str, rank_spans: Sequence[Span], size: int) -> torch.Tensor:
        """The flat tensor [size] of a rank that has these parts, zero elsewhere."""
        result = torch.zeros(size)
        for span in rank_spans:
            copied = 0
            for source, tensors in self.of[span.name]:
                first = max(span.first, source.first)
                length = min(span.first + span.length, source.first + source.length) - first
                if length > 0:
                    values = tensors[key].narrow(0, source.offset + first - source.first, length)
                    result.narrow(0, span.offset + first - span.first, length).copy_(values)
                    copied += length
            if copied != span.length:
                raise RuntimeError(f"the checkpoint has {copied} of {span.length} elements of {span.name}")
        return result


def read_parts(folder: Path, world: int, zero: int, sizes: Sequence[Mapping[str, int]]) -> tuple[Parts, torch.Tensor]:
    """The parts in a checkpoint that `world` ranks wrote, and Adam's step."""
    parts, step = Parts(), torch.zeros(())
    lengths: list[int | None] = []
    weights, optimizer = FLAT_NAMES[zero == 3]
    for rank in range(world):
        state = torch.load(next(folder.glob(RANK_STATES.format(rank))), **MAPPED)["optimizer_state_dict"]
        flats = [{WEIGHTS: flat, **state[optimizer]["state"][index]} for index, flat in enumerate(state[weights])]
        # Only the last rank's tensors are cut where the parameters end.
        lengths = lengths or [None if zero == 3 else len(flat[WEIGHTS]) for flat in flats]
        for group, flat, part in zip(sizes, flats, lengths, strict=True):
            parts.add(spans(group, rank, world, part), flat)
            step = flat["step"]
    return parts, step


def load_repartitioned(engine: Any, folder: Path, world: int, zero: int) -> dict[str, Any]:
    """Loads a checkpoint of `world` ranks and ZeRO stage `zero` (1 to 3) into an engine of any other; its client state.

    All ranks must call it. Frozen weights and buffers, which training leaves alone, stay those of the engine.
    """
    saved = torch.load(min(folder.glob(MODEL_STATES)), **MAPPED)
    sizes = [{name: shape.numel() for name, shape in shapes.items()} for shapes in saved["param_shapes"]]
    parts, step = read_parts(folder, world, zero, sizes)
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    state, rank = optimizer.state_dict(), dist.get_rank()
    flats, states = [], {}
    for index, shapes in enumerate(engine._get_zero_param_shapes()):
        group = {name: shape.numel() for name, shape in shapes.items()}
        part = None if stage == 3 else len(optimizer.optimizer.param_groups[index]["params"][0])
        mine = list(spans(group, rank, dist.get_world_size(), part))
        size = sum(-(-count // dist.get_world_size()) for count in group.values()) if part is None else part
        weights, *moments = (parts.flat(key, mine, size) for key in STATES)
        flats.append(weights)
        states[index] = {**dict(zip(STATES[1:], moments, strict=True)), "step": step.clone()}
    flat_name, optimizer_name = FLAT_NAMES[stage == 3]
    state[flat_name], state[optimizer_name]["state"] = flats, states
    if stage == 3:
        optimizer.checkpoint_event_prologue()
    # DeepSpeed looks into the state of its own rank only.
    optimizer.load_state_dict([None] * rank + [state], load_optimizer_states=True, load_from_fp32_weights=True)
    if stage == 3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    return saved
