"""Solutions laid out so that every shared prefix is computed once, and decoders that take such a forest.

Sorted token sequences are merged into a forest: a token that continues the same tokens is one node, whichever of the
sequences it belongs to. A node attends to its ancestors only, so one forward pass over the nodes gives each sequence
the hidden states that it has alone. Question, first steps and identical candidates cost one pass however often they
occur.

Nodes are numbered depth first. So the nodes below one follow it directly, and whatever a run of neighbouring nodes
attends to is in the run itself or on the path to its first node: attention, registered with transformers as
`minos_forest`, is computed run by run. Few masked pairs are computed, no mask is [nodes, nodes], nothing is padded
outside of attention, and a last layer works only where the model is read.

Where a model's build is not known the forest has a mask of all nodes, or is computed sequence by sequence. Nothing is
assumed of what a model computes between its layers. Two short sequences with a common prefix are computed alone by the
model's own forward, then as a forest by one decoder after the other; the first one that gives the same hidden states
and scores is used. Where none does (attention in both directions, a head that reads something else), a UserError is
raised before anything is scored.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from minos_ray.errors import UserError
from minos_ray.training import packing
from minos_ray.training.vocabulary import ROWS, pack_linear
from minos_ray.training.vocabulary import backbone_of as decoder_of

NONE = -1  # padding of keys
NAME = "minos_forest"
# Groups of runs with paths of similar length, each padded to its longest; on GPUs each group is a kernel to start.
GROUPS, GPU_GROUPS = 12, 3
# Keys of one layout, which are copied at once with their values; on GPUs for each head of the queries: 1 GB in half
# precision for 32 heads of 128.
KEYS, GPU_KEYS = 2**18, 2**16
RUN, GPU_RUN = 32, 64  # nodes of a run: longer ones compute more masked pairs, shorter ones copy more keys
# Families whose layers are attention and an MLP on each position, tried against transformers.
BY_RUNS = {
    "gemma", "gemma3_text", "glm", "glm4", "llama", "ministral", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3",
    "starcoder2",
}  # fmt: skip
TRIAL_TOKENS = 12  # of a sequence; half of them are common
# Rounding in float32 and in half precision, relative to the largest hidden value or logit.
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.1
CPU_TOKENS, GPU_TOKENS = 2048, 16_384  # of a padded batch
# Attention of transformers without any kernel.
EAGER = "eager"


class Forest(NamedTuple):
    """Nodes: `ids` (tokens), `depths` (position in their sequence), `ends` (first node not below them), all [nodes].

    Node `v` attends to `a` when `a <= v < ends[a]`. `paths[i]` are the nodes of sequence `members[i]`, from its first
    to its last token.
    """

    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    members: list[int]
    paths: list[np.ndarray]


def forests(
    sequences: Sequence[list[int]], members: Sequence[int], budget: int | Callable[[], int]
) -> Iterator[Forest]:
    """Covers each of `members` (indices of sequences) once, with at most `budget` nodes a forest (or one sequence).

    A budget that may change between two forests is given as a function.
    """
    chosen: list[tuple[int, int]] = []  # member, tokens that it shares with the one before
    nodes = 0
    limit = (lambda: budget) if isinstance(budget, int) else budget
    for member in sorted(members, key=lambda m: sequences[m]):
        before, ids = sequences[chosen[-1][0]] if chosen else [], sequences[member]
        shared = shared_prefix(before, ids)
        if chosen and nodes + len(sequences[member]) - shared > limit():
            yield merge(sequences, chosen, nodes)
            chosen, nodes, shared = [], 0, 0
        chosen.append((member, shared))
        nodes += len(sequences[member]) - shared
    if chosen:
        yield merge(sequences, chosen, nodes)


def shared_prefix(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    if second[: len(first)] == first:
        return len(first)
    return next(place for place, (a, b) in enumerate(zip(first, [*second, None], strict=False)) if a != b)


def merge(sequences: Sequence[Sequence[int]], chosen: list[tuple[int, int]], nodes: int) -> Forest:
    """The forest of sorted sequences; each adds the nodes behind the prefix that it shares with the one before."""
    ids, depths, ends = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    path, paths, first = np.zeros(0, np.int64), [], 0
    for member, shared in chosen:
        end = first + len(sequences[member]) - shared
        ids[first:end] = sequences[member][shared:]
        depths[first:end] = np.arange(shared, len(sequences[member]))
        ends[path[shared:]] = first
        path = np.concatenate([path[:shared], np.arange(first, end)])
        paths.append(path)
        first = end
    ends[path] = nodes
    return Forest(ids, depths, ends, [member for member, _ in chosen], paths)


def runs(forest: Forest, width: int) -> np.ndarray:
    """The nodes in equally long runs of about `width`: [runs, nodes of a run].

    The last run may go on beyond the last node.
    """
    nodes = len(forest.ids)
    width = -(-nodes // max(1, round(nodes / width)))
    return np.arange(-(-nodes // width) * width).reshape(-1, width)


def keys(forest: Forest, queries: np.ndarray) -> np.ndarray:
    """The nodes that each run of `queries` [runs, nodes of a run] may attend to: [runs, keys].

    These are the path to the run's first node, padded with `NONE`, and the run itself.
    """
    firsts = queries[:, 0]
    rows, depths = np.searchsorted([path[-1] for path in forest.paths], firsts), forest.depths[firsts]
    paths = np.full((len(firsts), depths.max()), NONE)
    for path, row, depth in zip(paths, rows, depths, strict=True):
        path[:depth] = forest.paths[row][:depth]
    return np.hstack([paths, np.where(queries < len(forest.ids), queries, NONE)])


class Layout:
    """Some runs: nodes that are queries [runs * nodes], nodes that are keys [runs, keys], and an additive mask
    [runs, 1, nodes, keys]."""

    def __init__(self, forest: Forest, queries: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        padded_keys = torch.from_numpy(keys(forest, queries)).to(device)
        ends = torch.from_numpy(forest.ends).to(device)
        # Numbers beyond the last node repeat it: its result is computed again, and is the same.
        nodes = torch.from_numpy(queries).to(device).clamp(max=len(ends) - 1)
        self.queries, self.keys = nodes.flatten(), padded_keys.clamp(min=0)
        end = ends[self.keys].masked_fill(padded_keys == NONE, NONE)
        sees = (padded_keys[:, None] <= nodes[:, :, None]) & (nodes[:, :, None] < end[:, None])
        self.mask = torch.zeros(sees.shape, device=device, dtype=dtype).masked_fill_(~sees, -torch.inf)[:, None]


class View:
    """A forest for one pass: in every layer all nodes are queries, in the last one only those read (`places`)."""

    cache = None

    def __init__(self, forest: Forest, places: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        # On CPUs torch's attention takes more than twice as long in bfloat16 as in float32.
        self.dtype = torch.float32 if device.type == "cpu" else dtype
        on_cpu = packing.takes_groups(device.type)
        width, groups, most_keys = (RUN, GROUPS, KEYS) if on_cpu else (GPU_RUN, GPU_GROUPS, GPU_KEYS)
        queries = runs(forest, width)
        queries = queries[np.argsort(forest.depths[queries[:, 0]], kind="stable")]
        read = places[np.argsort(forest.depths[places], kind="stable"), None]
        layouts = []
        for by_depth, fewest in ((queries, groups), (read, 1)):
            keys = len(by_depth) * (int(forest.depths[by_depth[-1, 0]]) + by_depth.shape[1])
            parts = np.array_split(by_depth, min(max(fewest, -(-keys // most_keys)), len(by_depth)))
            layouts.append([Layout(forest, part, device, self.dtype) for part in parts])
        self.everywhere, self.read = layouts
        self.places = torch.from_numpy(places).to(device)


class ReadOnly(nn.Module):
    """A module that works on each position alone, run at `places` only and 0 elsewhere."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.places: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, tokens, width] in and out, though the widths may differ; without `places` everywhere."""
        if self.places is None:
            return self.module(hidden)
        states = self.module(hidden[0, self.places])
        out = states.new_zeros(1, hidden.shape[1], *states.shape[1:])
        out[0, self.places] = states
        return out


