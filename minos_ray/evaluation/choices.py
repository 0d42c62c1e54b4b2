"""Choices among the first n candidates of random orders, for every n in one pass, that false positives fool less.

| method | chooses |
|---|---|
| shrunk-vote | the answer with the largest sum of `score ** power`: the plain vote at power 0, best-of-n at infinity |
| top-vote | the answer of most of the k candidates with the highest scores (Cobbe et al., 2110.14168, section 4.2) |
| pessimistic | the answer with the largest mean score, as though `DOUBTS` more of its candidates had score 0 |
| weighted-vote of k | as the weighted vote, where only k of n candidates were scored: `count * mean score of those` |
| adaptive | the leading answer, once it is surely ahead of the second (Aggarwal et al., 2305.11860, beta criterion) |

Answers are clusters as in `selection`, and its rules hold: no answer counts as wrong, ties are expectations, and where
no candidate of a subset has a score the plain vote decides. Rows are the orders of all problems, one after the other.

`Choices` gathers them block by block: outcomes, samples used, confidences. Problems enter that have as many candidates
as methods are compared at (`headline`), with so many, in random orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.selection import CRITIC, problem_rng, random_orders, without_nan
from minos_ray.evaluation.verdicts import THRESHOLD

# Random orders of all problems together: with many problems one of each is enough, since problems differ more.
ORDERS = 2_500
POWERS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
TOP = (4, 16, 64)
DOUBTS = 4
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
# Weights of scored candidates stay above 0, so that they have a vote beside those without a score.
LEAST = 1e-6


class Ordered(NamedTuple):
    """Candidates in random orders: their answers [rows, N], of which the last of `answers` stands for none, and
    `counts` [ns, rows, answers]: how many of the first n have each answer."""

    answer_of: np.ndarray
    answers: int
    ns: list[int]
    counts: np.ndarray


def ordered(clusters: np.ndarray, ns: Sequence[int]) -> Ordered:
    """For answers [rows, N] that were put in order already."""
    answers = int(clusters.max(initial=0)) + 2
    order = Ordered(np.where(clusters < 0, answers - 1, clusters), answers, list(ns), np.zeros(0))
    return order._replace(counts=totals(order, np.ones(clusters.shape)))


def totals(order: Ordered, weights: np.ndarray) -> np.ndarray:
    """[ns, rows, answers]: for each n the sums of the weights [rows, N] of the first n candidates."""
    from minos_ray.evaluation.kernels import growing_totals

    return growing_totals(order.answer_of, np.ascontiguousarray(weights, np.float64), np.array(order.ns), order.answers)


def chance_right(totals: np.ndarray, counts: np.ndarray, plain: np.ndarray | None = None) -> np.ndarray:
    """[...]: the chance that the answer with the largest total is right; all are [..., answers].

    Only answers with a count above 0 can win; where there is none, those with the most `plain` votes, if there are any.
    """
    from minos_ray.evaluation.kernels import vote_chances

    tables = np.broadcast_arrays(totals, counts, counts if plain is None else plain)
    shape = tables[0].shape
    rows = (np.ascontiguousarray(table, np.float64).reshape(-1, shape[-1]) for table in tables)
    return vote_chances(*rows).reshape(shape[:-1])


def plain_votes(order: Ordered) -> np.ndarray:
    """[ns, rows]: the chance that the plain vote is right."""
    return chance_right(order.counts, order.counts)


class Scored(NamedTuple):
    """Scores [rows, N] (NaN: none) of ordered candidates; how many have one, and their sums, [ns, rows, answers]."""

    scores: np.ndarray
    counts: np.ndarray
    sums: np.ndarray


def scored(order: Ordered, scores: np.ndarray) -> Scored:
    """For scores in the order of the candidates."""
    present = ~np.isnan(scores)
    counts = order.counts if present.all() else totals(order, present)
    return Scored(scores, counts, totals(order, powered(scores, 1.0)))


def powered(scores: np.ndarray, power: float) -> np.ndarray:
    """Scores to a power above 0; 0 where there is none."""
    values = np.where(np.isnan(scores), 0.0, np.maximum(scores, LEAST))
    while power >= 2 and power % 2 == 0:  # squares are cheap
        values *= values
        power /= 2
    return values if power == 1 else values**power


def shrunk_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[powers, ns, rows]: the vote with weights `score ** power`, for each of `POWERS`."""
    stored = {0.0: verifier.counts, 1.0: verifier.sums}
    sums = (stored[p] if p in stored else totals(order, powered(verifier.scores, p)) for p in POWERS)
    return np.stack([chance_right(values, verifier.counts, order.counts) for values in sums])


