"""The actor that scores, and the engine of transformers, which computes every shared prefix once.

Scores are computed in the precision that the model is saved in.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Aggregation, Model
from minos_ray.errors import UserError
from minos_ray.scoring.forest import Forest, forests
from minos_ray.scoring.verifier import Verifier, aggregate, device_of, free_memory, keep_freed_memory
from minos_ray.store import columns
from minos_ray.store.model_files import LOADING, locate
from minos_ray.store.run import Run

# Score 0 means that a solution was rejected, and a sigmoid in single precision can be 0.
LOWEST_SCORE = 1e-30
CPU_TOKENS, GPU_TOKENS = 4096, 16_384  # nodes of one forest: with fewer, questions are computed again more often


class Scorers:
    """The worker of `run_units`: scores units with the verifier of their artefact; one model is loaded at a time.

    `models` names the model of each artefact; units are problems with `question`, and `candidate_ids` and `steps` of
    all their candidates. One row per candidate.
    """

    def __init__(self, run: str, models: dict[str, Model], aggregation: Aggregation, resources: Scoring) -> None:
        self.run, self.models, self.resources, self.aggregation = Run(run), models, resources, aggregation
        self.name: str | None = None
        self.scorer: Any = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores and the sums of `Verifier.score`, with seconds."""
        scorer = self.scorer_of(units["artefact"][0].as_py())
        # The score of an ORM is its last one, also where it has one for every step.
        aggregation = "last" if scorer.kind == "orm" else self.aggregation
        return score_units(units, scorer.score, aggregation, scorer.every_step)

    def loaded(self, model: Any, path: str) -> Any:
        """The verifier at `path`."""
        return load(path, model.trust_remote_code, self.resources)

    def scorer_of(self, artefact: str) -> Any:
        """The loaded verifier of an artefact; the previous one is closed first."""
        if self.scorer is None or self.name != artefact:
            if self.scorer is not None:
                self.scorer.close()
            self.scorer = None  # so that a failure to load leaves no closed one behind
            model = self.models[artefact]
            self.scorer, self.name = self.loaded(model, locate(model, self.run)), artefact
        return self.scorer


def score_units(
    units: pa.Table,
    score: Callable[[Sequence[tuple[str, Sequence[str]]]], tuple[list[list[float]], dict[str, float]]],
    aggregation: Aggregation,
    by_step: bool,
) -> tuple[pa.Table, dict[str, float]]:
    """A row of scores for every candidate of the units (`stage.UNITS`), 0 for a rejected one; and counts, with seconds.

    `score` is `Verifier.score` or does the same; step scores are stored where `by_step`.
    """
    start = time.monotonic()
    ids, solutions = [], []
    for unit in units.to_pylist():
        ids += [{"candidate_id": name, "problem_id": unit["problem_id"]} for name in unit["candidate_ids"]]
        solutions += [(unit["question"], steps) for steps in unit["steps"]]
    scores, stats = score(solutions)
    flat = np.array([value for values in scores for value in values])
    aggregated = aggregate(flat, np.array([len(values) for values in scores], np.int64), aggregation)
    rows = [
        {**names, "score": max(total, LOWEST_SCORE) if values else 0.0, "step_scores": values if by_step else []}
        for names, values, total in zip(ids, scores, aggregated.tolist(), strict=True)
    ]
    return columns.table("scores", rows), {**stats, "seconds": time.monotonic() - start}


def load(path: str, trust_remote_code: bool, resources: Scoring) -> Verifier:
    """The verifier at `path` in the engine that the config names."""
    if resources.engine == "vllm":
        from minos_ray.scoring.verifier import Pooling

        return Pooling(path, trust_remote_code, resources)
    return Scorer(path, trust_remote_code, resources)


