"""Evaluation block by block: every part of it adds a block by itself, and the sums are merged in the order of blocks.

So the result is the same, to the last digit, however many processes work on the blocks.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from minos_ray.evaluation.answers import Keys
from minos_ray.evaluation.candidates import Block, Plan, read_blocks
from minos_ray.store.run import Run


class Part(Protocol):
    """A part of the evaluation: one of selection, meta-evaluation, error types, counts."""

    def add(self, block: Block) -> None:
        """Adds a block to an empty part."""

    def merge(self, block: Any) -> None:
        """Adds a part of the same type, to which the block that follows was added."""


def add_blocks(
    run: Run, plan: Plan, verifiers: Sequence[str], parts: Sequence[Part], keys: Keys | None = None
) -> Iterator[int]:
    """Adds all blocks of the plan to the parts, which are empty; yields the number of problems of each block.

    Blocks have scores and what is known of sampling where there are `keys`, else labels alone.
    """
    empty = copy.deepcopy(parts)
    for block in read_blocks(run, plan, verifiers, keys, sampling=keys is not None):
        added = copy.deepcopy(empty)
        for total, part in zip(parts, added, strict=True):
            part.add(block)
            total.merge(part)
        yield block.candidates.problems
