"""The trained module: a backbone, the head at the trained positions only, and the summed losses there."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from minos_ray.training import packing
from minos_ray.training.job import Kind


class Losses(NamedTuple):
    """Sums over the places of a micro-batch, and the logits at the trained places."""

    main: torch.Tensor
    language: torch.Tensor
    logits: torch.Tensor


class Objective(nn.Module):
    """Wraps a transformers model; `forward` gives the losses summed over their places.

    `lm`: cross-entropy of the next token. `orm`, `prm`: binary cross-entropy of a scalar head against the targets; with
    a `vocabulary` head also the language loss on right solutions (Cobbe et al. 2021, section 4.2: a joint objective).
    In training `dropout` zeroes that share of what the scalar head reads.
    """

    def __init__(self, model: Any, kind: Kind, vocabulary: nn.Linear | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.model, self.kind, self.vocabulary, self.dropout = model, kind, vocabulary, dropout
        packing.use(model)

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
        hidden = self.model.base_model(
            input_ids=ids[None], position_ids=packed.position_ids, packed=packed, use_cache=False
        ).last_hidden_state
        read = hidden[0, places]
        if self.training and self.dropout:
            read = read * kept(own, read.shape[1], self.dropout) / (1 - self.dropout)
        logits = self.head()(read).float()
        nothing = logits.new_zeros(())
        if self.kind == "lm":
            return Losses(functional.cross_entropy(logits, ids[places + 1], reduction="sum"), nothing, logits)
        logits = logits.squeeze(-1)
        main = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        if self.vocabulary is None:
            return Losses(main, nothing, logits)
        words = self.vocabulary(hidden[0, language]).float()
        return Losses(main, functional.cross_entropy(words, ids[language + 1], reduction="sum"), logits)

    def head(self) -> nn.Module:
        """The vocabulary head of a language model, the scalar head of a verifier."""
        return self.model.get_output_embeddings() if self.kind == "lm" else self.model.score


def kept(own: torch.Tensor, width: int, dropout: float) -> torch.Tensor:
    """[places, width]: what dropout leaves, drawn by hashing the number of the place: ranks and packs change nothing.

    The hash is splitmix64's, on signed numbers that wrap around.
    """
    x = own[:, None] * width + torch.arange(width, device=own.device)
    x = (x + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return (x & 0xFFFFFF) >= dropout * (1 << 24)
