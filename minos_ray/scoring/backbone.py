"""A decoder that takes forests: by runs where its build is known, with a mask of all nodes, or sequence by sequence.

Of what a model computes between its layers nothing is known here. So two short sequences with a common beginning are
computed alone by the model's own forward, then as a forest in one way after the other, and the first that gives the
same hidden states and scores is taken. A model for which none does (attention in both directions, a head that reads
something else) is refused before it scores anything.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from minos_ray.errors import UserError
from minos_ray.scoring.attention import Backbone
from minos_ray.scoring.batches import Forest, forests
from minos_ray.training import packing
from minos_ray.training.vocabulary import backbone_of as decoder_of

# Families whose layers are attention and an MLP on each position, tried against transformers.
BY_RUNS = {
    "gemma", "gemma3_text", "glm", "glm4", "llama", "ministral", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3",
    "starcoder2",
}  # fmt: skip
TRIED = 12  # tokens, of which half are common
# Of the largest hidden value or logit, in float32 and in half precision.
EXACT, HALF = 1e-4, 0.1
CPU_TOKENS, GPU_TOKENS = 2048, 16_384  # of a padded batch
# The attention of transformers as models are written, without any kernel.
EAGER = "eager"


class Masked:
    """A decoder given a mask of [nodes, nodes]: slower and larger, for any causal attention."""

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
        found = self.module(
            input_ids=ids[None], position_ids=depths[None], attention_mask=mask[None, None], use_cache=False
        )
        return found.last_hidden_state[0, torch.from_numpy(places).to(device)]


class Padded:
    """A decoder given each sequence of a forest by itself, in padded batches: for whatever is causal."""

    def __init__(self, model: Any, attention: str) -> None:
        self.model, self.module, self.attention = model, decoder_of(model), attention
        self.room = GPU_TOKENS if self.module.device.type == "cuda" else CPU_TOKENS

    def __call__(self, forest: Forest, places: np.ndarray) -> torch.Tensor:
        """Hidden states at `places` (ascending nodes): [places, width]."""
        self.model.set_attn_implementation(self.attention)
        found: dict[int, torch.Tensor] = {}
        left = sorted(forest.paths, key=len)
        while left:
            batch = left[: self.fitting(left)]
            states = self.states(forest, batch, places)
            if states is None:
                self.room = len(batch) * len(batch[-1]) // 2
            else:
                found.update(states)
                left = left[len(batch) :]
        return torch.stack([found[node] for node in places.tolist()])

    def fitting(self, paths: list[np.ndarray]) -> int:
        """How many of the paths, by ascending length, there is room for with their padding; at least one."""
        sizes = (number * len(path) for number, path in enumerate(paths, 1))
        return max(1, sum(size <= self.room for size in sizes))

    def states(self, forest: Forest, paths: list[np.ndarray], places: np.ndarray) -> dict[int, torch.Tensor] | None:
        """Hidden states by node; None when memory runs out for several paths."""
        longest = len(paths[-1])
        # What follows a sequence changes nothing in it: its last node is repeated.
        grid = np.stack([path[np.minimum(np.arange(longest), len(path) - 1)] for path in paths])
        try:
            ids = torch.from_numpy(forest.ids[grid]).to(self.module.device)
            hidden = self.module(input_ids=ids, use_cache=False).last_hidden_state
        except torch.OutOfMemoryError:
            if len(paths) == 1:
                raise
            return None
        found: dict[int, torch.Tensor] = {}
        for path, states in zip(paths, hidden, strict=True):
            at = np.flatnonzero(np.isin(path, places))
            found.update(zip(path[at].tolist(), states[torch.from_numpy(at)], strict=True))
        return found


class Decoders(NamedTuple):
    """Of one verifier: the fastest that is right, and one for sequences that must have a pass of their own."""

    together: Backbone | Masked | Padded
    alone: Padded


@torch.inference_mode()
def backbone_of(model: Any, head: Any, name: str) -> Decoders:
    """The decoders of a verifier; UserError when none gives what the model's own forward gives for each sequence alone.

    `head` is the linear layer from hidden state to logit.
    """
    attention = model.config._attn_implementation
    sequences = trial(model.config.get_text_config())
    expected = alone(model, head, sequences, name)
    plain = first(expected, sequences, (Padded(model, way) for way in dict.fromkeys((attention, EAGER))))
    if not isinstance(plain, Padded):
        raise UserError(
            f"model '{name}' ({type(model).__name__}) does not read a sequence as it does beside others in one pass; "
            "set resources.score.engine: vllm"
        )
    return Decoders(first(expected, sequences, sharing(model, attention)) or plain, plain)


def sharing(model: Any, attention: str) -> Iterator[Backbone | Masked]:
    """Decoders that compute a shared beginning once, for models without a state, a mask or positions of their own."""
    packing.use(model)
    reason = packing.unpackable(model)
    model.set_attn_implementation(attention)
    if reason is None:
        yield Backbone(model) if model.config.model_type in BY_RUNS else Masked(model, attention)


def alone(model: Any, head: Any, sequences: list[list[int]], name: str) -> list[torch.Tensor]:
    """Hidden states of each sequence by itself; UserError when `head` does not make the model's own logits of them."""
    told = f"model '{name}' ({type(model).__name__}) has a head that reads more than the hidden state of a token"
    if not isinstance(head, torch.nn.Linear):
        raise UserError(told)
    attention, module = model.config._attn_implementation, decoder_of(model)
    model.set_attn_implementation(EAGER)
    rows = [torch.tensor([ids], device=module.device) for ids in sequences]
    states = [module(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]
    for row, hidden in zip(rows, states, strict=True):
        logits = model(input_ids=row).logits.flatten()  # of an ORM those of the last token only
        if off(head(hidden).flatten()[-len(logits) :], logits) > limit(hidden):
            raise UserError(told)
    model.set_attn_implementation(attention)
    return states


def first(expected: list[torch.Tensor], sequences: list[list[int]], decoders: Iterable[Any]) -> Any | None:
    """The first decoder that gives the expected hidden states."""
    (forest,) = forests(sequences, range(len(sequences)), 2 * TRIED)
    for decoder in decoders:
        try:
            hidden = decoder(forest, np.arange(len(forest.ids)))
        except (TypeError, ValueError, RuntimeError, IndexError):  # its forward takes no such mask or positions
            continue
        together = {member: hidden[path] for member, path in zip(forest.members, forest.paths, strict=True)}
        if all(off(together[member], states) <= limit(states) for member, states in enumerate(expected)):
            return decoder
    return None


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return (float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)) if len(expected) else 0.0


def longest_shared(config: Any) -> int:
    """Up to this length a sequence may share a pass: no window and no rotary encoding tells it from being alone."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min(packing.longest_together(config), *(window for window in windows if window), 10**9)


def limit(states: torch.Tensor) -> float:
    """What is rounding."""
    return EXACT if states.dtype == torch.float32 else HALF


def trial(config: Any) -> list[list[int]]:
    """Two sequences with a common beginning, without the padding token."""
    words = np.setdiff1d(np.arange(config.vocab_size), [getattr(config, "pad_token_id", None) or 0])
    first, second = np.random.default_rng(0).choice(words, (2, TRIED)).tolist()
    return [first, first[: TRIED // 2] + second[TRIED // 2 :]]
