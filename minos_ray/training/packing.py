"""Packed rows: many rows in one sequence without padding, and an attention in which each token sees its own row only.

Registered with transformers as the attention `minos_packed`. On GPUs in half precision it is torch's varlen flash
attention; elsewhere queries, keys and values alone are laid out as a grid of rows for one causal attention, and all
the rest of the model works on real tokens only.
"""

from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

NAME = "minos_packed"


class Packed:
    """Where the rows of a packed sequence begin and end; `lengths` is [rows], on the device of the model."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths
        self.longest = int(lengths.max())
        self.starts = functional.pad(lengths.cumsum(0), (1, 0))

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """[1, tokens]: positions begin at 0 in every row."""
        first = torch.repeat_interleave(self.starts[:-1], self.lengths)
        return (torch.arange(len(first), device=first.device) - first)[None]

    @cached_property
    def grid(self) -> torch.Tensor:
        """[rows * longest]: the token at each place of the grid; places after a row's end repeat its last token."""
        places = torch.arange(self.longest, device=self.lengths.device).minimum(self.lengths[:, None] - 1)
        return (self.starts[:-1, None] + places).flatten()

    @cached_property
    def back(self) -> torch.Tensor:
        """[tokens]: the place of each token in the grid."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return torch.repeat_interleave(rows, self.lengths) * self.longest + self.position_ids[0]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    packed: Packed,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    window = sliding_window if sliding_window is not None and sliding_window < packed.longest else None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return varlen(query, key, value, packed, scaling, window), None
    # On CPUs torch's attention takes more than twice as long in bfloat16 as in float32.
    dtype = query.dtype if query.is_cuda else torch.float32
    q, k, v = (in_grid(states.to(dtype), packed) for states in (query, key, value))
    mask = None if window is None else band(packed.longest, window, query.device)
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, packed.back)[None].to(query.dtype), None


def in_grid(states: torch.Tensor, packed: Packed) -> torch.Tensor:
    """[1, heads, tokens, dim] as [rows, heads, longest, dim]."""
    rows = states[0].transpose(0, 1).index_select(0, packed.grid)
    return rows.unflatten(0, (-1, packed.longest)).transpose(1, 2)


def band(longest: int, window: int, device: torch.device) -> torch.Tensor:
    """A causal mask of a sliding window: a token sees itself and the `window` - 1 tokens before it."""
    places = torch.arange(longest, device=device)
    distance = places[:, None] - places[None]
    return (distance >= 0) & (distance < window)


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
    size = (-1 if window is None else window - 1, 0)
    longest = packed.longest
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=size, enable_gqa=True)[None]


def use(model: Any) -> None:
    """Makes a transformers model attend within packed rows only; its forward then needs the keyword `packed`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)
