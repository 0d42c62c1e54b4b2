"""The result in a few sentences, made from the numbers also when it is not what one hoped for; and as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from minos_ray.report.results import (
    VOTE,
    Difference,
    Row,
    best,
    categories,
    compared,
    first_upper,
    gains,
    gap_name,
    headline,
    rows,
)

NOT_ADJUSTED = (
    "Each interval stands for itself: they are not adjusted for how many groups and methods are compared, so of twenty "
    "one is expected to miss."
)


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


def state(evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences: the best method against the vote, best-of-n against the vote, Minos against base."""
    methods = rows(evaluation)
    vote = next((r for r in methods if (r.method, r.verifier) == VOTE), None)
    sentences = [against_vote(best(methods), vote), best_of_n(methods, vote), minos_gain(gains(evaluation))]
    return [s for s in sentences if s] or [f"Nothing to compare at n = {headline(evaluation)}."]


def value(r: Row) -> str:
    """`71.7 % [65.0, 78.3]`."""
    return f"{percent(r.accuracy)} {interval(r.low, r.high)}"


def lead_of(r: Row, vote: Row) -> str:
    """The difference to the vote, with its paired interval where there is one."""
    if r.lead is None:
        return f"{signed(r.accuracy - vote.accuracy)} points (no paired interval)"
    doubt = "" if r.lead.sign else " (the interval includes zero)"
    return f"{signed(r.lead.value)} points {interval(r.lead.low, r.lead.high)}{doubt}"


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


def best_of_n(methods: Sequence[Row], vote: Row | None) -> str:
    """The best best-of-n beside the vote, unless it has just been named as the best of all."""
    top = best([r for r in methods if r.method == "best-of-n"])
    if top is None or vote is None or top == best(methods):
        return ""
    gap = top.accuracy - vote.accuracy
    if gap > 1e-9:  # `beats` only where the paired interval excludes zero
        verb = "beats" if top.lead and top.lead.sign > 0 else "is ahead of"
    else:
        verb = "equals" if gap > -1e-9 else "does not beat"
    lead = f"{percent(top.accuracy)}, {lead_of(top, vote)}"
    return f"{first_upper(top.how)}, without a vote, {verb} self-consistency: {lead}."


def minos_gain(pairs: Sequence[Difference]) -> str:
    """Whether starting from the critic helped, and whether the data can tell."""
    if not pairs:
        return ""
    up, down = [d for d in pairs if d.sign > 0], [d for d in pairs if d.sign < 0]
    if not up and not down:
        ends = sorted({signed(min(d.value for d in pairs)), signed(max(d.value for d in pairs))}, key=float)
        number = f"{len(pairs)} comparison{'s' if len(pairs) > 1 else ''}"
        return f"Minos minus base: no interval excludes zero ({number}, {' to '.join(ends)} points)."
    counts = [f"{len(side)} {word} zero" for side, word in ((up, "above"), (down, "below")) if side]
    undecided = len(pairs) - len(up) - len(down)
    counts += [f"{undecided} not told apart"] if undecided else []
    decided = "; ".join(f"{gap_name(d)} {signed(d.value)} {interval(d.low, d.high)}" for d in (*up, *down))
    return f"Minos minus base: of {len(pairs)} comparisons {', '.join(counts)} ({decided})."


def results_table(evaluation: Mapping[str, Any]) -> str:
    """Every method at the headline n as plain text, then the sentences; what `minos demo` and `minos run` end with."""
    lines = [("method", "what is done", "problems", "accuracy", "95 % interval", "minus vote")]
    for r in rows(evaluation):
        numbers = (f"{r.problems:,}", percent(r.accuracy), interval(r.low, r.high), with_interval(r.lead))
        lines.append((r.name, r.recipe, *numbers))
    text = text_table(lines)
    title = f"{compared(evaluation)} test problems, n = {headline(evaluation)}"
    return "\n".join([title, *text, "", *state(evaluation)])


def category_tables(evaluation: Mapping[str, Any]) -> str:
    """Every method for each level, subject or the like as plain text; empty where the problems carry none."""
    texts = []
    for column, values in categories(evaluation).items():
        lines = [(column, "problems", "what is done", "accuracy", "95 % interval", "minus vote", "Minos minus base")]
        for category in values:
            value, problems = category.value, f"{category.problems:,}"
            for r in category.rows:
                numbers = (
                    percent(r.accuracy),
                    interval(r.low, r.high),
                    *map(with_interval, (r.lead, category.gain(r))),
                )
                lines.append((value, problems, r.recipe, *numbers))
                value = problems = ""
        texts.append("\n".join(text_table(lines, words=3)))
    return "\n\n".join([*texts, NOT_ADJUSTED]) if texts else ""


def with_interval(d: Difference | None) -> str:
    """`+8.4 [2.1, 14.6]`, or nothing."""
    return f"{signed(d.value)} {interval(d.low, d.high)}" if d else ""


def text_table(lines: Sequence[tuple[str, ...]], words: int = 2) -> list[str]:
    """Aligned lines, the first one a head that is underlined; the first columns hold words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:words], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(line[words:], widths[words:], strict=True)]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    return text
