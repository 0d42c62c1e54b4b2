"""Packed rows: many rows in one sequence without padding, and an attention in which each token sees its own row only.

Registered with transformers as the attention `minos_packed`. On GPUs in half precision it is torch's varlen flash
attention, where head size and GPU allow it; elsewhere queries, keys and values alone are laid out as a grid of rows for
one causal attention, and all the rest of the model works on real tokens only. Scores that are capped (Gemma 2) or
shared with a sink (gpt-oss) are written out. Whatever else a model asks of its attention is refused: it is trained on
padded rows then (`objective`).
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from minos_ray.training.data import Rows, group_begins

NAME = "minos_packed"
# What models hand on to their attention that says nothing about it.
HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "layer_idx", "output_attentions"})
# Families whose layers do not tell their attention how wide the window is.
WINDOW_IN_MASK = frozenset({"phimoe"})
HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
AMPERE = (8, 0)


def takes_varlen(dtype: torch.dtype, head_sizes: set[int], capability: tuple[int, int] | None) -> bool:
    """Whether torch's flash attention over rows of different lengths can be used.

    `head_sizes` are those of keys and values, `capability` that of the GPU, None on a CPU.
    """
    fits = len(head_sizes) == 1 and all(size % 8 == 0 and size <= LARGEST_HEAD for size in head_sizes)
    return capability is not None and capability >= AMPERE and dtype in HALF and fits


def takes_groups(device: str) -> bool:
    """Whether keys and values may be fewer than the queries' heads without falling back to the math kernel."""
    return device != "cuda"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of [rows, heads, asking, dim] to [rows, key heads, asked, dim]; causal where there is no mask."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not takes_groups(query.device.type):
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


class Micro(NamedTuple):
    """A packed micro-batch: the rows one after the other, as `Objective.forward` takes it.

    `ids` [tokens], `lengths` [rows]; the first `shared` [rows] tokens of a row are those of the row before it, and are
    left out of `ids`. `positions` [n] are trained indices into the rows one after the other, with their `targets` [n]
    (none for a language model); `language`, the indices of a verifier's language loss; `element_ids` [n], a number for
    each trained position that no other has in this table and salt, from which dropout is drawn; `rows` [n] and
    `problems` [n], the numbers of the row and of the group of rows that each trained position belongs to.
    """

    ids: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    language: np.ndarray
    element_ids: np.ndarray
    rows: np.ndarray
    problems: np.ndarray


def pack(rows: Rows, chosen: np.ndarray, salt: int = 0) -> Micro:
    """Packs the chosen rows. No rows give one token at which nothing is trained: every rank makes as many passes."""
    if not len(chosen):
        none = np.zeros(0, np.int64)
        zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        return Micro(zero, one, zero, none, np.zeros(0, np.float32), none, none, none, none)
    lengths = rows.lengths[chosen].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    follows = np.append(False, np.diff(chosen) == 1)  # a row alone has its first tokens itself
    shared = np.where(follows, rows.shared[chosen], 0).astype(np.int64)
    bounds = zip(rows.starts[chosen] + shared, rows.starts[chosen + 1], strict=True)
    ids = [rows.ids[first:last] for first, last in bounds]
    positions = [rows.row_positions(row) + start for row, start in zip(chosen, starts, strict=True)]
    targets = [rows.targets[rows.target_starts[row] : rows.target_starts[row + 1]] for row in chosen]
    language = [  # indices from which the tokens of a right solution are predicted; none for a wrong one
        rows.first[row] - 1 + np.arange(rows.language_counts[row], dtype=np.int64) + start
        for row, start in zip(chosen, starts, strict=True)
    ]
    numbers = [np.arange(rows.position_starts[row], rows.position_starts[row + 1], dtype=np.int64) for row in chosen]
    row_of = np.repeat(np.arange(len(chosen)), rows.position_counts[chosen])
    groups = row_of if rows.groups is None else np.cumsum(np.append(False, group_begins(chosen, rows.groups)))[row_of]
    element_ids = np.concatenate(numbers) + (salt % (1 << 31) << 32)
    texts = np.concatenate(ids).astype(np.int64)
    joined_up = map(np.concatenate, (positions, targets, language))
    return Micro(texts, lengths, shared, *joined_up, element_ids, row_of, groups)


class NotPackable(Exception):
    """A model asks more of its attention than packed rows can give."""


