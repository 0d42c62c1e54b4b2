"""Verifiers that score, in the engine of transformers, which computes every shared prefix once, or of vLLM; and the
actor that has one of them loaded.

An ORM is a `*ForSequenceClassification` read at the last step's end, a PRM a `*ForTokenClassification` read at every
step's end; so is an ORM that was trained at every token (config key `orm_positions`). Of families that have only one
of the two classes both kinds are saved as that one (config key `verifier_kind`). A score is the sigmoid of the raw
logit, in the precision that the model is saved in.

vLLM's pooling runner gives raw logits; equal solutions are scored once. An ORM runs as `classify` (prompts in order, so
that the prefix cache holds the question), a model that is read at every step as `token_classify`, for which vLLM
computes every token: it does not read its prefix cache there.
"""

import ctypes
import gc
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from minos_ray.candidates.engine import (
    arguments,
    dead_engine,
    die,
    import_vllm,
    kill_engine_with_parent,
    shut_down,
)
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Aggregation, Model
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store import columns
from minos_ray.store.model_files import LOADING, load_tokenizer, locate
from minos_ray.store.run import Run

if TYPE_CHECKING:
    from minos_ray.scoring.forest import Forest

KINDS = {"ForSequenceClassification": "orm", "ForTokenClassification": "prm"}
REDUCTIONS: dict[Aggregation, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "min": lambda scores, starts, lengths: np.minimum.reduceat(scores, starts),
    "product": lambda scores, starts, lengths: np.multiply.reduceat(scores, starts),
    "last": lambda scores, starts, lengths: scores[starts + lengths - 1],
    "mean": lambda scores, starts, lengths: np.add.reduceat(scores, starts) / lengths,
}
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Score 0 means that a solution was rejected, and a sigmoid in single precision can be 0.
LOWEST_SCORE = 1e-30
CPU_TOKENS, GPU_TOKENS = 4096, 16_384  # nodes of one forest: with fewer, questions are computed again more often


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
        self.layout = encoding.layout_of(getattr(self.config, "step_encoding", None), self.tokenizer, model)
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(positions or max_length, max_length)

    @abstractmethod
    def compute(self, sequences: list[list[int]], read: list[list[int]]) -> tuple[list[list[float]], int]:
        """Scores of each sequence of token ids at the positions `read`, and the number of tokens that were computed."""

    @abstractmethod
    def close(self) -> None:
        """Frees all that the model holds, before another one is loaded; it scores nothing after that."""

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], dict[str, float]]:
        """Scores of each (question, steps): one for each step, or only the last one's; none of a rejected solution.

        Also counts: tokens that were computed, tokens of all solutions, rejected solutions by reason.
        """
        return self.score_encoded(encoding.encode_solutions(self.tokenizer, solutions, self.layout))

    def score_encoded(self, encoded: Sequence[encoding.Encoded]) -> tuple[list[list[float]], dict[str, float]]:
        """`score` of solutions that are tokenised already."""
        reasons = [encoding.refusal(solution, self.max_length) for solution in encoded]
        stats = Counter({f"refused_{reason}": reasons.count(reason) for reason in {*reasons} - {None}})
        rows = [row for row, reason in enumerate(reasons) if reason is None]
        sequences = [encoded[row].ids for row in rows]
        read = [encoded[row].positions if self.every_step else encoded[row].positions[-1:] for row in rows]
        computed, stats["tokens"] = self.compute(sequences, read) if rows else ([], 0)
        stats["tokens_of_solutions"] = sum(map(len, sequences))
        scores: list[list[float]] = [[] for _ in encoded]
        for row, values in zip(rows, computed, strict=True):
            if all(map(isfinite, values)):
                scores[row] = values
            else:
                stats["refused_not_finite"] += 1
        return scores, dict(stats)


