"""Every method for every n on the same candidates, with intervals, and paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from minos_ray.config.schema import Evaluate
from minos_ray.errors import UserError
from minos_ray.evaluation.blocks import Block
from minos_ray.evaluation.candidates import Scores
from minos_ray.evaluation.headline import NEARLY_ALL, SINGLE, headline_n
from minos_ray.evaluation.methods import AGGREGATIONS, Choice, aggregated, rankings, voters
from minos_ray.evaluation.selection import Ballot, best_of, pass_at, votes
from minos_ray.evaluation.statistics import flip_test, intervals, sign_test

TESTS = ("mcnemar", "sign-flip")


class Method(NamedTuple):
    """A way to choose an answer among n candidates."""

    name: str
    verifier: str
    n: int
    aggregation: str = ""

    @property
    def key(self) -> str:
        """The name in `paired`: `best-of-n:orm-minos`, `self-consistency`."""
        return f"{self.name}:{self.verifier}" if self.verifier else self.name


# Method -> accuracy of each problem; NaN where a problem has fewer than n candidates, and for pass@1 where it has fewer
# than those at which methods are compared.
Outcomes = dict[Method, np.ndarray]
# Scores by verifier, or by verifier and aggregation.
Named = Mapping[Any, np.ndarray]


def ns_of(sizes: np.ndarray, section: Evaluate) -> list[int]:
    """The ns asked for that some problem has candidates for; by default powers of two and N, if nearly all have N."""
    most = int(sizes.max(initial=0))
    sizes = sizes // section.groups
    largest = int(sizes.max(initial=0))
    powers = [2**k for k in range(largest.bit_length())]
    whole = [largest] if (sizes == largest).mean() >= NEARLY_ALL else []
    found = sorted({n for n in section.ns or (*powers, *whole) if 0 < n <= largest})
    if not found:
        of = f"evaluate.groups = {section.groups}, evaluate.ns = {list(section.ns)}"
        raise UserError(f"{of}: no problem has so many candidates; the largest has {most}")
    return found


def selection_of(sizes: np.ndarray, section: Evaluate) -> "Selected":
    """What problems with so many candidates are to be evaluated for."""
    ns = ns_of(sizes, section)
    return Selected(section, ns, headline_n({n: int((sizes // section.groups >= n).sum()) for n in ns}))


@dataclass
class Selected:
    """The expected accuracy of every choice on every problem, gathered block by block.

    Methods are compared at `headline`, one of the ns. `variance` is the summed Monte Carlo variance [choices, ns] of
    the votes, `by_group` the summed accuracy [choices, groups] at `headline`, `left_out` the candidates that no group
    has.
    """

    section: Evaluate
    ns: list[int]
    headline: int
    choices: list[Choice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    single: list[np.ndarray] = field(default_factory=list)
    left_out: int = 0
    variance: np.ndarray | float = 0.0
    by_group: np.ndarray | float = 0.0

    def add(self, block: Block) -> None:
        """Takes in the problems of a block; every block has the same verifiers."""
        candidates, groups = block.candidates, self.section.groups
        scores, steps = {n: s.score for n, s in block.scores.items()}, step_aggregations(block.scores)
        self.choices = self.choices or choices(scores, steps)
        values = np.full((len(self.choices), candidates.problems, len(self.ns)), np.nan)
        single, names = np.zeros(candidates.problems), np.array(candidates.names)
        for problems, rows in candidates.groups():
            single[problems] = candidates.correct[rows].mean(axis=1)
            size = rows.shape[1] // groups
            self.left_out += len(rows) * (rows.shape[1] - size * groups)
            if fits := [n for n in self.ns if n <= size]:
                dealt = rows[:, : size * groups].reshape(-1, size)
                arrays = candidates.clusters[dealt], at(scores, dealt), at(steps, dealt)
                found = chosen(*arrays, fits, self.section, names[problems])
                values[:, problems, : len(fits)] = self.mean_of_groups(found)
        self.problems += names.tolist()
        self.values.append(values)
        self.single.append(single)

    def mean_of_groups(self, found: "Chosen") -> np.ndarray:
        """[choices, problems, ns], with the sums over problems added to what was gathered."""
        grouped = found.values.reshape(len(self.choices), -1, self.section.groups, found.values.shape[2])
        self.variance = self.variance + padded(found.variance / self.section.groups**2, len(self.ns))
        if grouped.shape[3] > self.at_headline:
            self.by_group = self.by_group + grouped[..., self.at_headline].sum(axis=1)
        return grouped.mean(axis=2)

    @property
    def at_headline(self) -> int:
        """Where it stands among the ns."""
        return self.ns.index(self.headline)

    def outcomes(self) -> Outcomes:
        """Accuracy of each problem by method."""
        values = np.concatenate(self.values, axis=1)
        compared = ~np.isnan(values[0, :, self.at_headline])
        found = {
            Method(c.method, c.verifier, n, c.aggregation): values[i, :, j]
            for i, c in enumerate(self.choices)
            for j, n in enumerate(self.ns)
        }
        return {Method(SINGLE, "", 1): np.where(compared, np.concatenate(self.single), np.nan), **found}

    def errors(self) -> dict[Method, float]:
        """Monte Carlo standard error of each sampled method's accuracy: random subsets, not random problems."""
        entering = (~np.isnan(np.concatenate(self.values, axis=1))).sum(axis=1)
        error = np.sqrt(self.variance) / np.maximum(entering, 1)
        found = {}
        for i, c in enumerate(self.choices):
            of_choice = {Method(c.method, c.verifier, n, c.aggregation): error[i, j] for j, n in enumerate(self.ns)}
            found |= {method: float(value) for method, value in of_choice.items() if value > 0}
        return found