class Packed:
    """Where the rows of a packed sequence begin and end; `lengths` is [rows], on the device of the model.

    `read_at` [n] are the only tokens at which the model is read, None when there are too many to gain from it.
    `shared` [rows]: so many first tokens of a row are those of the row before and lie in the sequence once, as part of
    that one, whose own are none of another's. None when no row shares any.
    """

    def __init__(
        self, lengths: torch.Tensor, read_at: torch.Tensor | None = None, shared: torch.Tensor | None = None
    ) -> None:
        self.lengths, self.read_at, self.shared = lengths, read_at, shared
        self.longest = int(lengths.max())
        self.starts = functional.pad(lengths.cumsum(0), (1, 0))

    @cached_property
    def rows(self) -> torch.Tensor:
        """[places]: the row of each place, where a place is one of a row's, also if its token is of the row before."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """[places]: how far into its row each place is."""
        return torch.arange(len(self.rows), device=self.rows.device) - self.starts[self.rows]

    @cached_property
    def own(self) -> torch.Tensor:
        """[tokens]: the place of each token in the row that it belongs to."""
        places = torch.arange(len(self.rows), device=self.rows.device)
        return places if self.shared is None else places[self.offsets >= self.shared[self.rows]]

    @cached_property
    def tokens(self) -> torch.Tensor:
        """[places]: the token at each place."""
        if self.shared is None:
            return self.own
        shares = self.offsets < self.shared[self.rows]
        numbers = (~shares).cumsum(0) - 1
        before = self.starts[(self.rows - 1).clamp(min=0)] + self.offsets
        return torch.where(shares, numbers[before.clamp(max=len(numbers) - 1)], numbers)

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """[1, tokens]: positions begin at 0 in every row."""
        return self.offsets[self.own][None]

    @cached_property
    def grid(self) -> torch.Tensor:
        """[rows * longest]: the token at each place of the grid; places after a row's end repeat its last token."""
        places = torch.arange(self.longest, device=self.lengths.device).minimum(self.lengths[:, None] - 1)
        return self.tokens[(self.starts[:-1, None] + places).flatten()]

    @cached_property
    def in_grid(self) -> torch.Tensor:
        """[tokens]: the place of each token in the grid."""
        return (self.rows * self.longest + self.offsets)[self.own]

    @cached_property
    def read_grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of `read_at` as a grid [rows, most of a row], filled up with each row's first token, and the place
        [n] of each in that grid."""
        assert self.read_at is not None
        rows = torch.searchsorted(self.starts, self.read_at, right=True) - 1
        columns = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        grid = self.starts[:-1, None].repeat(1, int(columns.max()) + 1)
        grid[rows, columns] = self.read_at
        return grid, rows * grid.shape[1] + columns

    def padded(self, ids: torch.Tensor) -> torch.Tensor:
        """[tokens] as a batch [rows, longest]. What is causal gives the same for a row whatever follows it."""
        return ids[self.grid].unflatten(0, (-1, self.longest))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out.

    `softcap` caps the scores by a tanh; `s_aux` [heads] is one more score that each token attends to, without a value.
    """
    if packed is None or attention_mask is not None:
        raise NotPackable("its attention has a mask or a way of its own")
    looks_ahead = is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False)
    if unknown := [key for key, value in options.items() if value is not None and key not in HARMLESS]:
        raise NotPackable(f"its attention wants {', '.join(unknown)}")
    if looks_ahead:
        raise NotPackable("its attention looks ahead")
    if last := getattr(module, "minos_read_only", None):
        last.positions = packed.read_at
    window = sliding_window if sliding_window is not None and sliding_window < packed.longest else None
    if softcap is not None or s_aux is not None:
        q, k, v = (to_grid(states, packed) for states in (query, key, value))
        out = explicit_attention(q, k, v, band(packed.longest, window, query.device), scaling, dropout, softcap, s_aux)
        return from_grid(out, packed), None
    sizes = {key.shape[-1], value.shape[-1]}
    capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else None
    if takes_varlen(query.dtype, sizes, capability) and not dropout:
        return varlen(query, key, value, packed, scaling, window), None
    # On CPUs torch's attention takes more than twice as long in bfloat16 as in float32.
    dtype = torch.float32 if query.dtype in HALF and not query.is_cuda else query.dtype
    if last and packed.read_at is not None:
        q, k, v = (states.to(dtype) for states in (query, key, value))
        return read_attention(q, k, v, packed, scaling, window, dropout).to(query.dtype), None
    q, k, v = (to_grid(states.to(dtype), packed) for states in (query, key, value))
    mask = None if window is None else band(packed.longest, window, query.device)
    out = attend(q, k, v, mask, scaling, dropout)
    return from_grid(out, packed).to(query.dtype), None


