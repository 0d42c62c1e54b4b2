"""Scores of published reward models, by kind: padded batches of transformers' own forward passes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from minos_ray.config.resources import Scoring
from minos_ray.config.schema import ForeignModel
from minos_ray.errors import UserError
from minos_ray.meta.formats import Reading, format_of, refusal, signs
from minos_ray.scoring.device import device_of, give_back
from minos_ray.scoring.scorer import AGGREGATIONS, scored
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

WORKER = "minos_ray.meta.foreign:ForeignScorers"
CPU_TOKENS, GPU_TOKENS = 2048, 16_384  # of one batch, padding included


class Kind(NamedTuple):
    """How a kind's architecture ends, how many labels it may have (any when empty), and transformers' class for it."""

    ending: str
    labels: tuple[int, ...]
    loader: str = ""


KINDS = {
    "sequence": Kind("ForSequenceClassification", (1,), "AutoModelForSequenceClassification"),
    "tokens": Kind("ForTokenClassification", (1, 2), "AutoModelForTokenClassification"),
    "shepherd": Kind("ForCausalLM", (), "AutoModelForCausalLM"),
    "qwen": Kind("Qwen2ForProcessRewardModel", ()),
}


class ForeignScorers:
    """The worker of `run_units` for these models; takes and gives what `scorer.Scorers` does."""

    def __init__(self, run: str, models: dict[str, ForeignModel], aggregation: str, resources: Scoring) -> None:
        self.run, self.models, self.aggregate = Run(run), models, AGGREGATIONS[aggregation]
        self.longest, self.gpus = resources.max_model_len, resources.gpus
        self.name: str | None = None
        self.scorer: ForeignScorer | None = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """One row of scores per candidate, and the counts of `ForeignScorer.score` with seconds."""
        scorer = self.scorer_of(units["artefact"][0].as_py())
        return scored(units, scorer.score, self.aggregate, scorer.by_step)

    def scorer_of(self, artefact: str) -> "ForeignScorer":
        """The model of an artefact; the one before is let go first."""
        if self.scorer is None or self.name != artefact:
            self.scorer = None
            give_back()
            model = self.models[artefact]
            self.scorer = ForeignScorer(model, locate(model, self.run), self.longest, self.gpus)
            self.name = artefact
        return self.scorer


class ForeignScorer:
    """A loaded model; `by_step` says whether it gives a score per step. Solutions have at most `longest` tokens."""

    def __init__(self, model: ForeignModel, path: str, longest: int = 10**9, gpus: int = 0) -> None:
        refuse_kind(model, path)
        self.by_step = model.kind != "sequence"
        self.device = device_of(gpus)
        self.budget = GPU_TOKENS if self.device == "cuda" else CPU_TOKENS
        self.tokenizer = load_tokenizer(path, model.trust_remote_code)
        self.encode = format_of(model, self.tokenizer)
        self.whole = load(model, path).to(self.device).eval()
        self.whole.config.use_cache = False
        pad = self.whole.config.get_text_config().pad_token_id
        self.pad: int | None = None if pad is None or pad < 0 else pad
        self.longest = min(longest, positions(self.whole))
        self.logits = reader(model.kind, self.whole, self.tokenizer)

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], dict[str, float]]:
        """Scores in 0..1 of each (question, steps): one, or one per step; none of a refused solution.

        Also counts: tokens that were computed, tokens of all solutions, refusals by reason.
        """
        readings = [self.reading(question, steps) for question, steps in solutions]
        reasons = [refusal(reading, self.longest) for reading in readings]
        fine = {row: reading for row, reading in enumerate(readings) if reasons[row] is None}
        found: list[list[float]] = [[] for _ in readings]
        stats = Counter({f"refused_{reason}": reasons.count(reason) for reason in {*reasons} - {None}})
        for batch in batches(fine, lambda: self.budget):
            stats["tokens"] += padded_size(batch, fine)
            for row, scores in zip(batch, self.halving([fine[row] for row in batch]), strict=True):
                if all(map(isfinite, scores)):
                    found[row] = scores
                else:
                    stats["refused_not_finite"] += 1
        stats["tokens_of_solutions"] += sum(len(reading.ids) for reading in fine.values())
        return found, dict(stats)

    def reading(self, question: str, steps: Sequence[str]) -> Reading:
        """What is read, and where: transformers reads a sequence classifier at the last token that is no padding."""
        reading = self.encode(question, steps)
        if self.by_step or not reading.positions:
            return reading
        places = [place for place, token in enumerate(reading.ids) if token != self.pad]
        return Reading(reading.ids, places[-1:] or [0])

    def halving(self, batch: Sequence[Reading]) -> list[list[float]]:
        """Scores of a batch; when memory runs out, of its two halves."""
        import torch

        try:
            return self.forward(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        if self.device == "cuda":
            torch.cuda.empty_cache()
        size = len(batch) * max(len(reading.ids) for reading in batch)
        self.budget = max(1, min(self.budget, size // 2))
        half = len(batch) // 2
        return self.halving(batch[:half]) + self.halving(batch[half:])

    def forward(self, batch: Sequence[Reading]) -> list[list[float]]:
        """One pass over sequences that are padded on the right."""
        import torch

        sizes = [len(reading.positions) for reading in batch]
        ids = np.full((len(batch), max(len(reading.ids) for reading in batch)), self.pad or 0)
        mask = np.zeros_like(ids)
        for row, reading in enumerate(batch):
            ids[row, : len(reading.ids)], mask[row, : len(reading.ids)] = reading.ids, 1
        places = np.concatenate([reading.positions for reading in batch])
        arrays = (ids, mask, np.repeat(np.arange(len(batch)), sizes), places)
        with torch.inference_mode():
            inputs, seen, rows, columns = (torch.from_numpy(array).to(self.device) for array in arrays)
            logits = self.logits({"input_ids": inputs, "attention_mask": seen}, (rows, columns))
            scores = probabilities(logits.float()).cpu().numpy()
        return [part.tolist() for part in np.split(scores, np.cumsum(sizes)[:-1])]


def batches(readings: Mapping[int, Reading], budget: Callable[[], int]) -> Iterator[list[int]]:
    """Rows by length, longest first, with at most `budget()` tokens in a batch, padding included (or one row)."""
    batch: list[int] = []
    for row in sorted(readings, key=lambda row: -len(readings[row].ids)):
        if batch and padded_size([*batch, row], readings) > budget():
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded_size(batch: Sequence[int], readings: Mapping[int, Reading]) -> int:
    """Tokens of a batch whose first row is the longest."""
    return len(batch) * len(readings[batch[0]].ids)


def load(model: ForeignModel, path: str) -> Any:
    """The model in the precision that it is saved in; UserError when it lacks weights."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    if model.kind == "qwen":
        from minos_ray.meta.qwen_prm import QwenRewardModel

        made, info = QwenRewardModel.from_pretrained(path, dtype="auto", output_loading_info=True)
    else:
        options = {"dtype": "auto", "trust_remote_code": model.trust_remote_code, "output_loading_info": True}
        made, info = getattr(transformers, KINDS[model.kind].loader).from_pretrained(path, **options)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"model '{model.model}': {path} holds no weights {', '.join(missing[:3])}")
    return made