def pessimistic_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[ns, rows]: the answer with the largest mean score beside `DOUBTS` rejected candidates; rare ones lose."""
    return chance_right(verifier.sums / (verifier.counts + DOUBTS), verifier.counts, order.counts)


def partly_verified_votes(order: Ordered, verifier: Scored) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the weighted vote among n when only the first k have a score.

    An answer counts as many times the mean score of its scored candidates as it has candidates, or of all scored ones
    where it has none.
    """
    chances = {}
    for i, k in enumerate(order.ns[:-1]):
        counts, sums, larger = verifier.counts[i], verifier.sums[i], order.counts[i + 1 :]
        overall = sums[:, :-1].sum(axis=1, keepdims=True) / np.maximum(counts[:, :-1].sum(axis=1, keepdims=True), 1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.where(overall > 0, overall, 1.0))
        right = chance_right(larger * means, larger)
        chances |= {(n, k): right for n, right in zip(order.ns[i + 1 :], right, strict=True)}
    return chances


def top_votes(order: Ordered, scores: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the plain vote among the k of the first n candidates with the highest scores; k = 1 is
    best-of-n, also at n = 1.

    Candidates without an answer come last, before them those without a score. Equal scores are taken as they come in
    the random order.
    """
    from minos_ray.evaluation.kernels import top_chances

    value = np.where(order.answer_of == order.answers - 1, -2.0, np.where(np.isnan(scores), -1.0, scores))
    ranked, ks = np.argsort(-value, axis=1, kind="stable"), (1, *TOP)
    chances = top_chances(ranked, order.answer_of, np.array(order.ns), np.array(ks), order.answers)
    pairs = ((j, i) for j, n in enumerate(order.ns) for i, k in enumerate(ks) if k < n or k == 1)
    return {(order.ns[j], ks[i]): chances[j, i] for j, i in pairs}


class Stopped(NamedTuple):
    """[confidences, rows]: the chance that the leading answer is right when sampling stops, and after how many."""

    right: np.ndarray
    used: np.ndarray


@cache
def chances_ahead(size: int) -> np.ndarray:
    """[votes, votes]: how likely an answer with v1 votes is ahead of one with v2 (`adaptive_votes`)."""
    # Beta(v1 + 1, v2 + 1) exceeds 1/2 as often as v1 + v2 + 1 throws of a coin have at most v1 heads. The last throw
    # makes that the mean of two neighbours, and all neighbours lie on the diagonal before.
    ahead = np.zeros((size + 2, size + 2))  # a row and a column more: of -1 votes
    ahead[1:, 0] = 1.0
    for total in range(2, 2 * size + 3):
        v1 = np.arange(max(1, total - size - 1), min(total, size + 2))
        ahead[v1, total - v1] = (ahead[v1 - 1, total - v1] + ahead[v1, total - v1 - 1]) / 2
    return ahead[1:, 1:]


def adaptive_votes(clusters: np.ndarray, confidences: Sequence[float] = CONFIDENCES) -> Stopped:
    """Stops at the first n at which the leading answer is ahead of the second one with this posterior probability.

    `clusters` is [rows, N] in order. With v1 and v2 votes for the two, their share has the posterior Beta(v1 + 1,
    v2 + 1), and the leader is ahead with the probability that it exceeds 1/2. A row that never gets so sure uses all N.
    ValueError unless the confidences ascend.
    """
    from minos_ray.evaluation.kernels import stopped_votes

    if list(confidences) != sorted(confidences):
        raise ValueError("confidences must ascend")
    return Stopped(*stopped_votes(clusters, chances_ahead(clusters.shape[1]), np.array(confidences)))


class Way(NamedTuple):
    """A way to choose among n candidates: `verified` of them have a score, `top` of these vote (0: all)."""

    method: str
    verifier: str
    n: int
    verified: int
    top: int = 0


class Answered(NamedTuple):
    """Of some problems: outcomes [problems, ways], shrunk votes [problems, verifiers, powers, ns], outcomes and samples
    of adaptive votes [problems, confidences], mean tokens of a candidate [problems], and of every method that can
    abstain its confidence and its outcome [problems, methods]. The tokens are NaN where they are not known."""

    outcomes: np.ndarray
    shrunk: np.ndarray
    stopped: np.ndarray
    used: np.ndarray
    tokens: np.ndarray
    confidence: np.ndarray
    chosen: np.ndarray


@dataclass
class Choices:
    """The rows of all blocks; `ns` end at `headline`, `orders` is the number of random orders of each problem."""

    section: Evaluate
    ns: list[int]
    headline: int
    orders: int
    verifiers: list[str]
    blocks: list[Answered] = field(default_factory=list)

    @classmethod
    def for_sizes(
        cls, sizes: np.ndarray, section: Evaluate, ns: Sequence[int], headline: int, verifiers: Sequence[str]
    ) -> "Choices":
        """Empty, for problems with these numbers of candidates."""
        orders = max(1, min(section.trials, ORDERS // max(1, len(sizes))))
        return cls(section, [n for n in ns if n <= headline], headline, orders, list(verifiers))

    def ways(self) -> list[Way]:
        """The columns of `outcomes`."""
        names, pairs = self.verifiers, [(n, k) for n in self.ns for k in self.ns if k < n]
        rivals = [Way("self-consistency", "", n, 0) for n in self.ns]
        rivals += [Way("best-of-n", name, n, n) for name in names for n in self.ns]
        partly = [Way(vote_of(name), name, n, k) for name in names for n, k in pairs]
        top = [Way("top-vote", name, n, n, k) for name in names for n in self.ns for k in TOP if k < n]
        return [*rivals, *partly, *top, *(Way("pessimistic", name, n, n) for name in names for n in self.ns if n > 2)]

    def abstaining(self) -> list[tuple[str, str]]:
        """The columns of `confidence`: method and verifier."""
        pairs = [(method, name) for name in self.verifiers for method in ("best-of-n", vote_of(name))]
        return [("self-consistency", ""), *(pair for pair in pairs if pair != ("best-of-n", CRITIC))]

    def add(self, block: Block) -> None:
        """Adds the problems of a block that have enough candidates, in the order of the block."""
        candidates = block.candidates
        tokens = np.full(len(candidates.clusters), np.nan)
        if block.sampling is not None:
            tokens = block.sampling["num_tokens"].to_numpy().astype(np.float64)
        ids, parts, places = candidates.problem_ids, [], []
        for problems, rows in candidates.by_size():
            if rows.shape[1] // self.section.groups < self.headline:
                continue
            # Seeded by the problem, and nested with the subsets of the other votes.
            rngs = (problem_rng(self.section.seed, ids[p]) for p in problems)
            # Copied, so that no whole order is kept.
            orders = np.stack(
                [random_orders(rng, self.orders, rows.shape[1])[:, : self.headline].copy() for rng in rngs]
            )
            drawn = np.take_along_axis(rows[:, None], orders, axis=2).reshape(-1, self.headline)
            scores = {name: block.scores[name].score[drawn] for name in self.verifiers}
            mean = tokens[rows].mean(axis=1)  # 0 of imported candidates, whose tokens are not known
            parts.append(self.answered(candidates.clusters[drawn], scores, np.where(mean > 0, mean, np.nan)))
            places.append(problems)
        if parts:
            order = np.argsort(np.concatenate(places))
            self.blocks.append(Answered(*(np.concatenate(columns)[order] for columns in zip(*parts, strict=True))))

    def merge(self, block: "Choices") -> None:
        """Takes in the rows of the block that follows."""
        self.blocks += block.blocks

    def answered(self, clusters: np.ndarray, scores: Mapping[str, np.ndarray], tokens: np.ndarray) -> Answered:
        """All methods on orders [problems * orders, headline] of clusters and scores."""
        order, stopped = ordered(clusters, self.ns), adaptive_votes(clusters)
        plain = zip(self.ns, plain_votes(order), strict=True)
        chances = {Way("self-consistency", "", n, 0): right for n, right in plain}
        shrunk, sums = [], {}
        for name in self.verifiers:
            values = scores[name]
            verifier = scored(order, values)
            # A critic's verdicts filter the vote.
            verdicts = np.where(np.isnan(values), np.nan, values >= THRESHOLD)
            weights = scored(order, verdicts) if name == CRITIC else verifier
            partly = partly_verified_votes(order, weights)
            chances |= {Way(vote_of(name), name, n, k): right for (n, k), right in partly.items()}
            for (n, k), right in top_votes(order, values).items():
                chances[Way("best-of-n", name, n, n) if k == 1 else Way("top-vote", name, n, n, k)] = right
            lowered = zip(self.ns, pessimistic_votes(order, verifier), strict=True)
            chances |= {Way("pessimistic", name, n, n): right for n, right in lowered}
            shrunk.append(self.by_problem(shrunk_votes(order, verifier)))
            sums[name] = weights
        confidence, chosen = self.confidences(clusters, order, scores, sums)
        return Answered(
            outcomes=self.by_problem(np.stack([chances[way] for way in self.ways()])),
            shrunk=np.stack(shrunk, axis=1) if shrunk else np.zeros((len(tokens), 0, 0, 0)),
            stopped=self.by_problem(stopped.right),
            used=self.by_problem(stopped.used.astype(np.float64)),
            tokens=tokens,
            confidence=confidence,
            chosen=chosen,
        )

    def by_problem(self, rows: np.ndarray) -> np.ndarray:
        """[problems, ...]: the means over the orders of each problem, of arrays [..., rows], in single precision."""
        means = rows.reshape(*rows.shape[:-1], -1, self.orders).mean(axis=-1)
        return np.ascontiguousarray(np.moveaxis(means, -1, 0), dtype=np.float32)

    def confidences(
        self, clusters: np.ndarray, order: Ordered, scores: Mapping[str, np.ndarray], sums: Mapping[str, Scored]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[problems, methods] each: confidence (a vote's share of the leader, best-of-n's top score), and the outcome.

        Of the first `headline` candidates in the first order.
        """
        first, columns = slice(None, None, self.orders), []
        answered = clusters[first] >= 0
        for method, name in self.abstaining():
            if method == "best-of-n":
                value = np.where(answered, without_nan(scores[name][first]), -np.inf)
                top = value.max(axis=1, keepdims=True)
                tied = (value == top) & answered
                right = (tied & (clusters[first] == 0)).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)
                columns.append((np.maximum(top[:, 0], -1), right))
                continue
            counts = order.counts[-1][first]
            votes = counts if not name else sums[name].sums[-1][first]
            votes = np.where(votes[:, :-1].any(axis=1, keepdims=True), votes, counts)
            share = votes[:, :-1].max(axis=1) / np.maximum(votes[:, :-1].sum(axis=1), 1e-12)
            columns.append((share, chance_right(votes, votes)))
        confidence, right = zip(*columns, strict=True)
        return np.stack(confidence, axis=1), np.stack(right, axis=1)

    def joined(self) -> Answered:
        """The rows of all blocks as one."""
        return Answered(*(np.concatenate(columns) for columns in zip(*self.blocks, strict=True)))


def vote_of(verifier: str) -> str:
    """The vote that a verifier weighs: a critic's verdicts filter it."""
    return "critic-filtered-vote" if verifier == CRITIC else "weighted-vote"
