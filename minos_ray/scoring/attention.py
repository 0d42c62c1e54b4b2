"""Attention in a forest, and a last layer that works only where the model is read.

Registered with transformers as the attention `minos_forest`. Nodes are taken in runs of neighbours: each run attends
to the path to its first node and to itself, so that little is computed that nobody sees, and no mask is of
[nodes, nodes]. Nothing is padded outside of attention.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from minos_ray.errors import UserError
from minos_ray.scoring.batches import NONE, Forest, keys, runs
from minos_ray.scoring.linear import pack
from minos_ray.training import packing

NAME = "minos_forest"
GROUPS = 3  # of runs with paths of like lengths, filled up to the longest
# Keys of one layout: they and their values are copied at once, on GPUs for each head of the queries: 1 GB in half
# precision for 32 heads of 128.
KEYS, GPU_KEYS = 2**18, 2**16
RUN = 64  # nodes of a run: longer ones look at more that they may not see, shorter ones copy more keys


class Layout:
    """Some runs: the nodes that ask [runs * nodes], the nodes that are asked [runs, keys], and a mask to be added."""

    def __init__(self, forest: Forest, asking: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        asked = torch.from_numpy(keys(forest, asking)).to(device)
        ends = torch.from_numpy(forest.ends).to(device)
        # Numbers behind the last node ask for it again: they get the same.
        who = torch.from_numpy(asking).to(device).clamp(max=len(ends) - 1)
        self.asking, self.keys = who.flatten(), asked.clamp(min=0)
        end = ends[self.keys].masked_fill(asked == NONE, NONE)
        sees = (asked[:, None] <= who[:, :, None]) & (who[:, :, None] < end[:, None])
        self.mask = torch.zeros(sees.shape, device=device, dtype=dtype).masked_fill_(~sees, -torch.inf)[:, None]


class View:
    """A forest for one pass: all nodes ask in every layer, in the last one those of `places`, where it is read."""

    def __init__(self, forest: Forest, places: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        # On CPUs torch's attention takes more than twice as long in bfloat16 as in float32.
        self.dtype = torch.float32 if device.type == "cpu" else dtype
        asking = runs(forest, RUN)
        by_depth = asking[np.argsort(forest.depths[asking[:, 0]], kind="stable")]
        read = places[np.argsort(forest.depths[places], kind="stable"), None]
        self.everywhere, self.read = (
            [Layout(forest, part, device, self.dtype) for part in parts(forest, asking, least, keys_of(device.type))]
            for asking, least in ((by_depth, GROUPS), (read, 1))
        )
        self.places = torch.from_numpy(places).to(device)


def keys_of(device: str) -> int:
    """Keys of a layout."""
    return KEYS if packing.takes_groups(device) else GPU_KEYS


def parts(forest: Forest, asking: np.ndarray, least: int, most: int) -> list[np.ndarray]:
    """Runs in at least `least` parts (or one for each run), so many that none has much more than `most` keys."""
    keys = len(asking) * (int(forest.depths[asking[-1, 0]]) + asking.shape[1])
    return np.array_split(asking, min(max(least, -(-keys // most)), len(asking)))


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
        return spread(self.module(hidden[0, self.places]), self.places, hidden.shape[1])[None]


class Backbone:
    """A transformers decoder that takes forests."""

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, forest_attention)
        AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
        self.model, self.module = model, model.base_model
        last = last_layer(self.module)
        model.set_attn_implementation(NAME)
        pack(self.module)
        last.self_attn.minos_last = True
        self.read_only = read_only(last)

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places` (ascending nodes): [places, width]."""
        device, dtype = self.module.device, self.module.dtype
        view = View(forest, places, device, dtype)
        for module in self.read_only:
            module.places = view.places
        ids, depths = (torch.from_numpy(array).to(device)[None] for array in (forest.ids, forest.depths))
        self.model.set_attn_implementation(NAME)
        try:
            hidden = self.module(input_ids=ids, position_ids=depths, view=view, use_cache=False).last_hidden_state
        finally:  # another decoder of the same model may follow
            for module in self.read_only:
                module.places = None
        return hidden[0, view.places]


def last_layer(module: Any) -> Any:
    """The last decoder layer; UserError when the model is not built as Llama, Mistral and Qwen are."""
    layer = (getattr(module, "layers", None) or [None])[-1]
    if not (hasattr(layer, "self_attn") and hasattr(layer, "mlp")):
        name = type(module).__name__
        raise UserError(f"{name} has no decoder layers with self_attn and mlp; set resources.score.engine: vllm")
    return layer


def read_only(layer: Any) -> list[ReadOnly]:
    """Wraps what the last layer does to each position alone and nobody else needs; keys and values stay."""
    parts = [(layer, "mlp"), (layer.self_attn, "q_proj"), (layer.self_attn, "o_proj")]
    # Some families fuse queries with keys.
    there = [(parent, name) for parent, name in parts if hasattr(parent, name)]
    for parent, name in there:
        setattr(parent, name, ReadOnly(getattr(parent, name)))
    return [getattr(parent, name) for parent, name in there]


def forest_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    view: View,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Each node attends to its ancestors and itself: [1, heads, nodes, dim] in, [1, nodes, heads, dim] out.

    No sequence is longer than a sliding window (`verifier.longest`), so windows change nothing.
    """
    q, k, v = (states[0].transpose(0, 1).to(view.dtype) for states in (query, key, value))
    out = torch.zeros_like(q)
    for layout in view.read if getattr(module, "minos_last", False) else view.everywhere:
        shape = (len(layout.keys), -1)
        taken = ((q, layout.asking), (k, layout.keys.flatten()), (v, layout.keys.flatten()))
        grid = (x.index_select(0, at).unflatten(0, shape).transpose(1, 2) for x, at in taken)
        found = packing.attend(*grid, layout.mask, scaling)
        out[layout.asking] = found.transpose(1, 2).flatten(0, 1)
    return out[None].to(query.dtype), None


def spread(states: torch.Tensor, places: torch.Tensor, nodes: int) -> torch.Tensor:
    """[places, ...] as [nodes, ...], zeros elsewhere."""
    out = states.new_zeros(nodes, *states.shape[1:])
    out[places] = states
    return out
