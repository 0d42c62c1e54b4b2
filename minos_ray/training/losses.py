"""The trained module: a backbone, the head at the trained positions only, and the summed losses there."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from minos_ray.config.training import Kind
from minos_ray.training import packing, vocabulary
from minos_ray.training.heads import reads_last, scalar_head
from minos_ray.training.vocabulary import backbone_of


class Losses(NamedTuple):
    """Sums over the places of a micro-batch; at the trained places what the head read (none by the model's own
    forward), and a verifier's logits or a language model's log-probabilities of the next tokens."""

    main: torch.Tensor
    language: torch.Tensor
    read: torch.Tensor
    logits: torch.Tensor


class Way(NamedTuple):
    """How rows go through a model: `packed` or as a padded batch, by which attention of transformers.

    `own`: the logits are what the model's own forward gives, those of all places and words at once.
    """

    packed: bool
    attention: str
    own: bool = False


PACKED = Way(True, packing.NAME)


class Objective(nn.Module):
    """Wraps a transformers model; `forward` gives the losses summed over their places.

    `lm`: cross-entropy of the next token. `orm`, `prm`: binary cross-entropy of a scalar head against the targets; with
    a `vocabulary` head also the language loss on right solutions (Cobbe et al. 2021, section 4.2: a joint objective).
    In training `dropout` zeroes that share of what the scalar head reads.
    """

    def __init__(self, model: Any, kind: Kind, words: nn.Linear | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.model, self.kind, self.vocabulary, self.dropout = model, kind, words, dropout
        # The implementation that transformers has chosen.
        self.attention = model.config._attn_implementation
        head = model.get_output_embeddings() if kind == "lm" else words
        # A vocabulary head that is more than a linear layer and a scale is left to the model's own forward.
        self.head_is_known = (kind != "lm" and words is None) or vocabulary.take_over(
            head, vocabulary.scales_of(model, kind)
        )
        self.take(PACKED)

    def take(self, way: Way) -> None:
        """Computes rows in this way from now on."""
        packing.register()
        self.way = way
        self.model.set_attn_implementation(way.attention)

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        places: torch.Tensor,
        targets: torch.Tensor,
        language: torch.Tensor,
        own: torch.Tensor,
    ) -> Losses:
        """Packed rows (`rows.Micro`); sums over no places are zero and give zero gradients."""
        packed = packing.Packed(lengths)
        if self.way.own:
            return self.by_model(ids, packed, places, targets)
        if not self.head_is_known:
            raise packing.NotPackable("its vocabulary head is more than a linear layer and a scale")
        hidden = self.hidden(ids, packed)
        read = hidden[places]
        nothing = read.new_zeros((), dtype=torch.float32)
        if self.kind == "lm":
            loss, logs = self.head()(read, ids[places + 1])
            return Losses(loss, nothing, read, logs)
        if self.training and self.dropout:
            read = read * kept(own, read.shape[1], self.dropout) / (1 - self.dropout)
        logits = self.head()(read).float().squeeze(-1)
        main = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        if self.vocabulary is None:
            return Losses(main, nothing, read, logits)
        words, _ = self.vocabulary(hidden[language], ids[language + 1])
        return Losses(main, words, read, logits)

    def hidden(self, ids: torch.Tensor, packed: packing.Packed) -> torch.Tensor:
        """[tokens, width]: what the backbone gives for each token of the packed rows."""
        backbone = backbone_of(self.model)
        if self.way.packed:
            inputs = {"input_ids": ids[None], "position_ids": packed.position_ids, "packed": packed}
            return backbone(**inputs, use_cache=False).last_hidden_state[0]
        out = backbone(input_ids=packed.padded(ids), use_cache=False).last_hidden_state
        return out.flatten(0, 1)[packed.back]

    def by_model(
        self, ids: torch.Tensor, packed: packing.Packed, places: torch.Tensor, targets: torch.Tensor
    ) -> Losses:
        """The losses from the logits of the model's own forward; an ORM's are of the last token of each row."""
        if self.kind == "lm":
            logits = self.model(input_ids=packed.padded(ids), use_cache=False).logits.float()
            logs = torch.log_softmax(logits.flatten(0, 1)[packed.back[places]], -1)
            logs = logs.gather(1, ids[places + 1, None])[:, 0]
            nothing = logits.new_zeros(())
            return Losses(-logs.sum(), nothing, nothing, logs)
        logits = self.scores_by_model(ids, packed, places).float()
        nothing = logits.new_zeros(())
        main = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return Losses(main, nothing, nothing, logits)

    def scores_by_model(self, ids: torch.Tensor, packed: packing.Packed, places: torch.Tensor) -> torch.Tensor:
        """[places]: logits by the model's own forward. A class that reads the last token reads a step as the last."""
        if not reads_last(self.model):
            return self.model(input_ids=packed.padded(ids), use_cache=False).logits.flatten()[packed.back[places]]
        if self.kind == "orm":
            return self.model(input_ids=packed.padded(ids), use_cache=False).logits.flatten()
        starts = packed.starts[torch.searchsorted(packed.starts, places, right=True) - 1]
        ends = zip(starts.tolist(), (places + 1).tolist(), strict=True)
        return torch.cat([self.model(input_ids=ids[None, a:b], use_cache=False).logits.flatten() for a, b in ends])

    def head(self) -> nn.Module:
        """The vocabulary head of a language model, the scalar head of a verifier."""
        return self.model.get_output_embeddings() if self.kind == "lm" else scalar_head(self.model)


def kept(own: torch.Tensor, width: int, dropout: float) -> torch.Tensor:
    """[places, width]: what dropout leaves, drawn by hashing the number of the place: ranks and packs change nothing.

    The hash is splitmix64's, on signed numbers that wrap around.
    """
    x = own[:, None] * width + torch.arange(width, device=own.device)
    x = (x + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return (x & 0xFFFFFF) >= dropout * (1 << 24)
