"""The one step encoding: text to token ids and the position of each step's last token.

Every piece is tokenised on its own and the token lists are concatenated, so positions are known by construction.
A verifier's input is a prefix of the critic's input. Used by training, scoring and evaluation alike.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from minos_ray.graph.specs import VERSIONS

NAME = "question-answer-lines"
VERSION = VERSIONS["step_encoding"]
CRITIQUE = "Critique:\n"

# Position of a step whose text gives no token at all; `refusal` names it.
NO_TOKEN = -1


class Encoded(NamedTuple):
    """Token ids of a solution, the index of each step's last token, and that of the first step's first token."""

    ids: list[int]
    positions: list[int]
    first: int


def question_text(question: str) -> str:
    """What comes before the first step; also the plain prompt of a generator."""
    return f"Question: {question}\nAnswer:\n"


def step_text(step: str) -> str:
    """A step is a line."""
    return f"{step}\n"


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """BOS, if the tokenizer has one, and the question."""
    text = question_text(question)
    return bos(tokenizer) + pieces(tokenizer, [text])[text]


def encode_solution(tokenizer: Any, question: str, steps: Sequence[str]) -> Encoded:
    """The input of a verifier: an ORM is read at the last position, a PRM at every position."""
    return encode_solutions(tokenizer, [(question, steps)])[0]


def encode_solutions(tokenizer: Any, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[Encoded]:
    """`encode_solution` of many (question, steps) at once, which is many times faster."""
    texts = chain.from_iterable([question_text(q), *map(step_text, steps)] for q, steps in solutions)
    ids_of = pieces(tokenizer, texts)
    start = bos(tokenizer)
    return [join(start + ids_of[question_text(q)], [ids_of[step_text(s)] for s in steps]) for q, steps in solutions]


def critic_prompt_ids(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
    """The solution, then the line after which the critic writes."""
    return encode_solution(tokenizer, question, steps).ids + pieces(tokenizer, [CRITIQUE])[CRITIQUE]


def encode_critiques(tokenizer: Any, rows: Sequence[tuple[str, Sequence[str], str]]) -> list[tuple[list[int], int]]:
    """Of each (question, steps, critique) the critic's sequence with EOS, and the index of the first trained token."""
    ids_of = pieces(tokenizer, [CRITIQUE, *(critique for _, _, critique in rows)])
    encoded = []
    for solution, (_, _, critique) in zip(encode_solutions(tokenizer, [r[:2] for r in rows]), rows, strict=True):
        prompt = solution.ids + ids_of[CRITIQUE]
        encoded.append(([*prompt, *ids_of[critique], tokenizer.eos_token_id], len(prompt)))
    return encoded


def bos(tokenizer: Any) -> list[int]:
    """The BOS token, or nothing."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def pieces(tokenizer: Any, texts: Iterable[str]) -> dict[str, list[int]]:
    """Token ids of each distinct text on its own."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, token_ids(tokenizer, distinct), strict=True))


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, never a special token: one that a text spells out is plain text.

    Some tokenizers (Unigram) find special tokens as words: in texts with such ones their names are cut in two.
    """
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    token_lists = plain_ids(tokenizer, texts)
    if not special.isdisjoint(chain.from_iterable(token_lists)):
        names = sorted({*tokenizer.all_special_tokens} - {tokenizer.unk_token})
        cuts = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
        for place, text in enumerate(texts):
            if not special.isdisjoint(token_lists[place]):
                token_lists[place] = list(chain.from_iterable(plain_ids(tokenizer, re.split(cuts, text))))
    return token_lists


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; a special token is not looked for."""
    # Mistral's own tokenizer never does, and refuses to be told so.
    options = {} if type(tokenizer).__name__ == "MistralCommonBackend" else {"split_special_tokens": True}
    return tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]


def join(prompt: list[int], steps: Iterable[list[int]]) -> Encoded:
    """Prompt and steps as one list, with the position of each step's end."""
    ids, positions = list(prompt), []
    for step in steps:
        ids.extend(step)
        positions.append(len(ids) - 1 if step else NO_TOKEN)
    return Encoded(ids, positions, len(prompt))


def refusal(encoded: Encoded, max_length: int) -> str | None:
    """Why a solution cannot be used, None when it fits. Nothing is ever cut off: the caller counts the reason."""
    if not encoded.positions:
        return "no_steps"
    if NO_TOKEN in encoded.positions:
        return "step_without_tokens"
    return "over_max_length" if len(encoded.ids) > max_length else None
