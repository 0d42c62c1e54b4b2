"""Prefixes of solutions, which of them are completed, how often, and what the completions prove (Math-Shepherd, arXiv
2312.08935).

The prefixes of a problem's candidates form a tree: each distinct prefix once, its parent one step shorter. A prefix is
*reached* when some continuation of it ends in the gold answer: a completion of its own, the remaining steps of a right
candidate, or a continuation of a longer prefix, which also continues every shorter one.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from minos_ray.steps.encoding import token_ids

# The last tokens of the prompt that are decoded, to see how the first word of the solution reads behind them.
CONTEXT = 8
Statuses = Sequence[str]
# draw(prefixes, count): statuses of `count` new completions of each of these prefixes; none where there is no room.
Draw = Callable[[list[int], int], Sequence[Statuses]]
ROOT = -1


def prefixes(text: str, steps: Sequence[str]) -> tuple[list[str], bool]:
    """The text up to the end of each step but the last, and whether the steps are parts of the text.

    A prefix ends behind the step and the line breaks that follow it, where the author began the next step. When the
    splitter rewrote more of the text than its white space, the flag is False and the steps are joined anew, one a
    line.
    """
    ends = step_ends(text, steps)
    if ends is None:
        return ["".join(f"{step}\n" for step in steps[:k]) for k in range(1, len(steps))], False
    return [text[:end] for end in ends[:-1]], True


def step_ends(text: str, steps: Sequence[str]) -> list[int] | None:
    """Where each step ends in the text; None when the steps are not its words in their order."""
    ends, end = [], 0
    for step in steps:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        end = start + len(step)
        if not text.startswith(step, start):  # white space may differ
            match = re.compile(r"\s+".join(map(re.escape, step.split()))).match(text, start)
            if match is None:
                return None
            end = match.end()
        # Behind the last line break that follows. A space is left to the completer, whose tokens mostly begin with it.
        gap = len(text[end:]) - len(text[end:].lstrip())
        ends.append(max(end, text.rfind("\n", end, end + gap) + 1))
    return ends


def prefix_id(problem_id: str, prefix: str) -> str:
    """A name for a prefix: the same for the same text of the same problem."""
    return blake2b(f"{problem_id}\0{prefix}".encode(), digest_size=12).hexdigest()


def ids_after(tokenizer: Any, prompt: Sequence[int], texts: Sequence[str]) -> list[tuple[list[int], bool]]:
    """For each text its token ids behind the prompt, and whether prompt and ids then read exactly as prompt and text.

    SentencePiece puts a space before a text that stands alone; behind a line break it does not, so the text is also
    tokenised behind one.
    """
    tokenised = []
    for text, ids in zip(texts, token_ids(tokenizer, texts), strict=True):
        exact = decodes_to(tokenizer, prompt, ids, text)
        if not exact:
            line_break, both = token_ids(tokenizer, ["\n", f"\n{text}"])
            behind = both[len(line_break) :]
            exact = decodes_to(tokenizer, prompt, behind, text)
            ids = behind if exact else ids
        tokenised.append((ids, exact))
    return tokenised


def decodes_to(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], text: str) -> bool:
    """Whether ids behind the prompt decode to the text."""
    context = list(prompt[-CONTEXT:])
    before, after = (
        tokenizer.decode(tokens, clean_up_tokenization_spaces=False) for tokens in (context, [*context, *ids])
    )
    return after == before + text


class Tree(NamedTuple):
    """The prefixes of one problem: the parent of each (an earlier prefix, or ROOT), the text it adds to its parent, and
    whether a right candidate continues it."""

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
    """Whether each prefix is reached, and the statuses of its own completions."""

    reached: list[bool]
    outcomes: list[list[str]]

    def label(self, prefix: int) -> int:
        """The hard label: 1 reached, 0 not reached by any completion, -1 without completions."""
        return 1 if self.reached[prefix] else 0 if self.outcomes[prefix] else -1


def grow(problem_id: str, solutions: Iterable[tuple[Sequence[str], bool]]) -> Tree:
    """The tree of solutions, each given by its prefixes from short to long and whether it is right."""
    tree = Tree(problem_id, [], [], [])
    numbers: dict[str, int] = {}
    for prefixes, correct in solutions:
        parent, before = ROOT, ""
        for prefix in prefixes:
            if prefix not in numbers:
                numbers[prefix] = len(tree.parents)
                tree.parents.append(parent)
                tree.pieces.append(prefix[len(before) :])
                tree.proven.append(False)
            parent, before = numbers[prefix], prefix
            tree.proven[parent] |= correct
    return tree


def rounds(completions: int) -> list[int]:
    """Completions of each round: 1, 1, 2, 4, ... so that at most half of a prefix's completions were not needed."""
    counts: list[int] = []
    while (done := sum(counts)) < completions:
        counts.append(min(max(1, done), completions - done))
    return counts


def decide(parents: Sequence[int], proven: Sequence[bool], completions: int, soft: bool, draw: Draw) -> Decided:
    """Completes each prefix `completions` times (`soft`), or in rounds until it is reached."""
    decided = Decided([False] * len(parents), [[] for _ in parents])
    for prefix in (prefix for prefix, right in enumerate(proven) if right):
        reach(decided.reached, parents, prefix)
    for count in [completions] if soft else rounds(completions):
        undecided = [prefix for prefix, reached in enumerate(decided.reached) if soft or not reached]
        if not undecided:
            break
        for prefix, statuses in zip(undecided, draw(undecided, count), strict=True):
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
    """Parents and proofs of several trees as one: the prefixes are numbered through."""
    parents: list[int] = []
    for tree in trees:
        first = len(parents)
        parents += [parent if parent == ROOT else parent + first for parent in tree.parents]
    return parents, [proven for tree in trees for proven in tree.proven]
