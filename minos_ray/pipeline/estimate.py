"""About how many bytes a run will write, from the config and the base model's own files."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from minos_ray.cluster.bundles import bundles, room
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Train
from minos_ray.errors import UserError
from minos_ray.store.model_files import is_hub_id, locate, safetensors_files
from minos_ray.store.run import Run
from minos_ray.training.batches import total_steps

Tensor = dict[str, Any]
# Stored bytes for each token of the limit: about half of it is used, a token is four characters, zstd halves them.
TOKEN_BYTES = 1
# fp32 weights and Adam's two moments, in every checkpoint of a full training; bf16 weights come on top.
STATE_BYTES = 12
# Ray's logs, spilled blocks and the cache of compiled kernels.
ANYWAY = 1e9


def run_bytes(config: Config, run: Run, todo: Set[str], models: int) -> dict[str, float]:
    """Bytes that the stages to be done add to the run directory, by what they are; `models` are still to be made."""
    found = {"candidates": candidates(config, run)} if "sample" in todo else {}
    if size := base_parameters(config, run):
        widths = [width(section) for _, section in trainings(config, todo)]
        found["models"] = models * size * max(widths, default=0)
        workers = config.resources.train
        found["checkpoints"] = max(
            (kept(section, workers) * checkpoint(section, size) for _, section in trainings(config, todo)), default=0
        )
    return {what: amount for what, amount in found.items() if amount}


def node_bytes(config: Config, run: Run, todo: Set[str]) -> Callable[[Mapping[str, float]], float]:
    """Bytes for temporary files of a node that has this much: workers write their shards of a checkpoint aside first.

    As many workers as could be there are counted.
    """
    workers, size = bundles(config.resources.train), base_parameters(config, run) or 0
    saved = [section for _, section in trainings(config, todo) if kept(section, config.resources.train)]
    whole = max((checkpoint(section, size) for section in saved), default=0)
    return lambda has: ANYWAY + whole * room(workers, [has]) / workers.count


def candidates(config: Config, run: Run) -> float:
    """Bytes of all samples; 0 when it is not known how many problems there are."""
    limits = {"train": config.sample.n_train, "test": config.sample.n_test}
    rows = sum(count * problems(config, run, split) for split, count in limits.items())
    return rows * config.sample.max_tokens * TOKEN_BYTES


def problems(config: Config, run: Run, split: str) -> int:
    """Problems of a split: counted, else the limit of the config, else 0."""
    manifest = run.artefact("problems").manifest()
    if manifest is not None:
        return manifest.counts.get(split, 0)
    return (getattr(config.problems, split).limit or 0) if config.problems else 0


def trainings(config: Config, todo: Set[str]) -> Iterator[tuple[str, Train]]:
    """Trainings to be done."""
    return ((name, section) for name, section in (("sft", config.sft), ("reward", config.reward)) if name in todo)


def checkpoint(section: Train, size: int) -> float:
    """Bytes of one checkpoint of a training; one of LoRA is small."""
    if section.lora is not None:
        return 0
    return size * (STATE_BYTES + (2 if section.precision == "bf16" else 0))


def kept(section: Train, workers: Workers) -> int:
    """Checkpoints that may lie there at once: those kept, the best and the one on its way, if there are so many steps.

    None is written before the first step or after the last one.
    """
    most = workers.keep + 2
    rows = getattr(section, "rows", None)
    if rows is None:
        return most
    between = total_steps(rows, section.epochs, section.batch_rows) - 1
    judged = between // section.eval_every if section.pick == "best" else 0
    return min(most, between // workers.save_every + judged)


def width(section: Train) -> int:
    """Bytes of a saved weight."""
    return 2 if section.precision == "bf16" else 4


def base_parameters(config: Config, run: Run) -> int | None:
    """Parameters of the base model, None unless it lies here."""
    return parameters(config.base, run)


def parameters(model: Model, run: Run) -> int | None:
    """Parameters of a model that lies on this machine as safetensors, from the headers of its files; else None."""
    return sum(math.prod(tensor["shape"]) for tensor in stored(model, run)) or None


def engine_bytes(model: Model, run: Run, dtype: str) -> int:
    """Bytes of the weights in vLLM: floats of 32 bits are halved unless they are wanted, others stay as they are.

    0 where they are not known.
    """
    if dtype == "float32":
        return 4 * (parameters(model, run) or 0)
    return sum(
        2 * math.prod(tensor["shape"]) if tensor["dtype"] == "F32" else extent(tensor) for tensor in stored(model, run)
    )


def stored(model: Model, run: Run) -> list[Tensor]:
    """Tensors of a model that lies on this machine as safetensors; none of any other."""
    if is_hub_id(model.model) or model.model.startswith("run:"):
        return []
    try:
        return [tensor for file in weight_files(locate(model, run)) for tensor in tensors(file)]
    except UserError:  # said elsewhere, with everything else that is wrong
        return []


def weight_files(folder: str) -> list[Path]:
    """The safetensors files of a model: those that are loaded, else whatever there is. UserError when the index of them
    cannot be read."""
    return safetensors_files(folder) or sorted(Path(folder).glob("*.safetensors"))


def tensors(file: Path) -> list[Tensor]:
    """What the header of a safetensors file tells of its tensors: 8 bytes with its length, JSON, then the numbers.

    UserError when the file is not as long as its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < size else b"")
    except (OSError, ValueError):
        size, header = 0, {}
    found = [tensor for name, tensor in header.items() if name != "__metadata__"]
    if not found or size < 8 + length + max(tensor["data_offsets"][1] for tensor in found):
        raise UserError(f"{file} is no safetensors file (a Git LFS pointer, or cut off?)")
    return found


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    first, end = tensor["data_offsets"]
    return end - first
