"""Published reward models: what each kind reads, and its scores from padded batches of transformers' forward passes.

Positions at which a model is read are known by construction. Where a format tokenises text as a whole, the separators'
places in the text are known and the tokenizer says which token covers them; a token id is never searched for. Nothing
stands behind the last position: these models read from left to right.

Raise `command.FORMATS_VERSION` when what a model reads changes.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from minos_ray.config.schema import ForeignModel
from minos_ray.errors import UserError
from minos_ray.scoring.verifier import Scorers, device_of, free_memory
from minos_ray.store.model_files import LOADING, load_tokenizer

CPU_TOKENS, GPU_TOKENS = 2048, 16_384  # of one batch, padding included
TAG, GOOD, BAD = "ки", "+", "-"
NUMBERED = re.compile(r"step\s*\d+", re.IGNORECASE)
QWEN_SEPARATOR = "<extra_0>"
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


class Reading(NamedTuple):
    """Token ids of a solution, and where the model is read: once (an ORM) or at the end of each step."""

    ids: list[int]
    positions: list[int]


Places = tuple[Any, Any]  # tensors [places]: rows and columns of a batch
Logits = Callable[[dict[str, Any], Places], Any]


class ForeignScorers(Scorers):
    """The worker of `run_units` for these models."""

    def loaded(self, model: ForeignModel, path: str) -> "ForeignScorer":
        """The model at `path`."""
        return ForeignScorer(model, path, self.resources.max_model_len, self.resources.gpus)


class ForeignScorer:
    """A loaded model; `every_step` when there is a score for each step. Solutions have at most `longest` tokens."""

    def __init__(self, model: ForeignModel, path: str, longest: int = 10**9, gpus: float = 0) -> None:
        check_kind(model, path)
        self.every_step = model.kind != "sequence"
        self.kind = "prm" if self.every_step else "orm"
        self.device = device_of(gpus)
        self.budget = GPU_TOKENS if self.device == "cuda" else CPU_TOKENS
        self.tokenizer = load_tokenizer(path, model.trust_remote_code)
        self.encode = format_of(model, self.tokenizer)
        self.model = load(model, path).to(self.device).eval()
        self.model.config.use_cache = False
        pad = self.model.config.get_text_config().pad_token_id
        self.pad: int | None = None if pad is None or pad < 0 else pad
        self.longest = min(longest, positions(self.model))
        self.logits = logits_of(model.kind, self.model, self.tokenizer)

    def close(self) -> None:
        """Drops the weights."""
        del self.model, self.logits
        free_memory()

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], dict[str, float]]:
        """Scores in 0..1 of each (question, steps): one, or one per step; none of a rejected solution.

        Also counts: tokens that were computed, tokens of all solutions, rejected solutions by reason.
        """
        readings = [self.reading(question, steps) for question, steps in solutions]
        reasons = [refusal(reading, self.longest) for reading in readings]
        readable = {row: reading for row, reading in enumerate(readings) if reasons[row] is None}
        scores: list[list[float]] = [[] for _ in readings]
        stats = Counter({f"refused_{reason}": reasons.count(reason) for reason in {*reasons} - {None}})
        for batch in batches(readable, lambda: self.budget):
            stats["tokens"] += padded_size(batch, readable)
            for row, values in zip(batch, self.halving([readable[row] for row in batch]), strict=True):
                if all(map(isfinite, values)):
                    scores[row] = values
                else:
                    stats["refused_not_finite"] += 1
        stats["tokens_of_solutions"] += sum(len(reading.ids) for reading in readable.values())
        return scores, dict(stats)

    def reading(self, question: str, steps: Sequence[str]) -> Reading:
        """Tokens and positions: transformers reads a sequence classifier at the last token that is not padding."""
        reading = self.encode(question, steps)
        if self.every_step or not reading.positions:
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
            inputs, attended, rows, columns = (torch.from_numpy(array).to(self.device) for array in arrays)
            logits = self.logits({"input_ids": inputs, "attention_mask": attended}, (rows, columns)).float()
            # The probability of the class right: the sigmoid of one logit, or the second of two.
            scores = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=-1)[:, 1]
            scores = scores.cpu().numpy()
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
    options = {"dtype": "auto", "output_loading_info": True}
    with LOADING:
        if model.kind == "qwen":
            loaded, info = qwen_class().from_pretrained(path, **options)
        else:
            options["trust_remote_code"] = model.trust_remote_code
            loaded, info = getattr(transformers, KINDS[model.kind].loader).from_pretrained(path, **options)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"model '{model.model}': {path} holds no weights {', '.join(missing[:3])}")
    return loaded


def qwen_class() -> Any:
    """Qwen2.5-Math-PRM as transformers' Qwen2 and a small head, so that no code comes with the weights."""
    from torch import nn
    from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

    class QwenRewardModel(Qwen2PreTrainedModel):
        """Two classes at every token (0 wrong, 1 right); its weights are named as in `Qwen2ForProcessRewardModel`."""

        _keys_to_ignore_on_load_unexpected = ["lm_head"]  # noqa: RUF012 (transformers sets it on instances, too)

        def __init__(self, config: Qwen2Config) -> None:
            super().__init__(config)
            width = config.hidden_size
            self.model = Qwen2Model(config)
            self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
            self.post_init()

    return QwenRewardModel