def read_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    scaling: float | None,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Attention of the tokens in `packed.read_at` alone, 0 elsewhere; shapes as in `packed_attention`."""
    assert packed.read_at is not None
    grid, places = packed.read_grid
    q = query[0].transpose(0, 1)[grid].transpose(1, 2)
    k, v = to_grid(key, packed), to_grid(value, packed)
    distance = (grid - packed.starts[:-1, None])[..., None] - torch.arange(packed.longest, device=grid.device)
    sees = (distance >= 0) & (distance < (packed.longest if window is None else window))
    out = attend(q, k, v, sees[:, None], scaling, dropout).transpose(1, 2).flatten(0, 1)[places]
    return out.new_zeros(query.shape[2], *out.shape[1:]).index_copy(0, packed.read_at, out)[None]


def explicit_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with its scores in memory: [rows, heads, longest, dim] in and out; `sees` is [longest, longest]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float().masked_fill(~sees, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : sees.shape[1]]
    return functional.dropout(weights, dropout).to(value.dtype) @ value


def from_grid(states: torch.Tensor, packed: Packed) -> torch.Tensor:
    """[rows, heads, longest, dim] as [1, tokens, heads, dim]."""
    return states.transpose(1, 2).flatten(0, 1).index_select(0, packed.in_grid)[None]


def to_grid(states: torch.Tensor, packed: Packed) -> torch.Tensor:
    """[1, heads, tokens, dim] as [rows, heads, longest, dim]."""
    rows = states[0].transpose(0, 1).index_select(0, packed.grid)
    return rows.unflatten(0, (-1, packed.longest)).transpose(1, 2)


def band(longest: int, window: int | None, device: torch.device) -> torch.Tensor:
    """A causal mask, of a sliding window: a token sees itself and the `window` - 1 tokens before it."""
    places = torch.arange(longest, device=device)
    distance = places[:, None] - places[None]
    return (distance >= 0) & (distance < (longest if window is None else window))


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Torch's flash attention over rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    ends = packed.starts.to(torch.int32)
    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    if packed.shared is not None:
        q, k, v = (states.index_select(0, packed.tokens) for states in (q, k, v))
    size = (-1 if window is None else window - 1, 0)
    longest = packed.longest
    attended = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=size, enable_gqa=True)
    assert isinstance(attended, torch.Tensor)  # a tuple only when more is asked for
    return (attended if packed.shared is None else attended.index_select(0, packed.own))[None]


class ReadOnly:
    """Lets the MLP of a decoder's last layer work only where the model is read; elsewhere it gives 0.

    Behind the last attention no token sees another, so what is read, and every gradient, stays what it is. The
    positions come with the layer's attention, also when a layer is recomputed in the backward pass, and hold for the
    next call of the MLP only: the model's own forward stays what it is.
    """

    def __init__(self, backbone: Any) -> None:
        self.positions: torch.Tensor | None = None
        layers = getattr(backbone, "layers", None)
        last = layers[-1] if isinstance(layers, torch.nn.ModuleList) and len(layers) else None
        mlp = getattr(last, "mlp", None)
        if last is not None and isinstance(mlp, torch.nn.Module):
            for module in last.modules():
                module.minos_read_only = self
            self.everywhere = mlp.forward
            # On the instance and not around it: a wrapper would change the names of the weights.
            mlp.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """[1, tokens, width] in and out; some experts return their routing as well."""
        positions, self.positions = self.positions, None
        if positions is None or not args:
            return self.everywhere(*args, **kwargs)
        hidden, *others = args
        out = self.everywhere(hidden.index_select(1, positions), *others, **kwargs)
        states, *routing = out if isinstance(out, tuple) else (out,)
        spread = torch.zeros_like(hidden).index_copy(1, positions, states)
        return (spread, *routing) if routing else spread


def register() -> None:
    """Makes transformers know the attention of this module."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def use(model: Any) -> None:
    """Makes a transformers model attend within packed rows only; its forward then needs the keyword `packed`."""
    register()
    model.set_attn_implementation(NAME)


def unpackable(model: Any) -> str | None:
    """What short rows need not show: why a model that uses the attention of this module cannot be packed."""
    config = model.config.get_text_config()
    if model.config._attn_implementation != NAME:
        return "its attention is not of transformers' attention interface"
    # Layers that are more than attention to a row or a window of it have a state or cut rows up.
    layers = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    if kinds := {*layers} - {"attention", "full_attention", "sliding_attention"}:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    if config.model_type in WINDOW_IN_MASK and config.sliding_window is not None:
        return "the window of its attention is in its mask only"
    return None


def longest_together(config: Any) -> int:
    """Up to this length rows may share a pass: beyond it some rotary encodings look at the longest of a pass."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Some families have an encoding for each kind of layer.
    by_layer = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    looking = [part for part in by_layer if part.get("rope_type", part.get("type")) in ("dynamic", "longrope")]
    if not looking:
        return 10**9
    limits = [part.get("original_max_position_embeddings") for part in looking]
    limits.append(getattr(config, "original_max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=config.max_position_embeddings)
