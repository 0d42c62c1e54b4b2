"""The search of one problem: which beams are continued after each step. Pure.

Beam search and lookahead as Snell et al. 2024 (arXiv 2408.03314, section 5.2), diverse verifier tree search (DVTS) as
Beeching et al. 2024, particle filtering as Puri et al. 2025 (arXiv 2502.01618, algorithm 1).

A problem has `n` slots, each of which ends as one candidate with the slot's number as its index. A beam that ends has
its slot for good. So nothing is padded, and no more texts grow than `n` samples would be.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heapreplace
from typing import Any

import numpy as np

from minos_ray.config.schema import Search

# Scores are weights of texts and particles (these as logits), and a sigmoid in single precision may be 0 or 1.
LEAST = 1e-7


@dataclass(frozen=True)
class Beam:
    """A solution so far: generated token ids and their text, why it has ended (empty: it has not), its score.

    `steps` are the number and the tokens of each of its steps; beams that share a step have the same number for it.
    `cached` is what the verifier keeps of the beam.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    reason: str = ""
    score: float = 0.0
    steps: tuple[tuple[int, int], ...] = ()
    cached: Any = None


@dataclass
class Tree:
    """Slots that one beam search shares: all of a problem, or with DVTS `width` of them."""

    slots: list[int]
    beams: dict[int, Beam] = field(default_factory=dict)


