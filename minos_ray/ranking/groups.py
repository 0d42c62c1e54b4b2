"""Ranks and weighted votes within groups of solutions, such as all samples of one question."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Vote(NamedTuple):
    """The answer that wins a group, and by how much: its weight minus the next one's, over the weight of all."""

    answer: str | None
    margin: float | None


def members_of(groups: Sequence[object]) -> list[list[int]]:
    """The rows of each group, in order; groups in the order of their first row."""
    members: dict[object, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    return list(members.values())


def ranks(scores: Sequence[float | None]) -> list[int | None]:
    """The place of each solution of a group by its score, from 1; ties in their order, none without a score."""
    order = sorted((-score, row) for row, score in enumerate(scores) if score is not None)
    places = {row: place for place, (_, row) in enumerate(order, 1)}
    return [places.get(row) for row in range(len(scores))]


def weighted_vote(scores: Sequence[float | None], answers: Sequence[str | None], keys: Mapping[str, str]) -> Vote:
    """The vote of a group, weighted by scores (DIVERSE, 2206.02336, section 3.3).

    `keys` are equal for answers of equal value. A solution without an answer or without a score does not vote. Of
    equal sums the answer that comes first wins; the answer is spelled as its best solution spells it.
    """
    weights: dict[str, float] = defaultdict(float)
    spelled: dict[str, tuple[float, str]] = {}
    for score, answer in zip(scores, answers, strict=True):
        if score is not None and answer is not None:
            key = keys[answer]
            weights[key] += score
            if key not in spelled or score > spelled[key][0]:
                spelled[key] = score, answer
    if not weights:
        return Vote(None, None)
    (winner, most), *others = sorted(weights.items(), key=lambda item: -item[1])
    runner_up = others[0][1] if others else 0.0
    return Vote(spelled[winner][1], (most - runner_up) / sum(weights.values()))