class Backbone:
    """A transformers decoder that takes forests."""

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, forest_attention)
        AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
        self.model, self.module = model, model.base_model
        last = (getattr(self.module, "layers", None) or [None])[-1]
        if not (hasattr(last, "self_attn") and hasattr(last, "mlp")):
            name = type(self.module).__name__
            raise UserError(f"{name} has no decoder layers with self_attn and mlp; set resources.score.engine: vllm")
        model.set_attn_implementation(NAME)
        pack_linear(self.module)
        last.self_attn.minos_last = True
        # Modules of the last layer that work on each position alone; other nodes need its keys and values.
        self.read_only = []
        for parent, name in ((last, "mlp"), (last.self_attn, "q_proj"), (last.self_attn, "o_proj")):
            if hasattr(parent, name):  # some families fuse queries with keys
                self.read_only.append(ReadOnly(getattr(parent, name)))
                setattr(parent, name, self.read_only[-1])

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places` (ascending nodes): [places, width]."""
        view = View(forest, places, self.module.device, self.module.dtype)
        # Once for all layers, else each linear layer copies its input to pad it; nothing attends to these nodes.
        padding = (0, -len(forest.ids) % ROWS)
        return self.run(np.pad(forest.ids, padding), np.pad(forest.depths, padding), view)

    def run(self, ids: np.ndarray, depths: np.ndarray, view: Any) -> torch.Tensor:
        """Hidden states at the places of a view (`View`, or one of the same attributes) of tokens `ids` at `depths`."""
        device = self.module.device
        for module in self.read_only:
            module.places = view.places
        tokens, positions = (torch.from_numpy(array).to(device)[None] for array in (ids, depths))
        self.model.set_attn_implementation(NAME)
        try:
            hidden = self.module(input_ids=tokens, position_ids=positions, view=view, use_cache=False).last_hidden_state
        finally:  # another decoder may use the same model next
            for module in self.read_only:
                module.places = None
        return hidden[0, view.places]


def forest_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    view: Any,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Each node attends to its ancestors and itself: [1, heads, nodes, dim] in, [1, nodes, heads, dim] out.

    Sliding windows change nothing: no sequence is longer (`longest_shared`).
    """
    q, k, v = (states[0].transpose(0, 1).to(view.dtype) for states in (query, key, value))
    if view.cache is not None:  # keys of the layouts are then places of the cache
        k, v = view.cache.put(module.layer_idx, view.nodes, k, v)
    out = torch.zeros_like(q)
    for layout in view.read if getattr(module, "minos_last", False) else view.everywhere:
        shape = (len(layout.keys), -1)
        keys = layout.keys.flatten()
        asking, asked, values = (
            states.index_select(0, nodes).unflatten(0, shape).transpose(1, 2)
            for states, nodes in ((q, layout.queries), (k, keys), (v, keys))
        )
        attended = packing.attend(asking, asked, values, layout.mask, scaling)
        out[layout.queries] = attended.transpose(1, 2).flatten(0, 1)
    return out[None].to(query.dtype), None


class Masked:
    """A decoder given a mask [nodes, nodes]: slower and with more memory than `Backbone`, for any causal attention."""

    def __init__(self, model: Any, attention: str) -> None:
        self.model, self.module, self.attention = model, decoder_of(model), attention

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places`: [places, width]."""
        self.model.set_attn_implementation(self.attention)
        device, dtype = self.module.device, self.module.dtype
        ids, depths, ends = (torch.from_numpy(a).to(device) for a in (forest.ids, forest.depths, forest.ends))
        node = torch.arange(len(ids), device=device)
        sees = (node[None] <= node[:, None]) & (node[:, None] < ends[None])
        mask = torch.zeros(sees.shape, device=device, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        output = self.module(
            input_ids=ids[None], position_ids=depths[None], attention_mask=mask[None, None], use_cache=False
        )
        return output.last_hidden_state[0, torch.from_numpy(places).to(device)]


class Padded:
    """A decoder given each sequence of a forest by itself, in padded batches: for any causal model."""

    def __init__(self, model: Any, attention: str) -> None:
        self.model, self.module, self.attention = model, decoder_of(model), attention
        self.budget = GPU_TOKENS if self.module.device.type == "cuda" else CPU_TOKENS

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places` (ascending nodes): [places, width]."""
        self.model.set_attn_implementation(self.attention)
        states: dict[int, torch.Tensor] = {}
        paths = sorted(forest.paths, key=len)
        while paths:
            # As many as the budget has room for with their padding; at least one.
            sizes = (number * len(path) for number, path in enumerate(paths, 1))
            batch = paths[: max(1, sum(size <= self.budget for size in sizes))]
            of_batch = self.states(forest, batch, places)
            if of_batch is None:
                self.budget = len(batch) * len(batch[-1]) // 2
            else:
                states.update(of_batch)
                paths = paths[len(batch) :]
        return torch.stack([states[node] for node in places.tolist()])

    def states(self, forest: Forest, paths: list[np.ndarray], places: np.ndarray) -> dict[int, torch.Tensor] | None:
        """Hidden states at `places` by node, of paths by ascending length; None when memory runs out for several."""
        longest = len(paths[-1])
        # The model is causal, so padding behind a sequence changes nothing in it: its last node is repeated.
        grid = np.stack([path[np.minimum(np.arange(longest), len(path) - 1)] for path in paths])
        try:
            ids = torch.from_numpy(forest.ids[grid]).to(self.module.device)
            hidden = self.module(input_ids=ids, use_cache=False).last_hidden_state
        except torch.OutOfMemoryError:
            if len(paths) == 1:
                raise
            return None
        by_node: dict[int, torch.Tensor] = {}
        for path, states in zip(paths, hidden, strict=True):
            read = np.flatnonzero(np.isin(path, places))
            by_node.update(zip(path[read].tolist(), states[torch.from_numpy(read)], strict=True))
        return by_node


