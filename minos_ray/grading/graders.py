"""Graders: what a text answers, and whether that is the gold answer. Gold comes first everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from minos_ray.config.load import resolve
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number, gold_number
from minos_ray.grading.same import same_text
from minos_ray.grading.strict import strict_latex, strict_number
from minos_ray.store.columns import Status


@dataclass(frozen=True)
class Graded:
    """The outcome for one text; `answer` is None without one, and a comparison that never ended is a `timeout`."""

    answer: str | None
    correct: bool
    status: Status


def graded(answer: str | None, same: bool | None) -> Graded:
    """The outcome of a comparison; `same` is None when it was not decided within its limits."""
    if answer is None:
        return Graded(None, False, "no_answer")
    if same is None:
        return Graded(answer, False, "timeout")
    return Graded(answer, same, "correct" if same else "wrong")


@dataclass(frozen=True)
class Grader:
    """`extract(text)` finds an answer and `same(gold, answer)` compares it.

    `slow` names a second comparison, `package.module:function`, asked when `same` says no; it may hang, so stages run
    it in processes that can be killed. Calling a grader directly runs everything right here. `gold` reads the gold
    answer in a gold cell (which may be a whole solution); None where there is none, and then nothing is right.
    `strict(gold, text)` is what published tables would have said of the text.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    slow: str | None = None
    gold: Callable[[str], str | None] = str
    strict: Callable[[str, str], bool] | None = None

    def __call__(self, gold: str, text: str) -> Graded:
        answer, expected = self.extract(text), self.gold(gold)
        if answer is None or expected is None:
            return graded(answer, False)
        same = self.same(expected, answer) or (self.slow is not None and resolve(self.slow)(expected, answer))
        return graded(answer, same)


SLOW = "minos_ray.grading.same:same_value"
gsm8k = Grader(extract_number, str.__eq__, gold=gold_number, strict=strict_number)
gsm8k_marked = Grader(partial(extract_number, fallback=False), str.__eq__, gold=gold_number, strict=strict_number)
math = Grader(extract_latex, same_text, SLOW, gold_latex, strict_latex)
math_marked = Grader(partial(extract_latex, fallback=False), same_text, SLOW, gold_latex, strict_latex)

STYLES = {"gsm8k": gsm8k, "math": math}
