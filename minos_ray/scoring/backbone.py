"""A decoder that takes forests: by runs where its build is known, else with a mask of all nodes; tried out either way.

Of what a model computes between its layers nothing is known here. So two short sequences with a common beginning are
computed alone, then as a forest, and a model for which that is not the same (attention in both directions, recurrent
layers) is refused before it scores anything.
"""

from typing import Any

import numpy as np
import torch

from minos_ray.errors import UserError
from minos_ray.scoring.attention import Backbone
from minos_ray.scoring.batches import Forest, forests

# Families whose layers are attention and an MLP on each position, tried against transformers.
BY_RUNS = {
    "gemma", "gemma3_text", "glm", "glm4", "llama", "ministral", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3",
    "starcoder2",
}  # fmt: skip
TRIED = 12  # tokens, of which half are common
# Of the largest hidden value, in float32 and in half precision.
EXACT, HALF = 1e-3, 0.1


class Masked:
    """A decoder given a mask of [nodes, nodes]: slower and larger, for any causal attention."""

    def __init__(self, model: Any) -> None:
        self.module = model.base_model

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places`: [places, width]."""
        device, dtype = self.module.device, self.module.dtype
        ids, depths, ends = (torch.from_numpy(a).to(device) for a in (forest.ids, forest.depths, forest.ends))
        node = torch.arange(len(ids), device=device)
        sees = (node[None] <= node[:, None]) & (node[:, None] < ends[None])
        mask = torch.zeros(sees.shape, device=device, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        found = self.module(
            input_ids=ids[None], position_ids=depths[None], attention_mask=mask[None, None], use_cache=False
        )
        return found.last_hidden_state[0, torch.from_numpy(places).to(device)]


@torch.inference_mode()
def backbone_of(model: Any, name: str) -> Backbone | Masked:
    """The decoder of a model; UserError when a forest does not give what its sequences give alone."""
    sequences = trial(model.config.vocab_size)
    module = model.base_model
    alone = [
        module(input_ids=torch.tensor([ids], device=module.device), use_cache=False).last_hidden_state[0]
        for ids in sequences
    ]
    made = Backbone(model) if model.config.model_type in BY_RUNS else Masked(model)
    (forest,) = forests(sequences, range(len(sequences)), 2 * TRIED)
    hidden = made(forest, np.arange(len(forest.ids)))
    together = dict(zip(forest.members, (hidden[path] for path in forest.paths), strict=True))
    limit = (EXACT if module.dtype == torch.float32 else HALF) * max(float(states.abs().max()) for states in alone)
    if any(float((together[member] - states).abs().max()) > limit for member, states in enumerate(alone)):
        raise UserError(
            f"model '{name}' ({type(module).__name__}) does not read a sequence as it does beside others in one pass; "
            "set resources.score.engine: vllm"
        )
    return made


def trial(vocabulary: int) -> list[list[int]]:
    """Two sequences with a common beginning."""
    first, second = np.random.default_rng(0).integers(0, vocabulary, (2, TRIED)).tolist()
    return [first, first[: TRIED // 2] + second[TRIED // 2 :]]
