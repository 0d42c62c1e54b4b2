"""Attention in a forest, and a last layer that works only where the model is read.

Registered with transformers as the attention `minos_forest`. Nodes are taken in runs of neighbours: each run attends
to the path to its first node and to itself, so that few masked pairs are computed and no mask is [nodes, nodes].
Nothing is padded outside of attention.
"""

import platform
from typing import Any

import numpy as np
import torch
from torch import nn

from minos_ray.errors import UserError
from minos_ray.scoring.forest import NONE, Forest, keys, runs
from minos_ray.training import packing

NAME = "minos_forest"
# Groups of runs with paths of similar length, each padded to its longest; on GPUs each group is a kernel to start.
GROUPS, GPU_GROUPS = 12, 3
# Keys of one layout, which are copied at once with their values; on GPUs for each head of the queries: 1 GB in half
# precision for 32 heads of 128.
KEYS, GPU_KEYS = 2**18, 2**16
RUN, GPU_RUN = 32, 64  # nodes of a run: longer ones compute more masked pairs, shorter ones copy more keys
ROWS = 64  # oneDNN keeps half a megabyte of code for every number of rows that it meets: multiples of this only


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

    def with_cached(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer as `keys` of the layouts number them: those of this pass, nothing is cached."""
        return key, value


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
        self.read_only = wrap_read_only(last)

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


def wrap_read_only(layer: Any) -> list[ReadOnly]:
    """Wraps the modules of the last layer that work on each position alone; other nodes need its keys and values."""
    modules = [(layer, "mlp"), (layer.self_attn, "q_proj"), (layer.self_attn, "o_proj")]
    wrapped = []
    for parent, name in modules:
        if hasattr(parent, name):  # some families fuse queries with keys
            wrapped.append(ReadOnly(getattr(parent, name)))
            setattr(parent, name, wrapped[-1])
    return wrapped


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

    Sliding windows change nothing: no sequence is longer (`backbone.longest_shared`).
    """
    q, k, v = (states[0].transpose(0, 1).to(view.dtype) for states in (query, key, value))
    k, v = view.with_cached(module.layer_idx, k, v)
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


class PackedLinear(nn.Module):
    """A float32 linear layer for inference on x86 CPUs, whose weights are laid out for oneDNN once, not in every call.

    Measured with torch 2.13 on one core with AVX-512: 2.3 times as fast as `nn.Linear` for 2,048 tokens of width 256 or
    576. The operators are private to torch: those that its compiler (Inductor) calls for a frozen model.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        rows = hidden.flatten(0, -2)
        if padding := -len(rows) % ROWS:
            rows = torch.cat([rows, rows.new_zeros(padding, rows.shape[1])])
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out[: len(rows) - padding].unflatten(0, hidden.shape[:-1])


def pack_linear(module: nn.Module) -> None:
    """Replaces the float32 linear layers of a module on an x86 CPU by `PackedLinear`; others stay as they are."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linear(child)
