"""Every method for every n on the same candidates, with intervals, and paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from minos_ray.config.schema import AGGREGATIONS, Evaluate
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Block, Scores
from minos_ray.evaluation.methods import Choice, rankings, voters
from minos_ray.evaluation.outcomes import NEARLY_ALL, SINGLE, Method, Outcomes, headline_n, paired_methods
from minos_ray.evaluation.selection import best_of, pass_at, votes
from minos_ray.evaluation.statistics import Measured, flip_test, sign_test
from minos_ray.scoring.verifier import aggregate

# Arrays of scores by verifier, or by (verifier, aggregation).
ByName = Mapping[Any, np.ndarray]


def ns_of(sizes: np.ndarray, section: Evaluate) -> list[int]:
    """The ns of the config that some problem has candidates for; by default powers of two, and N if nearly all have it.

    `sizes` [problems] are numbers of candidates. UserError when no problem has enough for any n.
    """
    most = int(sizes.max(initial=0))
    sizes = sizes // section.groups
    largest = int(sizes.max(initial=0))
    powers = [2**k for k in range(largest.bit_length())]
    full = [largest] if (sizes == largest).mean() >= NEARLY_ALL else []
    ns = sorted({n for n in section.ns or (*powers, *full) if 0 < n <= largest})
    if not ns:
        keys = f"evaluate.groups = {section.groups}, evaluate.ns = {list(section.ns)}"
        raise UserError(f"{keys}: no problem has so many candidates; the largest has {most}")
    return ns


@dataclass
class Selected:
    """The expected accuracy of every choice on every problem, gathered block by block.

    `values` [choices, problems, ns] and `single` [problems] (pass@1) are lists of arrays, one for each block.
    Methods are compared at `headline`, one of the ns. `variance` [choices, ns] is the summed Monte Carlo variance of
    the votes, `by_group` [choices, groups] the summed accuracy at `headline`, `left_out` the number of candidates that
    belong to no group. Before `merge`, both sums have the terms of each problem in front: they are added up in the
    order of the problems, so that the sum does not depend on the blocks.
    """

    section: Evaluate
    ns: list[int]
    headline: int
    choices: list[Choice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    single: list[np.ndarray] = field(default_factory=list)
    left_out: int = 0
    variance: np.ndarray = field(default_factory=lambda: np.zeros(()))
    by_group: np.ndarray = field(default_factory=lambda: np.zeros(()))

    @classmethod
    def for_sizes(cls, sizes: np.ndarray, section: Evaluate) -> "Selected":
        """Empty, for problems with these numbers of candidates; UserError as in `ns_of`."""
        ns = ns_of(sizes, section)
        return cls(section, ns, headline_n({n: int((sizes // section.groups >= n).sum()) for n in ns}))

    def add(self, block: Block) -> None:
        """Adds the problems of a block; every block has the same verifiers."""
        candidates, groups = block.candidates, self.section.groups
        scores = {name: table.score for name, table in block.scores.items()}
        steps = step_aggregations(block.scores)
        # In the order of the rows of `choose`.
        self.choices = self.choices or [Choice("pass@n"), *rankings(scores, steps), *voters((0,), scores, steps)]
        values = np.full((len(self.choices), candidates.problems, len(self.ns)), np.nan)
        self.variance = np.zeros((candidates.problems, len(self.choices), len(self.ns)))
        self.by_group = np.zeros((candidates.problems, len(self.choices), groups))
        single, ids = np.zeros(candidates.problems), np.array(candidates.problem_ids)
        for problems, rows in candidates.by_size():
            single[problems] = candidates.correct[rows].mean(axis=1)
            size = rows.shape[1] // groups
            self.left_out += len(rows) * (rows.shape[1] - size * groups)
            if ns := [n for n in self.ns if n <= size]:
                dealt = rows[:, : size * groups].reshape(-1, size)
                by_group, by_step = ({k: v[dealt] for k, v in arrays.items()} for arrays in (scores, steps))
                chosen = choose(candidates.clusters[dealt], by_group, by_step, ns, self.section, ids[problems])
                by_group = chosen.values.reshape(len(self.choices), -1, groups, len(ns))
                values[:, problems, : len(ns)] = by_group.mean(axis=2)
                variance = chosen.variance.reshape(len(self.choices), -1, groups, len(ns)).sum(axis=2) / groups**2
                self.variance[problems, :, : len(ns)] = variance.swapaxes(0, 1)
                if len(ns) > self.headline_index:
                    self.by_group[problems] = by_group[..., self.headline_index].swapaxes(0, 1)
        self.problems += ids.tolist()
        self.values.append(values)
        self.single.append(single)

    def merge(self, block: "Selected") -> None:
        """Adds the problems of the block that follows; `block` has added no other."""
        self.choices = block.choices
        self.problems += block.problems
        self.values += block.values
        self.single += block.single
        self.left_out += block.left_out
        self.variance = add_rows(self.variance, block.variance)
        self.by_group = add_rows(self.by_group, block.by_group)

    @property
    def headline_index(self) -> int:
        """The place of `headline` among the ns."""
        return self.ns.index(self.headline)

    def joined(self) -> np.ndarray:
        """[choices, problems, ns]: `values` of all blocks, of which they become one."""
        if len(self.values) > 1:
            self.values = [np.concatenate(self.values, axis=1)]
        return self.values[0]

    def outcomes(self) -> Outcomes:
        """Accuracy of each problem by method."""
        values = self.joined()
        compared = ~np.isnan(values[0, :, self.headline_index])
        single = {Method(SINGLE, "", 1): np.where(compared, np.concatenate(self.single), np.nan)}
        return single | {method: values[i, :, j] for method, i, j in self.methods()}

    def methods(self) -> list[tuple[Method, int, int]]:
        """The method of each choice (first index) at each n (second index)."""
        return [
            (Method(choice.method, choice.verifier, n, choice.aggregation), i, j)
            for i, choice in enumerate(self.choices)
            for j, n in enumerate(self.ns)
        ]

    def standard_errors(self) -> dict[Method, float]:
        """Monte Carlo standard error of each sampled method's accuracy: random subsets, not random problems."""
        entering = (~np.isnan(self.joined())).sum(axis=1)
        error = np.sqrt(self.variance) / np.maximum(entering, 1)
        return {method: float(error[i, j]) for method, i, j in self.methods() if error[i, j] > 0}


