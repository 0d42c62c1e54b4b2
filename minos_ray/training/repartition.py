"""A checkpoint of ZeRO for other ranks than those that wrote it, or for another stage.

ZeRO keeps the fp32 weights and Adam's moments of many parameters in flat tensors and divides these among the ranks; a
checkpoint has them as they were divided. Each rank takes from it, parameter by parameter, what is its own now, and
hands that to DeepSpeed's loader. The files are mapped into memory, so a rank reads only those pages, and beside what
it trains with there is at most its own part once more in host memory.

DeepSpeed's universal checkpoints would write every parameter into files of its own first: twice the disk.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

WEIGHTS = "weights"
STATES = (WEIGHTS, "exp_avg", "exp_avg_sq")
MODEL_STATES, RANK_STATES = "*mp_rank_00_model_states.pt", "*zero_pp_rank_{}_mp_rank_00_optim_states.pt"

# Of one group of parameters on one rank: flat tensors by what they hold (`STATES`), and Adam's `step`.
Flat = Mapping[str, torch.Tensor]


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


def groups(state: Mapping[str, Any], zero: int) -> list[dict[str, torch.Tensor]]:
    """The flat tensors of each group in the state of a rank's optimizer, as DeepSpeed 0.19 names them."""
    weights, optimizer = (
        ("fp32_flat_groups", "optimizer_state_dict")
        if zero == 3
        else ("single_partition_of_fp32_groups", "base_optimizer_state")
    )
    return [{WEIGHTS: flat, **state[optimizer]["state"][index]} for index, flat in enumerate(state[weights])]


def mapped(file: Path) -> Any:
    """A file that DeepSpeed wrote, of which a tensor is read when it is used."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def counted(shapes: Sequence[Mapping[str, torch.Size]]) -> list[dict[str, int]]:
    """Elements of each parameter of each group."""
    return [{name: shape.numel() for name, shape in group.items()} for group in shapes]


def read(folder: Path, world: int, zero: int, sizes: Sequence[Mapping[str, int]]) -> tuple[Parts, torch.Tensor]:
    """The parts in a checkpoint that `world` ranks wrote, and Adam's step."""
    parts, step = Parts(), torch.zeros(())
    lengths: list[int | None] = []
    for rank in range(world):
        flats = groups(mapped(next(folder.glob(RANK_STATES.format(rank))))["optimizer_state_dict"], zero)
        # Only the last rank's tensors are cut where the parameters end.
        lengths = lengths or [None if zero == 3 else len(flat[WEIGHTS]) for flat in flats]
        for group, flat, part in zip(sizes, flats, lengths, strict=True):
            parts.add(spans(group, rank, world, part), flat)
            step = flat["step"]
    return parts, step


def load(engine: Any, folder: Path, world: int, zero: int) -> dict[str, Any]:
    """Loads a checkpoint of `world` ranks and ZeRO stage `zero` (1 to 3) into an engine of any other; its client state.

    All ranks must call it. Frozen weights and buffers, which training leaves alone, stay those of the engine.
    """
    saved = mapped(min(folder.glob(MODEL_STATES)))
    parts, step = read(folder, world, zero, counted(saved["param_shapes"]))
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    state, rank = optimizer.state_dict(), dist.get_rank()
    flats, states = [], {}
    for index, group in enumerate(counted(engine._get_zero_param_shapes())):
        part = None if stage == 3 else len(optimizer.optimizer.param_groups[index]["params"][0])
        mine = list(spans(group, rank, dist.get_world_size(), part))
        size = sum(-(-count // dist.get_world_size()) for count in group.values()) if part is None else part
        weights, *moments = (parts.flat(key, mine, size) for key in STATES)
        flats.append(weights)
        states[index] = {**dict(zip(STATES[1:], moments, strict=True)), "step": step.clone()}
    if stage == 3:
        state["fp32_flat_groups"], state["optimizer_state_dict"]["state"] = flats, states
        optimizer.checkpoint_event_prologue()
    else:
        state["single_partition_of_fp32_groups"], state["base_optimizer_state"]["state"] = flats, states
    # DeepSpeed looks into the state of its own rank only.
    optimizer.load_state_dict([None] * rank + [state], load_optimizer_states=True, load_from_fp32_weights=True)
    if stage == 3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    return saved