def positions(whole: Any) -> int:
    """Tokens that there are positions for. Where positions are counted from a padding index on, as in RoBERTa, the
    table of `max_position_embeddings` begins with that many and one more that no token takes.
    """
    tables = [module for name, module in whole.named_modules() if name.endswith("position_embeddings")]
    unused = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    most = getattr(whole.config.get_text_config(), "max_position_embeddings", None)
    return most - max(unused, default=0) if most else 10**9


def refuse(model: ForeignModel, path: str) -> None:
    """UserError for what can be known to be wrong without loading weights: another kind, an unfit tokenizer."""
    refuse_kind(model, path)
    format_of(model, load_tokenizer(path, model.trust_remote_code))


def refuse_kind(model: ForeignModel, path: str) -> None:
    """UserError when the config beside the weights names another kind of model."""
    from transformers import AutoConfig

    kind, config = KINDS[model.kind], AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    if model.kind in ("sequence", "tokens") and hasattr(config, "step_encoding"):
        raise UserError(f"model '{model.model}' was trained by minos_ray: its kind is 'minos', not '{model.kind}'")
    fits = any(name.endswith(kind.ending) for name in config.architectures or [])
    if fits and (not kind.labels or config.num_labels in kind.labels):
        return
    labels = f" with {' or '.join(map(str, kind.labels))} labels" if kind.labels else ""
    found = f"{config.architectures} with {config.num_labels} labels"
    raise UserError(f"model '{model.model}' is {found}; kind '{model.kind}' is *{kind.ending}{labels}")


def probabilities(logits: Any) -> Any:
    """Of the class right: the sigmoid of one logit, or the second of two by softmax."""
    return logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=-1)[:, 1]


Places = tuple[Any, Any]
Logits = Callable[[dict[str, Any], Places], Any]


def reader(kind: str, whole: Any, tokenizer: Any) -> Logits:
    """What gives the logits, [places, 1 or 2] (wrong, right), at places (rows, columns) of a batch."""

    def hidden(inputs: dict[str, Any], places: Places) -> Any:
        return whole.base_model(**inputs).last_hidden_state[places]

    if kind == "tokens":
        return lambda inputs, places: whole(**inputs).logits[places]
    if kind == "shepherd":
        head, answers = whole.get_output_embeddings(), signs(tokenizer)
        return lambda inputs, places: head(hidden(inputs, places))[:, answers]
    if kind == "qwen" or hasattr(whole, "score"):
        return lambda inputs, places: whole.score(hidden(inputs, places))
    # An encoder (BERT) pools by itself, whatever place is asked for.
    return lambda inputs, places: whole(**inputs).logits[places[0]]