class ProblemSearch:
    """The search of one problem. `pending` are the beams to be continued by a step, by slot; `tokens` and `requests`
    count all that was generated.

    Used in turns: every beam of `pending` is continued with `extend`, then those of `unscored` get their scores with
    `rate`, then `select` chooses what is continued next. `done` when all slots have ended.
    """

    def __init__(self, settings: Search, name: str, root: Beam) -> None:
        self.settings, self.name = settings, name
        size = settings.width if settings.method == "dvts" else settings.n
        starts = range(0, settings.n, size)
        self.trees = [Tree(list(range(s, min(s + size, settings.n)))) for s in starts]
        for tree in self.trees:
            tree.beams = dict.fromkeys(tree.slots, root)
        self.ended: dict[int, Beam] = {}
        self.pending: dict[int, Beam] = dict.fromkeys(range(settings.n), root)
        self.rollouts: dict[int, Beam] = {}
        self.ahead = 0  # steps that the rollouts look ahead already
        self.level = 0
        self.tokens = self.requests = 0

    @property
    def done(self) -> bool:
        """Whether every slot has its candidate."""
        return len(self.ended) == self.settings.n

    @property
    def dropped_tokens(self) -> int:
        """Generated tokens that are in no candidate."""
        steps = {step for beam in self.ended.values() for step in beam.steps}
        return self.tokens - sum(tokens for _, tokens in steps)

    def extend(self, slot: int, ids: Sequence[int], text: str, reason: str) -> bool:
        """Continues the pending beam of a slot by a step's token ids; `text` is that of all its steps, `reason` why it
        ends. True when it was the last pending one."""
        before = self.pending.pop(slot)
        self.tokens += len(ids)
        self.requests += 1
        steps = (*before.steps, (self.requests, len(ids)))
        beam = replace(before, ids=(*before.ids, *ids), text=text, reason=reason, steps=steps)
        if self.ahead:
            self.rollouts[slot] = beam
        else:
            self.tree_of(slot).beams[slot] = beam
        return not self.pending

    def tree_of(self, slot: int) -> Tree:
        """The tree that a slot belongs to."""
        return self.trees[slot // len(self.trees[0].slots)]

    def look_ahead(self) -> bool:
        """Whether rollouts are to be continued before anything is scored; `pending` are these then."""
        if self.settings.method != "lookahead" or not is_guided(self.settings) or self.ahead == self.settings.lookahead:
            return False
        if not self.ahead:
            self.rollouts = dict(self.open_beams())
        self.ahead += 1
        self.pending = {slot: beam for slot, beam in self.rollouts.items() if not beam.reason}
        return bool(self.pending)

    def open_beams(self) -> Iterator[tuple[int, Beam]]:
        """The beams of slots that are not settled."""
        for tree in self.trees:
            yield from tree.beams.items()

    def unscored(self) -> dict[int, Beam]:
        """The beams whose scores `select` needs, by slot: rollouts in place of the steps that they begin with."""
        if not is_guided(self.settings):
            return {}
        beams = self.rollouts if self.ahead else dict(self.open_beams())
        return {slot: beam for slot, beam in beams.items() if len(beam.steps) > self.level}

    def rate(self, slot: int, beam: Beam) -> None:
        """The scored beam of a slot. A step has the score of its rollout, and what is cached of its own."""
        if self.ahead:
            own = self.tree_of(slot).beams[slot]
            beam = replace(own, score=beam.score, cached=beam.cached)
        self.tree_of(slot).beams[slot] = beam

    def select(self) -> None:
        """Ends slots, and says in `pending` what is continued."""
        self.ahead, self.rollouts = 0, {}
        self.level += 1
        for tree in self.trees:
            if self.settings.method == "particles":
                resample(tree, self.settings.seed, f"{self.name} {self.level}")
                if all(beam.reason for beam in tree.beams.values()):
                    self.ended |= tree.beams
                    tree.beams = {}
            elif tree.beams:
                self.ended |= keep_best(tree, self.settings.width)
        self.pending = {slot: beam for slot, beam in self.open_beams() if not beam.reason}


def is_guided(settings: Search) -> bool:
    """Whether scores matter: with width 1 all beams are kept."""
    return settings.width > 1 or settings.method == "particles"


def keep_best(tree: Tree, width: int) -> dict[int, Beam]:
    """Keeps the best texts of a tree, at most `1/width` of its open beams; returns the beams that end, by slot.

    A beam that has ended settles its slot whatever its score: a vote or best-of-n among all candidates decides later,
    on whole texts. Open beams with the same text count as one. The slots of those that are dropped go to the kept
    texts in proportion to the summed scores of their beams (D'Hondt): a text that the generator writes often and the
    verifier likes is continued more often than one that is merely new.
    """
    ended = {slot: beam for slot, beam in tree.beams.items() if beam.reason}
    going_on = {slot: beam for slot, beam in tree.beams.items() if not beam.reason}
    if width == 1:
        tree.beams = going_on
        return ended
    best: dict[str, int] = {}
    weights: dict[str, float] = defaultdict(float)
    for slot in sorted(going_on, key=lambda slot: (-going_on[slot].score, slot)):
        best.setdefault(going_on[slot].text, slot)
        weights[going_on[slot].text] += max(going_on[slot].score, LEAST)
    texts = list(best)[: -(-len(going_on) // width)]
    # Each kept text keeps its own slot; the next one goes to the largest weight for each slot that it would have.
    tree.beams = {best[text]: going_on[best[text]] for text in texts}
    quotients = [(-weights[text] / 2, rank, 2) for rank, text in enumerate(texts)]
    heapify(quotients)
    for slot in sorted(going_on.keys() - tree.beams.keys()):
        _, rank, slots = quotients[0]
        heapreplace(quotients, (-weights[texts[rank]] / (slots + 1), rank, slots + 1))
        tree.beams[slot] = going_on[best[texts[rank]]]
    return ended


def resample(tree: Tree, seed: int, draw: str) -> None:
    """Draws the beams anew, with replacement and weights proportional to odds: the softmax of the scores' logits.

    Ended beams are drawn like all others, and stay as they are. Once all have ended nothing is drawn.
    """
    beams = [tree.beams[slot] for slot in tree.slots if slot in tree.beams]
    if all(beam.reason for beam in beams):
        return
    scores = np.clip([beam.score for beam in beams], LEAST, 1 - LEAST)
    odds = scores / (1 - scores)
    generator = np.random.default_rng([seed, *draw.encode()])
    drawn = np.sort(generator.choice(len(beams), len(beams), p=odds / odds.sum()))
    tree.beams = {slot: beams[place] for slot, place in zip(tree.slots, drawn, strict=True)}
