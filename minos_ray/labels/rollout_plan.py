"""Which prefixes are completed, how often, and what the completions prove. Pure.

The prefixes of a problem's candidates form a tree: each distinct prefix once, its parent one step shorter. A prefix is
*reached* when some continuation of it is known to end in the gold answer: a completion of its own, the rest of a right
candidate, or a continuation of a longer prefix, which is one of every shorter prefix too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Statuses = Sequence[str]
# draw(prefixes, count): the outcomes of `count` new completions for each of these prefixes, none where it cannot be.
Draw = Callable[[list[int], int], Sequence[Statuses]]
ROOT = -1


class Tree(NamedTuple):
    """The prefixes of one problem: each one's parent (an earlier one, or ROOT), the text it adds to that, and whether
    a right candidate goes on from it."""

    problem_id: str
    parents: list[int]
    pieces: list[str]
    proven: list[bool]

    def texts(self) -> list[str]:
        """Every prefix in full."""
        texts: list[str] = []
        for parent, piece in zip(self.parents, self.pieces, strict=True):
            texts.append(piece if parent == ROOT else texts[parent] + piece)
        return texts


class Decided(NamedTuple):
    """What is known of each prefix: whether it is reached, and the outcomes of its own completions."""

    reached: list[bool]
    outcomes: list[list[str]]

    def label(self, prefix: int) -> int:
        """The hard label: 1 reached, 0 not reached by any completion, -1 when none could be made."""
        return 1 if self.reached[prefix] else 0 if self.outcomes[prefix] else -1


def grow(problem_id: str, solutions: Iterable[tuple[Sequence[str], bool]]) -> Tree:
    """The tree of solutions, each given by its prefixes from short to long and whether it is right."""
    tree = Tree(problem_id, [], [], [])
    known: dict[str, int] = {}
    for prefixes, correct in solutions:
        parent, before = ROOT, ""
        for prefix in prefixes:
            if prefix not in known:
                known[prefix] = len(tree.parents)
                tree.parents.append(parent)
                tree.pieces.append(prefix[len(before) :])
                tree.proven.append(False)
            parent, before = known[prefix], prefix
            tree.proven[parent] |= correct
    return tree


def rounds(completions: int) -> list[int]:
    """How many completions each round makes: 1, 1, 2, 4, ... so that at most half of a prefix's are in vain."""
    made: list[int] = []
    while (done := sum(made)) < completions:
        made.append(min(max(1, done), completions - done))
    return made


def decide(parents: Sequence[int], proven: Sequence[bool], completions: int, soft: bool, draw: Draw) -> Decided:
    """Completes each prefix `completions` times (`soft`), or in rounds until it is reached."""
    decided = Decided([False] * len(parents), [[] for _ in parents])
    for prefix in (prefix for prefix, right in enumerate(proven) if right):
        reach(decided.reached, parents, prefix)
    for count in [completions] if soft else rounds(completions):
        wanted = [prefix for prefix, reached in enumerate(decided.reached) if soft or not reached]
        if not wanted:
            break
        for prefix, statuses in zip(wanted, draw(wanted, count), strict=True):
            decided.outcomes[prefix] += statuses
            if "correct" in statuses:
                reach(decided.reached, parents, prefix)
    return decided


def reach(reached: list[bool], parents: Sequence[int], prefix: int) -> None:
    """Marks a prefix and all shorter ones of its branch."""
    while prefix != ROOT and not reached[prefix]:
        reached[prefix] = True
        prefix = parents[prefix]


def forest(trees: Sequence[Tree]) -> tuple[list[int], list[bool]]:
    """Parents and proofs of several trees, numbered through."""
    parents: list[int] = []
    for tree in trees:
        first = len(parents)
        parents += [parent if parent == ROOT else parent + first for parent in tree.parents]
    return parents, [proven for tree in trees for proven in tree.proven]