class Chosen(NamedTuple):
    """Expected accuracies [choices, rows, ns] and the summed variance [choices, ns] of those that were sampled."""

    values: np.ndarray
    variance: np.ndarray


def choices(scores: Named, steps: Named) -> list[Choice]:
    """All choices, in the order of `chosen`."""
    return [Choice("pass@n"), *rankings(scores, steps), *voters((0,), scores, steps)]


def chosen(
    clusters: np.ndarray, scores: Named, steps: Named, ns: list[int], section: Evaluate, names: np.ndarray
) -> Chosen:
    """Every choice on problems (or groups of their candidates, one below the other): arrays [rows, candidates]."""
    exact = [pass_at(clusters, ns), *(best_of(s, clusters, ns) for s in rankings(scores, steps).values())]
    asked = list(voters(clusters.shape, scores, steps).values())
    weights, tiers, means = (np.stack(column) for column in zip(*asked, strict=True))
    voted, variance = np.zeros((2, len(asked), len(clusters), len(ns)))
    for row, answers in enumerate(clusters):
        rng = np.random.default_rng([section.seed, stable(names[row // section.groups]), row % section.groups])
        ballot = Ballot(weights[:, row], tiers[:, row], means)
        voted[:, row], variance[:, row] = votes(answers, ballot, ns, section.trials, rng)
    sampled = np.concatenate([np.zeros((len(exact), len(ns))), variance.sum(axis=1)])
    return Chosen(np.concatenate([np.stack(exact), voted]), sampled)


def at(arrays: Named, rows: np.ndarray) -> Named:
    """The entries of each array."""
    return {name: values[rows] for name, values in arrays.items()}


def padded(values: np.ndarray, width: int) -> np.ndarray:
    """[choices, width]: zeros for the ns that were not reached."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def stable(name: str) -> int:
    """64 bits of a problem's id: its subsets do not depend on which problems are beside it."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def step_aggregations(scores: Mapping[str, Scores]) -> dict[tuple[str, str], np.ndarray]:
    """By PRM and aggregation: [candidates] of step scores put together."""
    found = {}
    for name, made in scores.items():
        if name.startswith("prm"):
            flat = pc.list_flatten(made.step_scores).to_numpy()
            lengths = pc.list_value_length(made.step_scores).fill_null(0).to_numpy()
            found |= {(name, how): aggregated(flat, lengths, how) for how in AGGREGATIONS}
    return found


def compare(selected: Selected) -> dict[str, Any]:
    """`n`, `methods`, `paired`, `aggregations` and `groups` of evaluation.json."""
    section, found, errors = selected.section, selected.outcomes(), selected.errors()
    pairs = paired_methods(found, selected.headline)
    columns = np.stack([*found.values(), *(found[a] - found[b] for a, b in pairs)], axis=1)
    centre, low, high = intervals(columns, section.bootstrap, section.seed)
    low = np.maximum(low, [0.0] * len(found) + [-1.0] * len(pairs))
    entries = [measured(*values) for values in zip(columns.T, centre, low, np.minimum(high, 1.0), strict=True)]
    of_method = dict(zip(found, entries[: len(found)], strict=True))
    return {
        "n": selected.headline,
        "methods": [
            {"method": m.name, "verifier": m.verifier, "n": m.n, "accuracy": mean, **rest, **sampling(m, errors)}
            for m, (mean, rest) in of_method.items()
            if not m.aggregation
        ],
        "paired": [
            {"a": a.key, "b": b.key, "n": a.n, "difference": mean, **rest, **p_value(found, a, b, selected)}
            for (a, b), (mean, rest) in zip(pairs, entries[len(found) :], strict=True)
        ],
        "aggregations": [
            {"verifier": m.verifier, "aggregation": m.aggregation, "method": m.name, "n": m.n, "accuracy": mean}
            | {**rest, **sampling(m, errors)}
            for m, (mean, rest) in of_method.items()
            if m.aggregation
        ],
        "groups": by_group(selected),
    }


def measured(column: np.ndarray, centre: float, low: float, high: float) -> tuple[float, dict[str, float | int]]:
    """The mean of a column, and its interval with the number of problems that enter."""
    return float(centre), {"ci_low": float(low), "ci_high": float(high), "problems": int((~np.isnan(column)).sum())}


def sampling(method: Method, errors: Mapping[Method, float]) -> dict[str, float]:
    """The Monte Carlo standard error `se` of a method that was sampled."""
    return {"se": errors[method]} if method in errors else {}


def by_group(selected: Selected) -> dict[str, Any]:
    """Accuracies of each group at the headline n, and their standard deviation; empty with one group."""
    if selected.section.groups == 1:
        return {}
    known = ~np.isnan(np.concatenate(selected.values, axis=1)[0])
    entering, entering_any = known[:, selected.at_headline].sum(), known.any(axis=1).sum()
    shares = np.asarray(selected.by_group) / max(1, entering)
    methods = [
        {**choice._asdict(), "accuracy": row.tolist(), "sd": float(row.std(ddof=1))}
        for choice, row in zip(selected.choices, shares, strict=True)
    ]
    left = {"left_out": selected.left_out, "too_few": int(len(selected.problems) - entering_any)}
    return {"count": selected.section.groups, "n": selected.headline, **left, "methods": methods}


def paired_methods(found: Outcomes, headline: int) -> list[tuple[Method, Method]]:
    """Minos minus base for each n, and every use of a verifier minus the plain vote at the headline n."""
    plain = [method for method in found if method.verifier and not method.aggregation]
    gains = [
        (method, method._replace(verifier=method.verifier.replace("-minos", "-base")))
        for method in plain
        if method.verifier.endswith("-minos")
    ]
    leads = [(m, Method("self-consistency", "", m.n)) for m in plain if m.n == headline]
    return [pair for pair in gains if pair[1] in found] + leads


def p_value(found: Outcomes, a: Method, b: Method, selected: Selected) -> dict[str, Any]:
    """At the headline n: McNemar's exact test where each problem has one outcome (or a tie), else a sign-flip test."""
    if a.n != selected.headline:
        return {"p_value": None}
    whole = all((2 * values[~np.isnan(values)] % 1 == 0).all() for values in (found[a], found[b]))
    gap = found[a] - found[b]
    return {"p_value": sign_test(gap) if whole else flip_test(gap, selected.section.seed), "test": TESTS[not whole]}
