"""Every method for every n on the same candidates, with intervals, and paired differences."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minos_ray.evaluation.candidates import Candidates
from minos_ray.evaluation.metrics import THRESHOLD
from minos_ray.evaluation.selection import best_of, pass_at, votes
from minos_ray.evaluation.statistics import intervals, sign_test
from minos_ray.sections import Evaluate

CRITIC = "critic"
SELECTING = ("best-of-n", "weighted-vote")


class Method(NamedTuple):
    """A way to choose an answer among n candidates."""

    name: str
    verifier: str
    n: int

    @property
    def key(self) -> str:
        """The name in `paired`: `best-of-n:orm-minos`, `self-consistency`."""
        return f"{self.name}:{self.verifier}" if self.verifier else self.name


# Method -> accuracy of each problem; NaN where a problem has fewer than n candidates.
Outcomes = dict[Method, np.ndarray]


def compare(found: Outcomes, section: Evaluate) -> dict[str, Any]:
    """`methods` and `paired` of evaluation.json."""
    pairs = paired_methods(found)
    columns = [*found.values(), *(found[a] - found[b] for a, b in pairs)]
    centre, low, high = intervals(np.stack(columns, axis=1), section.bootstrap, section.seed)
    entries = [measured(*values) for values in zip(columns, centre, low, high, strict=True)]
    largest = max(method.n for method in found)
    return {
        "methods": [
            {"method": m.name, "verifier": m.verifier, "n": m.n, "accuracy": centre, **rest}
            for m, (centre, rest) in zip(found, entries[: len(found)], strict=True)
        ],
        "paired": [
            {"a": a.key, "b": b.key, "n": a.n, "difference": centre, **rest, "p_value": p_value(found, a, b, largest)}
            for (a, b), (centre, rest) in zip(pairs, entries[len(found) :], strict=True)
        ],
    }


def measured(column: np.ndarray, centre: float, low: float, high: float) -> tuple[float, dict[str, float | int]]:
    """The mean of a column, and its interval with the number of problems that enter."""
    return float(centre), {"ci_low": float(low), "ci_high": float(high), "problems": int((~np.isnan(column)).sum())}


def ns_of(candidates: Candidates, section: Evaluate) -> list[int]:
    """The ns asked for that some problem has candidates for; by default powers of two and, if all agree, N itself."""
    sizes = np.diff(candidates.starts)
    powers = [2**k for k in range(candidates.largest.bit_length())]
    whole = [candidates.largest] if len(np.unique(sizes)) == 1 else []
    return sorted({n for n in section.ns or (*powers, *whole) if n <= candidates.largest})


def outcomes(candidates: Candidates, scores: Mapping[str, np.ndarray], section: Evaluate) -> Outcomes:
    """The expected accuracy of every method on every problem; the critic's verdicts are the scores of `critic`."""
    ns = ns_of(candidates, section)
    verifiers = [name for name in scores if name != CRITIC]
    names = [("pass@n", ""), ("self-consistency", "")]
    names += [(method, verifier) for method in SELECTING for verifier in verifiers]
    names += [("critic-filtered-vote", CRITIC)] if CRITIC in scores else []
    values = np.full((len(names), candidates.problems, len(ns)), np.nan)
    single = np.full(candidates.problems, np.nan)
    for problems, rows in candidates.groups():
        fits = [n for n in ns if n <= rows.shape[1]]
        clusters = candidates.clusters[rows]
        chosen = {name: score[rows] for name, score in scores.items()}
        rng = np.random.default_rng([section.seed, rows.shape[1]])
        values[:, problems, : len(fits)] = group_outcomes(names, clusters, chosen, fits, section.trials, rng)
        single[problems] = (clusters == 0).mean(axis=1)
    found = {Method(*name, n): values[i, :, j] for i, name in enumerate(names) for j, n in enumerate(ns)}
    return {Method("pass@1", "", 1): single, **found}


def group_outcomes(
    names: list[tuple[str, str]],
    clusters: np.ndarray,
    scores: Mapping[str, np.ndarray],
    ns: list[int],
    trials: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[names, problems, ns] for problems with equally many candidates."""
    weights = {("self-consistency", ""): np.ones(clusters.shape)}
    for name, score in scores.items():
        if name == CRITIC:
            weights["critic-filtered-vote", name] = (score >= THRESHOLD).astype(np.float64)
        else:
            weights["weighted-vote", name] = score
    voted = votes(clusters, np.stack(list(weights.values())), ns, trials, rng)
    found = dict(zip(weights, voted, strict=True))
    found["pass@n", ""] = pass_at(clusters, ns)
    for name in scores.keys() - {CRITIC}:
        found["best-of-n", name] = best_of(scores[name], clusters, ns)
    return np.stack([found[name] for name in names])


def paired_methods(found: Outcomes) -> list[tuple[Method, Method]]:
    """Minos minus base for each n, and every use of a verifier minus the plain vote at the largest n."""
    gains = [
        (method, method._replace(verifier=method.verifier.replace("-minos", "-base")))
        for method in found
        if method.name in SELECTING and method.verifier.endswith("-minos")
    ]
    largest = max(method.n for method in found)
    leads = [(m, Method("self-consistency", "", m.n)) for m in found if m.verifier and m.n == largest]
    return [pair for pair in gains if pair[1] in found] + leads


def p_value(found: Outcomes, a: Method, b: Method, largest: int) -> float | None:
    """Sign test over problems at the largest n, where each problem has (nearly) one outcome."""
    return sign_test(found[a] - found[b]) if a.n == largest else None
