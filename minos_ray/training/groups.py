"""Groups of right and wrong solutions of one problem, for losses that compare them: drawn, checked, and given room."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.config.training import Reward
from minos_ray.errors import UserError
from minos_ray.problems.split import parts_of_problems
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Run
from minos_ray.training.rows import Data, in_layers, train_questions


def in_groups(parts: list[list[Row]], section: Reward, dropped: Counter[str]) -> tuple[list[Row], list[Row]]:
    """Rows to train on and held-out ones, numbered by the groups whose solutions a loss compares.

    Of the rows to train on those in no group are dropped, and `reward.rows` is met by groups in a seeded order, so that
    a smaller limit gives a subset. Held-out rows in no group stay, each for itself: they are judged one by one as well.
    """
    train, held_out = [], []
    for reason, rows in groups_of(parts[0], section.group_rows, section.seed):
        if reason is None:
            train.append(rows)
        else:
            dropped[reason] += len(rows)
    for reason, rows in groups_of(parts[1], section.group_rows, section.seed):
        held_out += [rows] if reason is None else [[row] for row in rows]
    if section.rows is not None:
        train = in_layers(train, lambda group: group[0], section.seed)
        usable = sum(total <= section.rows for total in accumulate(map(len, train)))
        dropped.update(["over_limit"] * sum(map(len, train[usable:])))
        train = train[:usable]
    return numbered(train), numbered(held_out)


def numbered(groups: list[list[Row]]) -> list[Row]:
    """The rows of all groups, each with the number of its own."""
    return [{**row, "group": number} for number, rows in enumerate(groups) for row in rows]


def groups_of(rows: list[Row], size: int, seed: int) -> Iterator[tuple[str | None, list[Row]]]:
    """Groups of at most `size` rows of one problem, right and wrong ones in each, drawn by seed and problem.

    Rows that are in none come with the reason: their problem has no solution of the other outcome (`no_partner`), or
    too few of them for groups of that size (`over_group_rows`).
    """
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
    for problem in sorted(by_problem):
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in random.Random(f"group {seed} {problem}").sample(by_problem[problem], len(by_problem[problem])):
            sides[bool(row["correct"])].append(row)
        fewer, most = sorted(sides, key=len)
        count = min(len(fewer), math.ceil(len(by_problem[problem]) / size))
        for number in range(count):
            # Dealt from both ends, so that groups differ by one row at most.
            few, many = fewer[number::count], most[count - 1 - number :: count]
            yield None, few + many[: size - len(few)]
            if len(few) + len(many) > size:
                yield "over_group_rows", many[size - len(few) :]
        if not count:
            yield "no_partner", most


def check_partners(config: Config, run: Run) -> None:
    """UserError when no train problem has a right and a wrong solution, which the loss would compare."""
    outcomes: set[tuple[str, bool]] = set()
    for part in parts_of_problems(
        run.artefact("labels"), ["problem_id", "correct", "status"], train_questions(run).keys()
    ):
        graded = part.filter(pc.is_in(part["status"], value_set=pa.array(GRADED)))
        pairs = graded.group_by(["problem_id", "correct"]).aggregate([]).to_pylist()
        outcomes.update((row["problem_id"], bool(row["correct"])) for row in pairs)
        if any((row["problem_id"], not row["correct"]) in outcomes for row in pairs):
            return
    raise UserError(
        f"reward.loss = {config.reward.loss}: it compares right and wrong solutions of one problem, and none of "
        f"{len(outcomes)} train problems has both"
    )


def require_groups(config: Config, data: Data) -> None:
    """UserError when nothing held out can be compared, or when a pass has no room for a group that is."""
    if not data.held_out or "group" not in data.held_out[0]:
        return
    compared = Counter(row["group"] for row in data.held_out)
    if max(compared.values()) == 1:
        raise UserError(
            f"reward.eval_rows: no held-out problem has a right and a wrong solution, which {config.reward.loss} "
            "compares; hold out more rows"
        )
    tokens: Counter[tuple[bool, int]] = Counter()
    for part, rows in enumerate((data.train, data.held_out)):
        for row in rows:
            tokens[part == 1, row["group"]] += len(row["ids"])
    longest, room = max(tokens.values()), config.resources.train.micro_tokens
    if longest > room:
        raise UserError(
            f"reward.group_rows = {config.reward.group_rows}: a group has up to {longest} tokens, and a pass holds "
            f"resources.train.micro_tokens = {room}; lower the one or raise the other"
        )