class Decoders(NamedTuple):
    """Of one verifier: the fastest decoder that is exact, and one for sequences that need a pass of their own."""

    together: Backbone | Masked | Padded
    alone: Padded


@torch.inference_mode()
def backbone_of(model: Any, head: Any, name: str) -> Decoders:
    """The decoders of a verifier; UserError when none gives what the model's own forward gives for each sequence alone.

    `head` is the linear layer from hidden state to logit.
    """
    attention = model.config._attn_implementation
    # Two random sequences with a common prefix, without the padding token.
    config = model.config.get_text_config()
    words = np.setdiff1d(np.arange(config.vocab_size), [getattr(config, "pad_token_id", None) or 0])
    first, second = np.random.default_rng(0).choice(words, (2, TRIAL_TOKENS)).tolist()
    sequences = [first, first[: TRIAL_TOKENS // 2] + second[TRIAL_TOKENS // 2 :]]
    expected = states_alone(model, head, sequences, name)
    plain = first_exact(expected, sequences, (Padded(model, kind) for kind in dict.fromkeys((attention, EAGER))))
    if not isinstance(plain, Padded):
        raise UserError(
            f"model '{name}' ({type(model).__name__}) does not read a sequence as it does beside others in one pass; "
            "set resources.score.engine: vllm"
        )
    # Decoders that compute a shared prefix once, for models without a state, a mask or positions of their own.
    packing.use(model)
    reason = packing.unpackable(model)
    model.set_attn_implementation(attention)
    if reason is not None:
        return Decoders(plain, plain)
    sharing = Backbone(model) if model.config.model_type in BY_RUNS else Masked(model, attention)
    return Decoders(first_exact(expected, sequences, iter([sharing])) or plain, plain)


def states_alone(model: Any, head: Any, sequences: list[list[int]], name: str) -> list[torch.Tensor]:
    """Hidden states [tokens, width] of each sequence by itself; UserError when the model's logits are not `head`'s."""
    error = f"model '{name}' ({type(model).__name__}) has a head that reads more than the hidden state of a token"
    if not isinstance(head, torch.nn.Linear):
        raise UserError(error)
    attention, module = model.config._attn_implementation, decoder_of(model)
    model.set_attn_implementation(EAGER)
    rows = [torch.tensor([ids], device=module.device) for ids in sequences]
    states = [module(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]
    for row, hidden in zip(rows, states, strict=True):
        logits = model(input_ids=row).logits.flatten()  # of an ORM those of the last token only
        # As exact as the states: a head may be computed in fp32 from them.
        if difference(head(hidden).flatten()[-len(logits) :], logits, hidden.dtype) > 1:
            raise UserError(error)
    model.set_attn_implementation(attention)
    return states


def first_exact(expected: list[torch.Tensor], sequences: list[list[int]], decoders: Iterable[Any]) -> Any | None:
    """The first decoder that gives the expected hidden states."""
    (forest,) = forests(sequences, range(len(sequences)), 2 * TRIAL_TOKENS)
    for decoder in decoders:
        try:
            hidden = decoder(forest, np.arange(len(forest.ids)))
        except (TypeError, ValueError, RuntimeError, IndexError):  # its forward takes no such mask or position ids
            continue
        together = {member: hidden[path] for member, path in zip(forest.members, forest.paths, strict=True)}
        if all(difference(together[member], states, states.dtype) <= 1 for member, states in enumerate(expected)):
            return decoder
    return None


def difference(actual: torch.Tensor, expected: torch.Tensor, precision: torch.dtype) -> float:
    """The largest difference, relative to the largest expected value; up to 1 it is rounding in that precision."""
    if not len(expected):
        return 0.0
    relative = float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)
    return relative / (TOLERANCE if precision == torch.float32 else HALF_TOLERANCE)


def longest_shared(config: Any) -> int:
    """Tokens up to which a sequence may share a pass: beyond a sliding window, or where rotary encodings depend on the
    longest sequence of a pass, its states would not be those that it has alone."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min(packing.longest_together(config), *(window for window in windows if window), 10**9)
