"""The trained module: a backbone, the head at the trained positions only, and the summed loss there."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from minos_ray.training.job import Kind


class Objective(nn.Module):
    """Wraps a transformers model; `forward` gives the loss summed over the trained positions, and their logits.

    `lm`: cross-entropy of the next token. `orm`, `prm`: binary cross-entropy of a scalar head against the targets.
    Rows are padded on the right, so causal attention needs no mask.
    """

    def __init__(self, model: Any, kind: Kind) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(
        self, ids: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`places` are indices into the flattened `ids`; sums over no places are zero and give zero gradients."""
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.head()(hidden.flatten(0, 1)[places]).float()
        if self.kind == "lm":
            return functional.cross_entropy(logits, ids.flatten()[places + 1], reduction="sum"), logits
        logits = logits.squeeze(-1)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), logits

    def head(self) -> nn.Module:
        """The vocabulary head of a language model, the scalar head of a verifier."""
        return self.model.get_output_embeddings() if self.kind == "lm" else self.model.score
