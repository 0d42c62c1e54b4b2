"""The result in a few sentences, made from the numbers also when it is not what one hoped for, and as plain text; and
the tables beside the accuracies: errors by type, lowest step scores, learning curves, costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minos_ray.evaluation.verdicts import flat
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
from minos_ray.store.run import Manifest, Run
from minos_ray.training.results import first_at

NOT_ADJUSTED = (
    "Each interval stands for itself: they are not adjusted for how many groups and methods are compared, so of twenty "
    "one is expected to miss."
)
Shares = Mapping[str, float]


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


@dataclass(frozen=True)
class ErrorRow:
    """One type: wrong steps by split, test solutions with it as first error, and who rejects those."""

    kind: str
    steps: dict[str, int]
    shares: dict[str, float]
    first: int | None
    rejected: dict[str, float | None]
    paper: float | None


def steps_by_split(errors: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Wrong steps by type, for the splits that have any."""
    splits = errors.get("by_split", {})
    steps = {split: {kind: counts["steps"] for kind, counts in kinds.items()} for split, kinds in splits.items()}
    return {split: kinds for split, kinds in steps.items() if sum(kinds.values())}


def error_rows(errors: Mapping[str, Any], paper: Shares) -> list[ErrorRow]:
    """One row per type; none when no step has a type."""
    splits, rejected = steps_by_split(errors), errors.get("rejected", {})
    if not splits:
        return []
    kinds = dict.fromkeys(kind for table in (*splits.values(), *rejected.values()) for kind in table)
    totals = {split: sum(counts.values()) for split, counts in splits.items()}
    return [
        ErrorRow(
            kind=kind,
            steps={split: counts.get(kind, 0) for split, counts in splits.items()},
            shares={split: counts.get(kind, 0) / totals[split] for split, counts in splits.items()},
            first=next((by_kind[kind]["wrong"] for by_kind in rejected.values() if kind in by_kind), None),
            rejected={name: by_kind[kind]["share"] if kind in by_kind else None for name, by_kind in rejected.items()},
            paper=paper.get(kind),
        )
        for kind in kinds
    ]


@dataclass(frozen=True)
class TypeRow:
    """One type: how many steps of each source the critic sorts under it, their shares, and the paper's share."""

    kind: str
    steps: dict[str, int]
    shares: dict[str, float]
    paper: float


def type_rows(by_critic: Mapping[str, Any] | None, paper: Shares) -> list[TypeRow]:
    """One row per type; none when the critic was not asked to sort errors."""
    sources = {name: kinds for name, kinds in (by_critic or {}).get("by_source", {}).items() if sum(kinds.values())}
    return [
        TypeRow(
            kind,
            {name: kinds[kind] for name, kinds in sources.items()},
            {name: kinds[kind] / sum(kinds.values()) for name, kinds in sources.items()},
            paper[kind],
        )
        for kind in (paper if sources else ())
    ]


@dataclass(frozen=True)
class MinRow:
    """One verifier: solutions by the step of the minimum; `last` is the share of scored solutions with it at the end.

    `sides` counts wrong solutions by where the minimum lies against the first wrong step.
    """

    verifier: str
    by_step: list[int]
    last: float | None
    sides: dict[str, int]

    @property
    def solutions(self) -> int:
        """Solutions with scored and labelled steps."""
        return sum(self.by_step)

    @property
    def first(self) -> float:
        """The share with the minimum at the first step."""
        return self.by_step[0] / self.solutions

    def side(self, name: str) -> float | None:
        """The share of wrong solutions on one side, None without any."""
        wrong = sum(self.sides.values())
        return self.sides[name] / wrong if wrong else None


def min_rows(meta: Sequence[Mapping[str, Any]], last: Mapping[str, float]) -> list[MinRow]:
    """One row per PRM (or critic) that was judged by steps; `meta` and `last` as in evaluation.json and `last_shares`.

    The score of an ORM is the last step's, so its lowest says nothing.
    """
    judged = [m for m in meta if m["level"] == "step" and not m["verifier"].startswith("orm")]
    return [
        MinRow(m["verifier"], m["min"]["by_step"], last.get(m["verifier"]), m["min"]["first_error"])
        for m in judged
        if sum(m["min"]["by_step"])
    ]


def last_shares(run: Run, verifiers: Sequence[str]) -> dict[str, float]:
    """Per PRM: the share of solutions whose last step has the lowest score (the first of equals counts).

    Read part by part; solutions with a score that is no number are dropped. A PRM without any other has no share.
    """
    shares = {}
    for name in (name for name in verifiers if name.startswith("prm")):
        artefact, last, scored = run.artefact(f"scores/{name}"), 0, 0
        for part in artefact.part_names() if artefact.manifest() else ():
            steps = flat(artefact.read_part(part, ["step_scores"])["step_scores"])
            owners = np.repeat(np.arange(len(steps.lengths)), steps.lengths)
            has_nan = np.bincount(owners[np.isnan(steps.values)], minlength=len(steps.lengths)) > 0
            usable = steps.select((steps.lengths > 0) & ~has_nan)
            last += int((usable.first_lowest() == usable.lengths - 1).sum())
            scored += len(usable.lengths)
        if scored:
            shares[name] = last / scored
    return shares


@dataclass(frozen=True)
class Reach:
    """When `kind`-base and `kind`-minos first reach the F1 with which base ends."""

    kind: str
    f1: float
    last: int
    base: int
    minos: int | None


def reaches(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Reach]:
    """Per kind with both curves: the first steps at which base and Minos have base's final F1."""
    kinds = [n.removesuffix("-base") for n in sorted(curves) if n.endswith("-base")]
    rows = []
    for kind in (kind for kind in kinds if f"{kind}-minos" in curves):
        base = curves[f"{kind}-base"]
        goal, last = base[-1]["f1"], int(base[-1]["step"])
        rows.append(Reach(kind, goal, last, first_at(base, goal) or last, first_at(curves[f"{kind}-minos"], goal)))
    return rows


@dataclass(frozen=True)
class Cost:
    """What making one artefact took; None where its stage did not say."""

    artefact: str
    seconds: float | None
    tokens: int | None
    usd: float | None


def costs(manifests: Mapping[str, Manifest]) -> list[Cost]:
    """Seconds, tokens and money of every artefact."""
    facts = {name: {**manifest.counts, **manifest.details} for name, manifest in manifests.items()}
    return [Cost(name, d.get("seconds"), tokens(d), d.get("cost_usd")) for name, d in facts.items()]


def tokens(details: Mapping[str, Any]) -> int | None:
    """The sum of every token count that a stage wrote down."""
    counts = [v for k, v in details.items() if k.endswith("tokens") and isinstance(v, int | float)]
    return int(sum(counts)) if counts else None
