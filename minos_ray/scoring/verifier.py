"""What every scoring engine shares: which kind of model it is, where it is read, what is refused.

An ORM is a `*ForSequenceClassification` read at the last step's end, a PRM a `*ForTokenClassification` read at every
step's end; so is an ORM that was trained at every token (config key `orm_positions`). Of families that have only one
of the two classes both kinds are saved as that one (config key `verifier_kind`). A score is the sigmoid of the raw
logit.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from typing import Any

from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store.model_files import load_tokenizer

KINDS = {"ForSequenceClassification": "orm", "ForTokenClassification": "prm"}


class Verifier(ABC):
    """A model that scores: `kind` is orm or prm; `every_step` when there is a score for each step.

    Engines add `compute`.
    """

    def __init__(self, model: str, trust_remote_code: bool, max_length: int) -> None:
        from transformers import AutoConfig

        self.config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        self.kind = kind_of(self.config, model)
        self.every_step = self.kind == "prm" or getattr(self.config, "orm_positions", "last") == "every_token"
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.max_length = min(longest(self.config), max_length)

    @abstractmethod
    def compute(self, sequences: list[list[int]], read: list[list[int]]) -> tuple[list[list[float]], int]:
        """Scores of each sequence at the positions `read`, and the number of tokens that were computed."""

    @abstractmethod
    def close(self) -> None:
        """Gives back all that the model holds, before another one is loaded; it scores nothing after that."""

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], dict[str, float]]:
        """Scores of each (question, steps): one for each step, or only the last one's; none of a refused solution.

        Also counts: tokens that were computed, tokens of all solutions, refusals by reason.
        """
        return self.score_encoded(encoding.encode_solutions(self.tokenizer, solutions))

    def score_encoded(self, encoded: Sequence[encoding.Encoded]) -> tuple[list[list[float]], dict[str, float]]:
        """`score` of solutions that are tokenised already."""
        reasons = [encoding.refusal(solution, self.max_length) for solution in encoded]
        stats = Counter({f"refused_{reason}": reasons.count(reason) for reason in {*reasons} - {None}})
        fine = [row for row, reason in enumerate(reasons) if reason is None]
        sequences = [encoded[row].ids for row in fine]
        read = [encoded[row].positions if self.every_step else encoded[row].positions[-1:] for row in fine]
        scores, stats["tokens"] = self.compute(sequences, read) if fine else ([], 0)
        stats["tokens_of_solutions"] = sum(map(len, sequences))
        found: list[list[float]] = [[] for _ in encoded]
        for row, values in zip(fine, scores, strict=True):
            if all(map(isfinite, values)):
                found[row] = values
            else:
                stats["refused_not_finite"] += 1
        return found, dict(stats)


def kind_of(config: Any, model: str) -> str:
    """`orm` or `prm`, by the architecture that the model was saved with, unless the config says which."""
    for architecture in config.architectures or []:
        for ending, kind in KINDS.items():
            if architecture.endswith(ending) and config.num_labels == 1:
                return getattr(config, "verifier_kind", None) or kind
    wanted = " or ".join(f"*{ending}" for ending in KINDS)
    raise UserError(f"model '{model}' is {config.architectures}; a verifier is {wanted} with one label")


def longest(config: Any) -> int:
    """Tokens that the model has positions for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 10**9