def kind_of(config: Any, model: str) -> str:
    """`orm` or `prm`, by the architecture that the model was saved with, unless its config names the kind.

    UserError when the model is no verifier.
    """
    for architecture in config.architectures or []:
        for ending, kind in KINDS.items():
            if architecture.endswith(ending) and config.num_labels == 1:
                return getattr(config, "verifier_kind", None) or kind
    expected = " or ".join(f"*{ending}" for ending in KINDS)
    raise UserError(f"model '{model}' is {config.architectures}; a verifier is {expected} with one label")


def aggregate(step_scores: np.ndarray, lengths: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """[solutions]: the step scores of each as one score; NaN without any.

    `step_scores` [steps] are those of all solutions one after the other, `lengths` [solutions] the number of each.
    """
    scores = np.full(len(lengths), np.nan)
    scored = lengths > 0
    if scored.any():
        starts = (np.cumsum(lengths) - lengths)[scored]
        scores[scored] = REDUCTIONS[aggregation](step_scores.astype(np.float64), starts, lengths[scored])
    return scores


def device_of(gpus: float) -> str:
    """The device of an actor with that many GPUs: `cuda` or `cpu`; UserError when torch sees no GPU."""
    import torch

    return device(gpus, torch.cuda.is_available())


def device(gpus: float, available: bool) -> str:
    """`cuda` with GPUs, else `cpu`; UserError when none is available."""
    if gpus and not available:
        raise UserError(
            f"resources.score.gpus = {gpus:g}, but torch sees no GPU here (a build for CPUs, or no driver); "
            "set resources.score.gpus: 0 or install torch for CUDA"
        )
    # `cpu` without GPUs even where the machine has some: Ray does not hide them, and they belong to other actors.
    return "cuda" if gpus else "cpu"


def keep_freed_memory() -> None:
    """Makes glibc keep what the process frees, for its next allocation, instead of handing it back to the system.

    A pass frees the buffers of each layer, and to get them back page by page took a fifth of the CPU time of scoring
    (`benchmarks/LOG.md`). The process keeps what it needed at its peak, no more. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        # Before 2.35 glibc takes 32 MiB at most; with no threshold set, it would now map every buffer of 128 KiB anew.
        if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def free_memory() -> None:
    """Frees the memory of models without references: cycles keep them, and torch caches what it has allocated."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Pooling(Verifier):
    """A verifier in vLLM; with GPUs, `resources.gpus` is the tensor-parallel size."""

    def __init__(self, model: str, trust_remote_code: bool, resources: Scoring) -> None:
        super().__init__(model, trust_remote_code, resources.max_model_len)
        import_vllm(resources)
        from vllm import LLM, PoolingParams
        from vllm.config import PoolerConfig

        # An ORM with a logit at every token (a calibrated one) is read at the last by `classify`, too.
        self.task: Literal["token_classify", "classify"] = "token_classify" if self.every_step else "classify"
        self.raw = PoolingParams(use_activation=False)
        # The precision of the saved model: vLLM's `auto` would turn float32 into half precision.
        saved = str(self.config.dtype or "float32").removeprefix("torch.")
        dtype = saved if resources.dtype == "auto" else resources.dtype
        fitted = resources.model_copy(update={"max_model_len": self.max_length, "dtype": dtype})
        settings = arguments(model, Model(model=model, trust_remote_code=trust_remote_code), fitted)
        self.llm = LLM(model, runner="pooling", pooler_config=PoolerConfig(task=self.task), **settings)
        self.guards = kill_engine_with_parent(self.llm)

    def close(self) -> None:
        """Shuts the engine down: vLLM keeps it, and its GPU memory, after its `LLM` is deleted."""
        shut_down(self.llm, self.guards)
        del self.llm
        free_memory()

    def compute(self, sequences: list[list[int]], read: list[list[int]]) -> tuple[list[list[float]], int]:
        """Every distinct sequence once, those with a shared prefix after one another."""
        distinct = sorted({tuple(ids) for ids in sequences})
        try:
            outputs = self.outputs([{"prompt_token_ids": list(ids)} for ids in distinct])
        except dead_engine() as error:
            die(error)
        # The sigmoid in double precision, without overflow.
        logits = (np.clip(self.logits(output).astype(np.float64), -80, 80) for output in outputs)
        scores = {ids: 1 / (1 + np.exp(-values)) for ids, values in zip(distinct, logits, strict=True)}
        tokens = sum(len(ids) - (output.num_cached_tokens or 0) for ids, output in zip(distinct, outputs, strict=True))
        positions = read if self.task == "token_classify" else [[0]] * len(read)
        return [scores[tuple(ids)][places].tolist() for ids, places in zip(sequences, positions, strict=True)], tokens

    def outputs(self, prompts: list[Any]) -> list[Any]:
        """vLLM's outputs, in order."""
        if self.task == "classify":
            return self.llm.classify(prompts, pooling_params=self.raw, use_tqdm=False)
        return self.llm.encode(prompts, pooling_task=self.task, pooling_params=self.raw, use_tqdm=False)

    def logits(self, output: Any) -> np.ndarray:
        """Raw logits: [1] of `classify`, else [tokens]."""
        if self.task == "classify":
            return np.asarray(output.outputs.probs, np.float32)
        return output.outputs.data[:, 0].float().cpu().numpy()


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
        return Pooling(path, trust_remote_code, resources)
    return Scorer(path, trust_remote_code, resources)


class Scorer(Verifier):
    """A verifier in transformers. `budget` bounds the nodes of one pass; it shrinks when memory runs out."""

    def __init__(self, model: str, trust_remote_code: bool = False, resources: Scoring | None = None) -> None:
        from transformers.utils import logging

        from minos_ray.scoring.forest import Masked, backbone_of, longest_shared
        from minos_ray.training.base import quoted, saved_class, scalar_head

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
        tokens = self.fill(sequences, short, read, scores)
        alone = [member for member in range(len(sequences)) if member not in scores]
        # A sequence that is not finite beside others may be finite alone: masked values are multiplied by 0, and
        # 0 x inf is NaN.
        alone += [member for member in short if not np.isfinite(scores[member]).all()]
        tokens += sum(self.fill(sequences, [member], read, scores) for member in alone)
        return [scores[member] for member in range(len(sequences))], tokens

    def fill(
        self, sequences: list[list[int]], members: list[int], read: list[list[int]], scores: dict[int, list[float]]
    ) -> int:
        """Puts the scores of these members into `scores`; returns the nodes of their forests.

        When memory runs out for a forest it is computed in two halves.
        """
        import torch

        from minos_ray.scoring.forest import forests

        nodes = 0
        for forest in forests(sequences, members, lambda: self.budget):
            nodes += len(forest.ids)
            try:
                scores.update(zip(forest.members, self.forward(forest, read), strict=True))
                continue
            except torch.OutOfMemoryError:
                if len(forest.members) == 1:
                    raise
            if self.device == "cuda":  # after the error, whose frames keep the memory of the pass
                torch.cuda.empty_cache()
            self.budget = max(1, min(self.budget, len(forest.ids)) // 2)
            self.fill(sequences, forest.members, read, scores)
        return nodes

    def forward(self, forest: "Forest", read: list[list[int]]) -> list[list[float]]:
        """Sigmoid of the logit at the positions `read` of each sequence in the forest; each node is read once."""
        import torch

        read = [read[member] for member in forest.members]
        places = np.concatenate([path[positions] for path, positions in zip(forest.paths, read, strict=True)])
        nodes, node_of_place = np.unique(places, return_inverse=True)
        decoder = self.backbone if max(map(len, forest.paths)) <= self.together else self.alone
        with torch.inference_mode():
            scores = torch.sigmoid(self.head(decoder(forest, nodes))[:, 0].float()).cpu().numpy()[node_of_place]
        ends = np.cumsum([len(positions) for positions in read])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]
