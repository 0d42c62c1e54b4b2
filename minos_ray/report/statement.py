"""The result in a few sentences, made from the numbers: also when it is not what one hoped for."""

from collections.abc import Mapping, Sequence
from typing import Any

from minos_ray.report.results import VOTE, Difference, Row, best, first_upper, gains, gap_name, headline, rows


def percent(share: float) -> str:
    """`71.7 %`."""
    return f"{100 * share:.1f} %"


def signed(share: float) -> str:
    """`+8.4`; what rounds to nothing is `0.0`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text


def interval(low: float, high: float) -> str:
    """`[2.1, 14.6]`."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def points(d: Difference) -> str:
    """`+8.4 points [2.1, 14.6]`, and whether that tells anything."""
    doubt = "" if d.sign else " (the interval includes zero)"
    return f"{signed(d.value)} points {interval(d.low, d.high)}{doubt}"


def state(evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences: the best method against the vote, best-of-n against the vote, Minos against base."""
    found = rows(evaluation)
    vote = next((r for r in found if (r.method, r.verifier) == VOTE), None)
    sentences = [against_vote(best(found), vote), best_of_n(found, vote), minos_gain(gains(evaluation))]
    return [s for s in sentences if s] or [f"Nothing to compare at n = {headline(evaluation)}."]


def value(r: Row) -> str:
    """`71.7 % [65.0, 78.3]`."""
    return f"{percent(r.accuracy)} {interval(r.low, r.high)}"


def lead_of(r: Row, vote: Row) -> str:
    """The difference to the vote, with its paired interval where there is one."""
    return points(r.lead) if r.lead else f"{signed(r.accuracy - vote.accuracy)} points (no paired interval)"


def against_vote(top: Row | None, vote: Row | None) -> str:
    """The best verifier-based method beside self-consistency."""
    if top is None or vote is None:
        alone = top or vote
        return f"Only {alone.how} was evaluated at n = {alone.n}: {value(alone)}." if alone else ""
    gap, beside = top.accuracy - vote.accuracy, f"{top.how} {value(top)}, self-consistency {value(vote)}"
    if gap > 1e-9:
        return f"Best at n = {top.n}: {beside}: {lead_of(top, vote)}."
    if gap > -1e-9:
        return f"No verifier beats the vote at n = {top.n}; the best only equals it: {beside}."
    return f"No verifier beats the vote at n = {top.n}; the closest: {beside}: {lead_of(top, vote)}."


def best_of_n(found: Sequence[Row], vote: Row | None) -> str:
    """The best best-of-n beside the vote, unless it has just been named as the best of all."""
    alone = best([r for r in found if r.method == "best-of-n"])
    if alone is None or vote is None or alone == best(found):
        return ""
    lead = f"{percent(alone.accuracy)}, {lead_of(alone, vote)}"
    return f"{first_upper(alone.how)}, without a vote, {verb(alone, vote)} self-consistency: {lead}."


def verb(r: Row, vote: Row) -> str:
    """What may be said: `beats` only where the paired interval excludes zero."""
    gap = r.accuracy - vote.accuracy
    if gap > 1e-9:
        return "beats" if r.lead and r.lead.sign > 0 else "is ahead of"
    return "equals" if gap > -1e-9 else "does not beat"


def minos_gain(found: Sequence[Difference]) -> str:
    """Whether starting from the critic helped, and whether the data can tell."""
    if not found:
        return ""
    up, down = [d for d in found if d.sign > 0], [d for d in found if d.sign < 0]
    if not up and not down:
        ends = sorted({signed(min(d.value for d in found)), signed(max(d.value for d in found))}, key=float)
        many = f"{len(found)} comparison{'s' if len(found) > 1 else ''}"
        return f"Minos minus base: no interval excludes zero ({many}, {' to '.join(ends)} points)."
    told = [f"{len(side)} {word} zero" for side, word in ((up, "above"), (down, "below")) if side]
    rest = len(found) - len(up) - len(down)
    told += [f"{rest} not told apart"] if rest else []
    named = "; ".join(f"{gap_name(d)} {signed(d.value)} {interval(d.low, d.high)}" for d in (*up, *down))
    return f"Minos minus base: of {len(found)} comparisons {', '.join(told)} ({named})."
