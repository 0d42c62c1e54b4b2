"""A decoder that takes forests: by runs where its build is known, with a mask of all nodes, or sequence by sequence.

Nothing is assumed of what a model computes between its layers. Two short sequences with a common prefix are computed
alone by the model's own forward, then as a forest by one decoder after the other; the first one that gives the same
hidden states and scores is used. Where none does (attention in both directions, a head that reads something else), a
UserError is raised before anything is scored.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from minos_ray.errors import UserError
from minos_ray.scoring.attention import Backbone
from minos_ray.scoring.forest import Forest, forests
from minos_ray.training import packing
from minos_ray.training.vocabulary import backbone_of as decoder_of

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
        if difference(head(hidden).flatten()[-len(logits) :], logits) > tolerance(hidden):
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
        if all(difference(together[member], states) <= tolerance(states) for member, states in enumerate(expected)):
            return decoder
    return None


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, relative to the largest expected value."""
    return (float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)) if len(expected) else 0.0


def longest_shared(config: Any) -> int:
    """Tokens up to which a sequence may share a pass: beyond a sliding window, or where rotary encodings depend on the
    longest sequence of a pass, its states would not be those that it has alone."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min(packing.longest_together(config), *(window for window in windows if window), 10**9)


def tolerance(states: torch.Tensor) -> float:
    """The largest relative difference that is rounding."""
    return TOLERANCE if states.dtype == torch.float32 else HALF_TOLERANCE
