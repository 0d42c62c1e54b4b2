"""What published reward models read: question and steps as token ids, and the positions at which they are read.

Positions are known by construction. Where a format tokenises text as a whole, the separators' places in the text are
known and the tokenizer says which token covers them; a token id is never searched for. Nothing stands behind the last
position: these models read from left to right.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from minos_ray.config.schema import ForeignModel
from minos_ray.errors import UserError

# Raise it when what a model reads changes: scores made with the old one are made anew.
VERSION = 2
TAG, GOOD, BAD = "ки", "+", "-"
NUMBERED = re.compile(r"step\s*\d+", re.IGNORECASE)
QWEN_SEPARATOR = "<extra_0>"
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


class Reading(NamedTuple):
    """Token ids of a solution, and where the model is read: once (an ORM) or at the end of each step."""

    ids: list[int]
    positions: list[int]


Encode = Callable[[str, Sequence[str]], Reading]


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
    """The text tokenised as a whole, read at the token that covers the last character of each piece."""
    text, ends = before, []
    for number, piece in enumerate(pieces):
        text += between * bool(number) + piece
        ends.append(len(text))
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return Reading(made["input_ids"], covering(made["offset_mapping"], ends))


def covering(offsets: Iterable[tuple[int, int]], ends: Sequence[int]) -> list[int]:
    """The last token that begins before each end; tokens without text (BOS) cover nothing."""
    spans = [(start, place) for place, (start, end) in enumerate(offsets) if end > start]
    starts = [start for start, _ in spans]
    return [spans[bisect_left(starts, end) - 1][1] for end in ends]


FORMATS = {"sequence": sequence, "tokens": tokens, "shepherd": shepherd, "qwen": qwen}


def format_of(model: ForeignModel, tokenizer: Any) -> Encode:
    """How solutions are written for a model; UserError when its tokenizer cannot do that."""
    where = f"the tokenizer of model '{model.model}'"
    if model.kind in ("shepherd", "qwen") and not tokenizer.is_fast:
        raise UserError(f"{where} does not say where its tokens are in the text; a tokenizer.json is needed")
    if model.kind == "tokens":
        if not tokenizer(model.separator, add_special_tokens=False)["input_ids"]:
            raise UserError(f"{where} has no token for separator {model.separator!r}; set the one of its training")
        return partial(tokens, tokenizer, separator=model.separator)
    if model.kind == "qwen" and (not tokenizer.chat_template or len(ids_of(tokenizer, QWEN_SEPARATOR)) != 1):
        raise UserError(f"{where} has no chat template or no token {QWEN_SEPARATOR}; kind 'qwen' needs both")
    return partial(FORMATS[model.kind], tokenizer)


def signs(tokenizer: Any) -> list[int]:
    """Ids of - and + (wrong, right) as tokens that follow a space, where Math-Shepherd's labels stand."""
    return [ids_of(tokenizer, f"x {sign}")[-1] for sign in (BAD, GOOD)]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text alone."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def refusal(reading: Reading, longest: int) -> str | None:
    """Why a solution cannot be scored, None when it can. Nothing is ever cut off."""
    if not reading.positions:
        return "no_steps"
    return "over_max_length" if len(reading.ids) > longest else None
