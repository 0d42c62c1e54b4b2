"""Attention in a forest, and a last layer that works only where the model is read.

Registered with transformers as the attention `minos_forest`. Nodes are taken in runs of neighbours: each run attends
to the path to its first node and to itself, so that little is computed that nobody sees, and no mask is of
[nodes, nodes]. Nothing is padded outside of attention.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minos_ray.errors import UserError
from minos_ray.scoring.batches import NONE, Forest, keys, runs

NAME = "minos_forest"
RUN = 64  # nodes of a run: longer ones look at more that they may not see, shorter ones copy more keys


class Layout:
    """Who asks and who is asked, as tensors: `asking` [runs, nodes], `keys` [runs, keys], `mask` to be added."""

    def __init__(self, forest: Forest, asking: np.ndarray, device: str, dtype: torch.dtype) -> None:
        asked = torch.from_numpy(keys(forest, asking)).to(device)
        ends = torch.from_numpy(forest.ends).to(device)
        self.asking = torch.from_numpy(asking).to(device)
        self.keys = asked.clamp(min=0)
        end = ends[self.keys].masked_fill(asked == NONE, NONE)[:, None]
        who = self.asking[:, :, None]
        # Behind the last node there is nothing; what is computed there is thrown away, and must not be NaN.
        sees = ((asked[:, None] <= who) & (who < end)) | (who >= len(ends))
        mask = torch.zeros(sees.shape, device=device, dtype=dtype).masked_fill_(~sees, -torch.inf)
        self.mask = mask[:, None]


class View:
    """A forest for one pass: all nodes ask in every layer; in the last one those of `places`, where it is read."""

    def __init__(self, forest: Forest, places: np.ndarray, device: str, dtype: torch.dtype) -> None:
        dtype = attention_dtype(device, dtype)
        self.everywhere = Layout(forest, runs(forest, RUN), device, dtype)
        self.read = Layout(forest, places[:, None], device, dtype)
        self.places = torch.from_numpy(places).to(device)


class ReadOnly(nn.Module):
    """A module that works on each position alone, run at `places` only and 0 elsewhere."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.places: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, tokens, width] in and out."""
        out = torch.zeros_like(hidden)
        out[:, self.places] = self.module(hidden[:, self.places])
        return out


class Backbone:
    """A transformers decoder that takes forests."""

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, forest_attention)
        AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
        self.module = model.base_model
        last = last_layer(self.module)
        model.set_attn_implementation(NAME)
        last.self_attn.minos_last = True
        self.mlp = last.mlp = ReadOnly(last.mlp)

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places` (ascending nodes): [places, width]."""
        device, dtype = self.module.device, self.module.dtype
        view = View(forest, places, device, dtype)
        self.mlp.places = view.places
        ids, depths = (torch.from_numpy(array).to(device)[None] for array in (forest.ids, forest.depths))
        hidden = self.module(input_ids=ids, position_ids=depths, view=view, use_cache=False).last_hidden_state
        return hidden[0, view.places]


def last_layer(module: Any) -> Any:
    """The last decoder layer; UserError when the model is not built as Llama, Mistral and Qwen are."""
    layer = (getattr(module, "layers", None) or [None])[-1]
    if not (hasattr(layer, "self_attn") and hasattr(layer, "mlp")):
        name = type(module).__name__
        raise UserError(f"{name} has no decoder layers with self_attn and mlp; set resources.score.engine: vllm")
    return layer


def attention_dtype(device: Any, dtype: torch.dtype) -> torch.dtype:
    """On CPUs torch's attention takes more than twice as long in bfloat16 as in float32."""
    return torch.float32 if torch.device(device).type == "cpu" else dtype


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
    last = getattr(module, "minos_last", False)
    layout = view.read if last else view.everywhere
    states = [x[0].transpose(0, 1).to(layout.mask.dtype) for x in (query, key, value)]
    nodes = len(states[0])
    q = states[0][view.places] if last else filled(states[0], layout.asking.numel())
    k, v = (x.index_select(0, layout.keys.flatten()) for x in states[1:])
    grid = (x.unflatten(0, (len(layout.keys), -1)).transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(*grid, attn_mask=layout.mask, scale=scaling, enable_gqa=True)
    out = out.transpose(1, 2).flatten(0, 1).to(query.dtype)
    return (spread(out, view.places, nodes) if last else out[:nodes])[None], None


def filled(states: torch.Tensor, nodes: int) -> torch.Tensor:
    """[nodes there are, ...] with zeros up to `nodes`."""
    missing = nodes - len(states)
    return functional.pad(states, (0, 0, 0, 0, 0, missing)) if missing else states


def spread(states: torch.Tensor, places: torch.Tensor, nodes: int) -> torch.Tensor:
    """[places, ...] as [nodes, ...], zeros elsewhere."""
    out = states.new_zeros(nodes, *states.shape[1:])
    out[places] = states
    return out
