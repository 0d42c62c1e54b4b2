"""When to stop because nothing usable comes back, before more is spent on it, and which key would help."""

from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import Literal, NamedTuple

from minos_ray.config.schema import Critique
from minos_ray.observe.failure import too_many_failed

BAD_IN_A_ROW = 16
"""So many answers of which none can be used stop the stage."""
FEW_AT_FIRST, DOUBTS_IN_A_ROW = 3, 5
"""So many refusals that look as if they were meant for every request: when nothing was answered yet, and after that."""

MEANING = {
    "bad_request": "every request is refused",
    "bad_json": "no answer is JSON of the given schema; set critique.structured=false",
    "bad_reply": "no reply is a chat completion; see critique.base_url",
    "refused": "every answer is refused (content filter); see {prompt}",
    "truncated": "answers are cut off at critique.max_tokens = {max_tokens}; raise critique.max_tokens (a model that "
    "thinks before it writes needs several thousand), or set critique.reasoning_effort",
    "empty": "answers hold no text; a model that thinks may have used up critique.max_tokens = {max_tokens}: raise it, "
    "or set critique.reasoning_effort",
    **dict.fromkeys(("unreadable_line", "unknown_type", "wrong_steps"), "no answer could be read; see {errors}"),
}
FORM = "no answer has the form of a critique; see {prompt}, or set critique.structured=true"

Kind = Literal["user", "budget", "gone"]


class Stop(NamedTuple):
    """Why nothing more is asked for; `kind` decides on the exception."""

    kind: Kind
    message: str


def meaning(section: Critique, statuses: Counter[str]) -> str:
    """What the most frequent of these statuses means, and which key would help."""
    [(status, _)] = statuses.most_common(1)
    keys = {"prompt": f"critique.prompt = {section.prompt}", "errors": "error_analysis.prompt"}
    return MEANING.get(status, FORM).format(max_tokens=section.max_tokens, **keys)


class Trouble:
    """Counts how requests end, among `known` ones of earlier runs too, and says when to stop.

    A status is what a reader made of an answer (`ok`: it can be used), or the outcome of a row without one.
    """

    def __init__(self, section: Critique, total: int, known: Mapping[str, int]) -> None:
        self.section, self.total = section, total
        self.known = Counter(known)
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.doubts = 0

    def attempt(self, error: str, told: str) -> Stop | None:
        """A request came to nothing, whether it will be sent again or is set aside; `error` is its short name."""
        self.errors[error] += 1
        if error == "bad_reply" and not self._answers() and self.errors[error] >= BAD_IN_A_ROW:
            return Stop("user", f"{self._where()}: {MEANING['bad_reply']}: {told}")
        return None

    def ended(self, status: str, told: str, doubt: Stop | None, in_flight: int) -> Stop | None:
        """The last attempt of a row ended so. `doubt` is a reason to stop when others end like it.

        A refusal comes at once, an answer takes its time: what is in flight is waited for before such a stop.
        """
        self.statuses[status] += 1
        self.doubts = self.doubts + bool(doubt) if status in ("bad_request", "failed") else 0
        if doubt and self.doubts >= self._doubts_to_stop() and not in_flight:
            return doubt
        return self.useless(told) or self._failing(told)

    def room(self) -> float:
        """How many requests may be in flight: after a refusal only as many as it takes to be sure."""
        return max(1, self._doubts_to_stop() - self.doubts) if self.doubts else inf

    def _doubts_to_stop(self) -> int:
        return min(DOUBTS_IN_A_ROW if self._answers() else FEW_AT_FIRST, self.total)

    def useless(self, told: str) -> Stop | None:
        """When none of the first answers can be used. Where these are all, the stage itself says what they are."""
        seen = self.known + self.statuses
        failed, useful = seen.pop("failed", 0), seen.pop("ok", 0)
        many, refused = seen.total(), any(seen.total() == seen[kind] for kind in ("bad_request", "bad_json"))
        if useful or many < min(BAD_IN_A_ROW, self.total) or (many + failed >= self.total and not refused):
            return None
        none = f"none of {many} answers can be used ({dict(seen.most_common())}): {meaning(self.section, seen)}"
        return Stop("user", f"{self._where()}: {none}{f': {told}' if told else ''}")

    def _failing(self, told: str) -> Stop | None:
        """When more failed than a run may lose."""
        failed = self.statuses["failed"]
        if too_many_failed(failed, self.total):
            return Stop("gone", f"critique: {failed} requests failed after all retries ({told}); run again to go on")
        return None

    def _answers(self) -> int:
        seen = self.known + self.statuses
        return seen.total() - seen["failed"] - seen["bad_request"]

    def _where(self) -> str:
        return f"critique.model = '{self.section.model}' at critique.base_url = '{self.section.base_url}'"