def positions(model: Any) -> int:
    """Number of tokens that the model has positions for."""
    # Where positions are counted from a padding index on, as in RoBERTa, the table of `max_position_embeddings` begins
    # with that many and one more that no token takes.
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    unused = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most - max(unused, default=0) if most else 10**9


def check_model(model: ForeignModel, path: str) -> None:
    """UserError for mistakes that show without loading weights: another kind, an unfit tokenizer."""
    check_kind(model, path)
    format_of(model, load_tokenizer(path, model.trust_remote_code))


def check_kind(model: ForeignModel, path: str) -> None:
    """UserError when the config beside the weights names another kind of model."""
    from transformers import AutoConfig

    kind, config = KINDS[model.kind], AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    if model.kind in ("sequence", "tokens") and hasattr(config, "step_encoding"):
        raise UserError(f"model '{model.model}' was trained by minos_ray: its kind is 'minos', not '{model.kind}'")
    matches = any(name.endswith(kind.ending) for name in config.architectures or [])
    if matches and (not kind.labels or config.num_labels in kind.labels):
        return
    labels = f" with {' or '.join(map(str, kind.labels))} labels" if kind.labels else ""
    actual = f"{config.architectures} with {config.num_labels} labels"
    raise UserError(f"model '{model.model}' is {actual}; kind '{model.kind}' is *{kind.ending}{labels}")


def logits_of(kind: str, model: Any, tokenizer: Any) -> Logits:
    """The function that computes logits [places, 1 or 2] (wrong, right) of a batch's inputs at `Places`."""

    def hidden(inputs: dict[str, Any], places: Places) -> Any:
        return model.base_model(**inputs).last_hidden_state[places]

    if kind == "tokens":
        return lambda inputs, places: model(**inputs).logits[places]
    if kind == "shepherd":
        head, answers = model.get_output_embeddings(), sign_ids(tokenizer)
        return lambda inputs, places: head(hidden(inputs, places))[:, answers]
    if kind == "qwen" or hasattr(model, "score"):
        return lambda inputs, places: model.score(hidden(inputs, places))
    # An encoder (BERT) pools by itself, so the columns are not used.
    return lambda inputs, places: model(**inputs).logits[places[0]]


def sequence(tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
    """A chat of question and solution, as the model's template writes it; without one, the two texts as two lines."""
    solution = "\n".join(steps)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(f"{question}\n{solution}")["input_ids"]
    return Reading(ids, [len(ids) - 1] if steps else [])


def tokens(tokenizer: Any, question: str, steps: Sequence[str], separator: str) -> Reading:
    """TRL's PRMTrainer (1.12, `tokenize_row`): BOS if there is one, the question, then each step and the separator.

    Each piece is tokenised on its own; a step is read at the last token of its separator.
    """
    question_ids, *step_ids = tokenizer([question, *steps], add_special_tokens=False)["input_ids"]
    ids = ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]) + question_ids
    end, positions = tokenizer(separator, add_special_tokens=False)["input_ids"], []
    for step in step_ids:
        ids = ids + step + end
        positions.append(len(ids) - 1)
    return Reading(ids, positions)


