"""The actor that scores: one forward pass gives every score of many candidates, nothing is written.

An ORM is a `*ForSequenceClassification` read at the last step's end, a PRM a `*ForTokenClassification` read at every
step's end; the score is the sigmoid of the raw logit. Scores are computed in the precision that the model is saved in.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray import schema
from minos_ray.errors import UserError
from minos_ray.models import load_tokenizer, locate
from minos_ray.scoring.batches import Forest, forests
from minos_ray.sections import Model
from minos_ray.store import Run
from minos_ray.training import encoding

KINDS = {"ForSequenceClassification": "orm", "ForTokenClassification": "prm"}
CPU_TOKENS, GPU_TOKENS = 512, 4096  # nodes of one forest

AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "last": lambda scores: scores[-1],
    "mean": lambda scores: sum(scores) / len(scores),
}


class Scorers:
    """The worker of `run_units`: scores units with the verifier of their artefact; one model is loaded at a time.

    `models` names the model of each artefact; units are problems with `question`, and `candidate_ids` and `steps` of
    all their candidates. One row per candidate.
    """

    def __init__(self, run: str, models: dict[str, Model], aggregation: str) -> None:
        self.run, self.models = Run(run), models
        self.aggregate = AGGREGATIONS[aggregation]
        self.name: str | None = None
        self.scorer: Scorer | None = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores and the sums of `Scorer.score`, with seconds."""
        scorer = self.scorer_of(units["artefact"][0].as_py())
        start = time.monotonic()
        asked, solutions = [], []
        for unit in units.to_pylist():
            asked += [(candidate, unit["problem_id"]) for candidate in unit["candidate_ids"]]
            solutions += [(unit["question"], steps) for steps in unit["steps"]]
        scores, stats = scorer.score(solutions)
        rows = [
            {
                "candidate_id": candidate,
                "problem_id": problem,
                "score": self.aggregate(found) if found else 0.0,
                "step_scores": found if scorer.kind == "prm" else [],
            }
            for (candidate, problem), found in zip(asked, scores, strict=True)
        ]
        return schema.table("scores", rows), {**stats, "seconds": time.monotonic() - start}

    def scorer_of(self, artefact: str) -> "Scorer":
        """The loaded verifier of an artefact; the one before is let go first."""
        if self.scorer is None or self.name != artefact:
            self.scorer = None
            model = self.models[artefact]
            self.scorer, self.name = Scorer(locate(model, self.run), model.trust_remote_code), artefact
        return self.scorer


class Scorer:
    """A loaded verifier: `kind` is orm or prm."""

    def __init__(self, model: str, trust_remote_code: bool = False) -> None:
        import torch
        from transformers import AutoConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        trust = {"trust_remote_code": trust_remote_code}
        self.config = AutoConfig.from_pretrained(model, **trust)
        self.kind = kind_of(self.config, model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.budget = GPU_TOKENS if self.device == "cuda" else CPU_TOKENS
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        options = {"dtype": "auto", "attn_implementation": "sdpa", **trust}
        whole = auto_class(self.kind).from_pretrained(model, **options).to(self.device).eval()
        self.backbone, self.head = whole.base_model, head_of(whole, model)
        self.max_length = longest(self.config)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], dict[str, float]]:
        """Scores of each (question, steps): one of an ORM, one per step of a PRM, none of a refused solution.

        Also counts: tokens that were computed, tokens of all solutions, refusals by reason.
        """
        encoded = encoding.encode_solutions(self.tokenizer, solutions)
        reasons = [encoding.refusal(solution, self.max_length) for solution in encoded]
        fine = [row for row, reason in enumerate(reasons) if reason is None]
        found: list[list[float]] = [[] for _ in encoded]
        stats = Counter({f"refused_{reason}": reasons.count(reason) for reason in {*reasons} - {None}})
        sequences = [solution.ids for solution in encoded]
        for forest in forests(sequences, fine, self.budget):
            read = [self.read_positions(encoded[member]) for member in forest.members]
            for member, scores in zip(forest.members, self.halving(sequences, forest, read), strict=True):
                found[member] = scores
            stats["tokens"] += len(forest.ids)
        stats["tokens_of_solutions"] += sum(len(sequences[row]) for row in fine)
        return found, dict(stats)

    def read_positions(self, solution: encoding.Encoded) -> list[int]:
        """Where the model is read."""
        return solution.positions if self.kind == "prm" else solution.positions[-1:]

    def halving(self, sequences: list[list[int]], forest: Forest, read: list[list[int]]) -> list[list[float]]:
        """Scores of a forest; when memory runs out, of its two halves."""
        import torch

        try:
            return self.forward(forest, read)
        except torch.OutOfMemoryError:
            if len(forest.members) == 1:
                raise
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.budget = max(1, min(self.budget, len(forest.ids)) // 2)
        at = dict(zip(forest.members, read, strict=True))
        scores: dict[int, list[float]] = {}
        for part in forests(sequences, forest.members, self.budget):
            found = self.halving(sequences, part, [at[member] for member in part.members])
            scores.update(zip(part.members, found, strict=True))
        return [scores[member] for member in forest.members]

    def forward(self, forest: Forest, read: list[list[int]]) -> list[list[float]]:
        """Sigmoid of the logit at the positions `read` of each sequence of the forest."""
        import torch

        places = np.concatenate([path[positions] for path, positions in zip(forest.paths, read, strict=True)])
        with torch.inference_mode():
            ids, depths, sees, at = (
                torch.from_numpy(array).to(self.device) for array in (forest.ids, forest.depths, forest.sees, places)
            )
            hidden = self.backbone(
                input_ids=ids[None], position_ids=depths[None], attention_mask=sees[None, None], use_cache=False
            ).last_hidden_state[0]
            scores = torch.sigmoid(self.head(hidden[at])[:, 0].float()).cpu().numpy()
        ends = np.cumsum([len(positions) for positions in read])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]


def kind_of(config: Any, model: str) -> str:
    """`orm` or `prm`, by the architecture that the model was saved with."""
    for architecture in config.architectures or []:
        for ending, kind in KINDS.items():
            if architecture.endswith(ending) and config.num_labels == 1:
                return kind
    wanted = " or ".join(f"*{ending}" for ending in KINDS)
    raise UserError(f"model '{model}' is {config.architectures}; a verifier is {wanted} with one label")


def auto_class(kind: str) -> Any:
    """The transformers class that loads this kind."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    return AutoModelForSequenceClassification if kind == "orm" else AutoModelForTokenClassification


def head_of(whole: Any, model: str) -> Any:
    """The linear layer from hidden state to logit."""
    head = getattr(whole, "score", None) or getattr(whole, "classifier", None)
    if head is None:
        raise UserError(f"model '{model}' ({type(whole).__name__}) has no head named 'score' or 'classifier'")
    return head


def longest(config: Any) -> int:
    """Tokens that every position can attend to: limited by the positions and by a sliding window."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min(limit for limit in (*limits, 10**9) if limit)