class Scorer(Verifier):
    """A verifier in transformers. `budget` bounds the nodes of one pass; it shrinks when memory runs out."""

    def __init__(self, model: str, trust_remote_code: bool = False, resources: Scoring | None = None) -> None:
        from transformers.utils import logging

        from minos_ray.scoring.backbone import Masked, backbone_of, longest_shared
        from minos_ray.training.base import quoted
        from minos_ray.training.heads import saved_class, scalar_head

        resources = resources or Scoring()
        super().__init__(model, trust_remote_code, resources.max_model_len)
        logging.disable_progress_bar()
        self.device = device_of(resources.gpus)
        if self.device == "cpu":
            keep_freed_memory()
        options = {"dtype": resources.dtype, "trust_remote_code": trust_remote_code}
        with LOADING:
            loaded, info = saved_class(self.config).from_pretrained(model, **options, output_loading_info=True)
        if info["missing_keys"]:
            raise UserError(f"model '{model}' has no weights for {quoted(sorted(info['missing_keys']))}")
        loaded = loaded.to(self.device).eval()
        self.head = scalar_head(loaded)
        self.backbone, self.alone = backbone_of(loaded, self.head, model)
        self.budget = GPU_TOKENS if self.device == "cuda" else CPU_TOKENS
        if isinstance(self.backbone, Masked):  # its mask grows with the square of the nodes
            self.budget //= 4 if self.device == "cuda" else 8
        self.together = longest_shared(self.config.get_text_config())

    def close(self) -> None:
        """Drops the weights."""
        del self.backbone, self.alone, self.head
        free_memory()

    def compute(self, sequences: list[list[int]], read: list[list[int]]) -> tuple[list[list[float]], int]:
        """Forest by forest; sequences longer than `together` one by one."""
        scores: dict[int, list[float]] = {}
        short = [member for member, ids in enumerate(sequences) if len(ids) <= self.together]
        tokens = sum(self.fill(sequences, f, read, scores) for f in forests(sequences, short, lambda: self.budget))
        alone = [member for member in range(len(sequences)) if member not in scores]
        # A sequence that is not finite beside others may be finite alone: masked values are multiplied by 0, and
        # 0 x inf is NaN.
        alone += [member for member in short if not np.isfinite(scores[member]).all()]
        for member in alone:
            (forest,) = forests(sequences, [member], self.budget)
            tokens += self.fill(sequences, forest, read, scores)
        return [scores[member] for member in range(len(sequences))], tokens

    def fill(
        self, sequences: list[list[int]], forest: Forest, read: list[list[int]], scores: dict[int, list[float]]
    ) -> int:
        """Puts the scores of a forest into `scores`; returns its number of nodes."""
        positions = [read[member] for member in forest.members]
        scores.update(zip(forest.members, self.halving(sequences, forest, positions), strict=True))
        return len(forest.ids)

    def halving(self, sequences: list[list[int]], forest: Forest, read: list[list[int]]) -> list[list[float]]:
        """Scores of a forest; when memory runs out, of its two halves. `read` are positions by member of the forest."""
        import torch

        try:
            return self.forward(forest, read)
        except torch.OutOfMemoryError:
            if len(forest.members) == 1:
                raise
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.budget = max(1, min(self.budget, len(forest.ids)) // 2)
        read_of = dict(zip(forest.members, read, strict=True))
        scores: dict[int, list[float]] = {}
        for part in forests(sequences, forest.members, lambda: self.budget):
            values = self.halving(sequences, part, [read_of[member] for member in part.members])
            scores.update(zip(part.members, values, strict=True))
        return [scores[member] for member in forest.members]

    def forward(self, forest: Forest, read: list[list[int]]) -> list[list[float]]:
        """Sigmoid of the logit at the positions `read` of each sequence of the forest; each node is read once."""
        import torch

        places = np.concatenate([path[positions] for path, positions in zip(forest.paths, read, strict=True)])
        nodes, node_of_place = np.unique(places, return_inverse=True)
        decoder = self.backbone if max(map(len, forest.paths)) <= self.together else self.alone
        with torch.inference_mode():
            scores = torch.sigmoid(self.head(decoder(forest, nodes))[:, 0].float()).cpu().numpy()[node_of_place]
        ends = np.cumsum([len(positions) for positions in read])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]