def add_rows(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`total` plus each of the rows, one after the other."""
    return np.concatenate([np.broadcast_to(total, (1, *rows.shape[1:])), rows]).sum(axis=0)


class Chosen(NamedTuple):
    """Expected accuracies and their Monte Carlo variances, both [choices, rows, ns]."""

    values: np.ndarray
    variance: np.ndarray


def choose(
    clusters: np.ndarray, scores: ByName, steps: ByName, ns: list[int], section: Evaluate, problem_ids: np.ndarray
) -> Chosen:
    """Every choice on equally large problems, or groups of their candidates: arrays [problems * groups, candidates].

    `problem_ids` [problems] seed the random subsets.
    """
    exact = [pass_at(clusters, ns), *(best_of(s, clusters, ns) for s in rankings(scores, steps).values())]

    def rng_of(row: int) -> np.random.Generator:
        # The seed is of the problem's id, so that its subsets do not depend on the problems beside it.
        problem, group = divmod(row, section.groups)
        id_seed = int.from_bytes(blake2b(problem_ids[problem].encode(), digest_size=8).digest(), "big")
        return np.random.default_rng([section.seed, id_seed, group])

    ballots = list(voters(clusters.shape, scores, steps).values())
    voted, variance = votes(clusters, ballots, ns, section.trials, rng_of)
    certain = np.zeros((len(exact), *variance.shape[1:]))
    return Chosen(np.concatenate([np.stack(exact), voted]), np.concatenate([certain, variance]))


def step_aggregations(scores: Mapping[str, Scores]) -> dict[tuple[str, str], np.ndarray]:
    """[candidates] by PRM and aggregation: its step scores as one score."""
    aggregated = {}
    for name, table in scores.items():
        if name.startswith("prm"):
            flat = pc.list_flatten(table.step_scores).to_numpy()
            lengths = pc.list_value_length(table.step_scores).fill_null(0).to_numpy()
            aggregated |= {(name, how): aggregate(flat, lengths, how) for how in AGGREGATIONS}
    return aggregated


def compare(selected: Selected, outcomes: Outcomes, measured: list[Measured]) -> dict[str, Any]:
    """`n`, `methods`, `paired`, `aggregations` and `groups` of evaluation.json; `outcomes` are those of `selected`.

    Rows whose intervals are still to be filled are added to `measured`.
    """
    errors = selected.standard_errors()
    methods, aggregations, paired = [], [], []
    for m, values in outcomes.items():
        error = {"se": errors[m]} if m in errors else {}
        row = {"n": m.n, **entry("accuracy", values), **error}
        if m.aggregation:
            aggregations.append({"verifier": m.verifier, "aggregation": m.aggregation, "method": m.name, **row})
        else:
            methods.append({"method": m.name, "verifier": m.verifier, **row})
        measured.append(Measured((aggregations if m.aggregation else methods)[-1], "ci", values))
    for a, b in paired_methods(outcomes, selected.headline):
        difference = entry("difference", outcomes[a] - outcomes[b])
        paired.append({"a": a.key, "b": b.key, "n": a.n, **difference, **p_value(a, b, outcomes, selected)})
        measured.append(Measured(paired[-1], "ci", outcomes[a], outcomes[b]))
    return {
        "n": selected.headline,
        "methods": methods,
        "paired": paired,
        "aggregations": aggregations,
        "groups": by_group(selected),
    }


def entry(name: str, values: np.ndarray) -> dict[str, Any]:
    """The mean of values [problems] as keys of a row, whose interval is still to be filled."""
    entering = values[~np.isnan(values)]
    return {name: float(entering.mean()), "ci_low": None, "ci_high": None, "problems": len(entering)}


def by_group(selected: Selected) -> dict[str, Any]:
    """Accuracies of each group at the headline n, and their standard deviation; empty with one group."""
    if selected.section.groups == 1:
        return {}
    entering = ~np.isnan(selected.joined()[0])
    accuracies = selected.by_group / max(1, entering[:, selected.headline_index].sum())
    return {
        "count": selected.section.groups,
        "n": selected.headline,
        "left_out": selected.left_out,
        "too_few": int(len(selected.problems) - entering.any(axis=1).sum()),
        "methods": [
            {**choice._asdict(), "accuracy": row.tolist(), "sd": float(row.std(ddof=1))}
            for choice, row in zip(selected.choices, accuracies, strict=True)
        ],
    }


def p_value(a: Method, b: Method, outcomes: Outcomes, selected: Selected) -> dict[str, Any]:
    """At the headline n: McNemar's exact test where each problem has one outcome (or a tie), else a sign-flip test."""
    if a.n != selected.headline:
        return {"p_value": None}
    difference = outcomes[a] - outcomes[b]
    if all((2 * values[~np.isnan(values)] % 1 == 0).all() for values in (outcomes[a], outcomes[b])):
        return {"p_value": sign_test(difference), "test": "mcnemar"}
    return {"p_value": flip_test(difference, selected.section.seed), "test": "sign-flip"}
