"""The methods of `growing` on the candidates of a run, gathered block by block: outcomes, samples used, confidences.

Problems enter that have as many candidates as methods are compared at (`headline`), with so many, in random orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.growing import (
    TOP,
    Ordered,
    Scored,
    adaptive_votes,
    chance_right,
    ordered,
    partly_verified_votes,
    pessimistic_votes,
    plain_votes,
    scored,
    shrunk_votes,
    top_votes,
)
from minos_ray.evaluation.methods import CRITIC, without_nan
from minos_ray.evaluation.selection import random_orders
from minos_ray.evaluation.verdicts import THRESHOLD

# Random orders of all problems together: with many problems one of each is enough, since problems differ more.
ORDERS = 2_500


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
            orders = self.orders_of([ids[p] for p in problems], rows.shape[1])
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

    def orders_of(self, problem_ids: Sequence[str], size: int) -> np.ndarray:
        """[problems, orders, headline]: seeded by the problem, and nested with the subsets of the other votes."""
        orders = np.empty((len(problem_ids), self.orders, self.headline), dtype=np.int64)
        for row, problem in enumerate(problem_ids):
            id_seed = int.from_bytes(blake2b(problem.encode(), digest_size=8).digest(), "big")
            rng = np.random.default_rng([self.section.seed, id_seed, 0])
            orders[row] = random_orders(rng, self.orders, size)[:, : self.headline]
        return orders

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