def shepherd(tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
    """Math-Shepherd (card of peiyi9979/math-shepherd-mistral-7b-prm): `QUESTION Step 1: ... ки\\nStep 2: ... ки`."""
    numbered = [s if NUMBERED.match(s) else f"Step {k}: {s}" for k, s in enumerate(map(str.strip, steps), 1)]
    return located(tokenizer, f"{question} ", [f"{step} {TAG}" for step in numbered], "\n", True)


def qwen(tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
    """Qwen2.5-Math-PRM (its card): the chat template with a system prompt, `<extra_0>` behind each step."""
    messages = [{"role": "system", "content": QWEN_SYSTEM}, {"role": "user", "content": question}]
    before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return located(tokenizer, before, [f"{step}{QWEN_SEPARATOR}" for step in steps], "", False)


def located(tokenizer: Any, before: str, pieces: Sequence[str], between: str, special: bool) -> Reading:
    """`before` and the pieces, tokenised as one text and read at the token that covers the last character of each."""
    text, ends = before, []
    for number, piece in enumerate(pieces):
        text += between * bool(number) + piece
        ends.append(len(text))
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return Reading(encoded["input_ids"], covering(encoded["offset_mapping"], ends))


def covering(offsets: Iterable[tuple[int, int]], ends: Sequence[int]) -> list[int]:
    """Index of the last token that begins before each end; tokens without text (BOS) cover nothing."""
    spans = [(start, index) for index, (start, end) in enumerate(offsets) if end > start]
    starts = [start for start, _ in spans]
    return [spans[bisect_left(starts, end) - 1][1] for end in ends]


class Kind(NamedTuple):
    """What a kind reads, the ending of its architecture, the numbers of labels that it may have (any when empty), and
    the class of transformers that loads it."""

    read: Callable[..., Reading]  # of tokenizer, question and steps
    ending: str
    labels: tuple[int, ...] = ()
    loader: str = ""


KINDS = {
    "sequence": Kind(sequence, "ForSequenceClassification", (1,), "AutoModelForSequenceClassification"),
    "tokens": Kind(tokens, "ForTokenClassification", (1, 2), "AutoModelForTokenClassification"),
    "shepherd": Kind(shepherd, "ForCausalLM", loader="AutoModelForCausalLM"),
    "qwen": Kind(qwen, "Qwen2ForProcessRewardModel"),
}


def format_of(model: ForeignModel, tokenizer: Any) -> Callable[[str, Sequence[str]], Reading]:
    """The function that encodes solutions for a model; UserError when its tokenizer cannot be used."""
    name = f"the tokenizer of model '{model.model}'"
    if model.kind in ("shepherd", "qwen") and not tokenizer.is_fast:
        raise UserError(f"{name} does not say where its tokens are in the text; a tokenizer.json is needed")
    if model.kind == "tokens":
        if not tokenizer(model.separator, add_special_tokens=False)["input_ids"]:
            raise UserError(f"{name} has no token for separator {model.separator!r}; set the one of its training")
        return partial(tokens, tokenizer, separator=model.separator)
    if model.kind == "qwen" and (not tokenizer.chat_template or len(ids_of(tokenizer, QWEN_SEPARATOR)) != 1):
        raise UserError(f"{name} has no chat template or no token {QWEN_SEPARATOR}; kind 'qwen' needs both")
    return partial(KINDS[model.kind].read, tokenizer)


def sign_ids(tokenizer: Any) -> list[int]:
    """Ids of - and + (wrong, right) as tokens that follow a space, where Math-Shepherd's labels stand."""
    return [ids_of(tokenizer, f"x {sign}")[-1] for sign in (BAD, GOOD)]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def refusal(reading: Reading, longest: int) -> str | None:
    """Why a solution cannot be scored; None when it can. Nothing is truncated."""
    if not reading.positions:
        return "no_steps"
    return "over_max_length" if len(reading.ids) > longest else None
