"""Soft verdicts of the critic: how likely it was to write `True`, from the tokens with which it wrote its verdicts.

P(True) = p("True") / (p("True") + p("False")) at the token of the final verdict, after the critique that leads to it
(GenRM, arXiv:2408.15240, equation 6, there with Yes and No), and likewise of `correct` and `incorrect` for each step.
Log-probabilities are those of the model itself, before any temperature.
"""

import math
import re
from typing import Any, NamedTuple

from minos_ray.candidates.engine import Text
from minos_ray.errors import UserError
from minos_ray.steps.critique_text import Parsed
from minos_ray.steps.encoding import token_ids

STEP = re.compile(r"This step is (correct|incorrect)\b")
FINAL = re.compile(r"The final answer is (True|False)\b")


class Wording(NamedTuple):
    """The tokens that decide: the first ones in which both wordings of a verdict differ, of a good and of a bad one."""

    step: tuple[int, int]
    final: tuple[int, int]

    @property
    def ids(self) -> list[int]:
        """All of them, each once, for vLLM's `logprob_token_ids`."""
        return list(dict.fromkeys([*self.step, *self.final]))


def wording_of(tokenizer: Any) -> Wording:
    """The tokens of our own critiques' verdicts; UserError where the tokenizer cannot say which text each
    token stands for."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"score.judge.soft: needs a fast tokenizer, and {type(tokenizer).__name__} is none; set it to false"
        )
    texts = [
        "This step is correct.",
        "This step is incorrect.",
        "The final answer is True.",
        "The final answer is False.",
    ]
    good, bad, true, false = token_ids(tokenizer, texts)
    return Wording(first_difference(good, bad), first_difference(true, false))


def first_difference(a: list[int], b: list[int]) -> tuple[int, int]:
    """The first pair of differing tokens."""
    return next((x, y) for x, y in zip(a, b, strict=False) if x != y)


def soft_verdicts(tokenizer: Any, wording: Wording, text: Text, critique: Parsed) -> tuple[float, list[float]]:
    """P(True) of the final verdict, and P(correct) of each step, the answer line last, whose verdict is the final one.

    `critique` is what the parser reads in the text, and readable. A verdict that is worded in other tokens counts as
    certain: 1 or 0.
    """
    certain = [float(verdict) for verdict in critique.step_verdicts]
    steps, finals = list(STEP.finditer(text.text)), list(FINAL.finditer(text.text))
    if text.logprobs is None or len(finals) != 1 or len(steps) not in (len(certain) - 1, len(certain)):
        return certain[-1], certain
    ends = token_ends(tokenizer, text)
    soft = [
        probability(text, ends, match.start(1), wording.step, verdict)
        for match, verdict in zip(steps, certain[:-1], strict=False)
    ]
    final = probability(text, ends, finals[0].start(1), wording.final, certain[-1])
    return final, [*soft, final]


def probability(text: Text, ends: list[int], start: int, pair: tuple[int, int], verdict: float) -> float:
    """The probability of the good one of two tokens, where the word that begins at `start` was written."""
    place = next((place for place, end in enumerate(ends) if end > start), None)
    if place is None or text.ids[place] not in pair:
        return verdict
    good, bad = (text.logprobs[place][token].logprob for token in pair)
    return 1 / (1 + math.exp(min(bad - good, 700.0)))


def token_ends(tokenizer: Any, text: Text) -> list[int]:
    """[tokens]: where the text of each generated token ends, in characters of the whole text.

    Counted from the end of the text: some tokenizers drop a space before its first word. Empty where the tokens do
    not spell the text.
    """
    from tokenizers.decoders import DecodeStream

    stream, ends, spelt = DecodeStream(skip_special_tokens=True), [], ""
    for token in text.ids:
        spelt += stream.step(tokenizer.backend_tokenizer, token) or ""
        ends.append(len(spelt))
    shift = len(text.text) - len(spelt)
    return [end + shift for end in ends] if text.text.endswith(spelt) else []
