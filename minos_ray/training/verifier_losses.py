"""Losses of verifiers: pure functions of a packed micro-batch that `reward.loss` names, the check of a user's own, and
the groups of right and wrong solutions of one problem that some of them compare: drawn, checked, and given room.

A loss is called as `loss(logits, targets, rows)`, all [n] over the trained positions: the logits (fp32), the targets
(0 to 1, 1 is right) and the number of the row that each position belongs to. It returns the summed loss and its count:
what the sum is divided by, over all micro-batches of a step, a function of targets and numbers alone. One that has a
fourth parameter `problems` [n] gets the right and wrong solutions of a problem together: positions with the same number
are of one group, which always lies in one micro-batch (`reward.group_rows`).
"""

import inspect
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional

from minos_ray.config.load import Config, resolve
from minos_ray.config.training import Kind, Reward
from minos_ray.errors import UserError
from minos_ray.problems.split import parts_of_problems
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Run
from minos_ray.training.data import Data, in_layers, train_questions

Loss = Callable[..., tuple[torch.Tensor, Any]]
FORM = "(logits, targets, rows) or (logits, targets, rows, problems) -> (summed loss, count)"


def binary(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Binary cross-entropy of every position, whose target may be soft; the count is of positions."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), len(targets)


def pairwise(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, problems: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bradley-Terry over all pairs of a right and a wrong solution of one problem (Ouyang et al. 2022, equation 1).

    -log sigmoid(right - wrong), averaged over the pairs of each group, as there over those of a prompt; the count is of
    groups. ValueError for rows with more than one position: it compares solutions by the one score of an ORM.
    """
    if (rows[1:] == rows[:-1]).any():
        raise ValueError("it compares solutions by one score of each, which a PRM and orm_positions=every_token lack")
    require_hard(targets)
    together = problems[:, None] == problems
    pairs = (together & (targets[:, None] > targets)).float()
    # The pairs of a group in every row of it: right solutions times wrong ones.
    sizes = (together.float() @ targets) * (together.float() @ (1 - targets))
    weights = pairs / sizes.clamp(min=1)
    return (weights * functional.softplus(logits - logits[:, None])).sum(), weights.sum()


def step_ranking(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, margin: float = 4.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The comparative loss of PQM over the steps of each solution (Li and Li 2024, arXiv 2410.11287, equation 10).

    Of every right step t, -log(exp Q_t / (exp Q_q summed over the right steps q up to t + exp(Q_w + margin) summed over
    all wrong steps w)). Q of the start, before any step, is 0: it counts as a right step in front, where a solution has
    a wrong one. Averaged over the right steps of a solution; the count is of solutions. With the one score of an ORM
    it is the binary loss with a margin.
    """
    require_hard(targets)
    solutions, steps_of = torch.unique(rows, return_inverse=True)
    starts = torch.arange(len(solutions), device=rows.device)
    scores, owners = torch.cat([logits.new_zeros(len(starts)), logits]), torch.cat([starts, steps_of])
    right = torch.cat([torch.ones_like(starts, dtype=torch.bool), targets == 1])
    same = owners[:, None] == owners
    below = same & (~right | torch.ones_like(same).tril())
    terms = torch.where(right, scores, scores + margin).expand_as(same)
    losses = torch.where(below, terms, -torch.inf).logsumexp(1) - scores
    counted = right.clone()
    counted[: len(starts)] = (same & ~right).any(1)[: len(starts)]
    sizes = (same & counted).sum(1)
    return (losses / sizes.clamp(min=1))[counted].sum(), torch.tensor(len(starts), device=rows.device)


def require_hard(targets: torch.Tensor) -> None:
    """ValueError where a step is neither right nor wrong."""
    if ((targets != 0) & (targets != 1)).any():
        raise ValueError("it takes targets 0 and 1, no soft ones")


def compares_solutions(loss: Loss) -> bool:
    """Whether a loss gets the solutions of a problem together."""
    return "problems" in inspect.signature(loss).parameters


def computed(
    loss: Loss, logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, problems: torch.Tensor
) -> tuple[torch.Tensor, Any]:
    """The summed loss and the count of a micro-batch."""
    arguments = (logits, targets, rows, problems) if compares_solutions(loss) else (logits, targets, rows)
    total, count = loss(*arguments)
    if torch.is_grad_enabled() and not total.requires_grad:
        # Nothing to compare: a backward pass is made all the same, as on the other ranks.
        total = total + 0 * logits.sum()
    return total, count


def check_loss(section: Reward, kinds: Sequence[Kind]) -> None:
    """UserError when `reward.loss` is not there, or is no loss for these kinds of verifiers and these labels."""
    loss = resolve_loss(section)
    if compares_solutions(loss) and section.wrong_share is not None:
        raise UserError(
            f"reward.wrong_share = {section.wrong_share}: {section.loss} compares right and wrong solutions of one "
            "problem, whose numbers are not balanced; set it to null"
        )
    for kind in kinds:
        several = kind == "prm" or section.orm_positions == "every_token"
        rows = torch.tensor([0, 0, 0, 1, 1, 2, 2] if several else [0, 1, 2])
        targets = torch.tensor([1.0, 0, 0, 1, 1, 0, 0] if several else [1.0, 0, 1])
        if kind == "prm" and section.soft_labels:
            targets = (targets + 0.5) / 2
        problems = (rows == 2).long()
        counts = []
        for size, logits in ((len(rows), rows * 0.5), (len(rows), targets - rows), (0, rows * 0.5)):
            logits = logits.float()[:size].requires_grad_()
            try:
                total, count = computed(loss, logits, targets[:size], rows[:size], problems[:size])
                finite = torch.isfinite(torch.cat([total[None], *torch.autograd.grad(total, logits)])).all()
                counts.append(float(count))
            except Exception as error:
                reason = f"it fails on an example of {kind}s ({type(error).__name__}: {' '.join(str(error).split())})"
                raise unfit(section, reason) from error
            if not finite:
                raise unfit(section, f"on an example of {kind}s of {size} positions its loss or gradient is not finite")
        first, second, nothing = counts
        if first != second or not first > 0 or nothing:
            reason = f"on an example its count is {first:g}, for other logits {second:g}, of no positions {nothing:g}"
            raise unfit(section, f"{reason}; it must be above 0, the same, and 0")


def resolve_loss(section: Reward) -> Loss:
    """The function of `reward.loss`; UserError with the key when there is none that can be called so."""
    try:
        loss = resolve(section.loss)
        parameters = [torch.zeros(0)] * (4 if compares_solutions(loss) else 3)
        inspect.signature(loss).bind(*parameters)
    except UserError as error:
        raise UserError(f"reward.loss: {error}") from error
    except TypeError as error:
        raise unfit(section, f"it cannot be called so ({error})") from error
    return loss


def unfit(section: Reward, reason: str) -> UserError:
    """The error for a function that is no loss."""
    return UserError(f"reward.loss = {section.loss}: {reason}; what is wanted is {FORM}")


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
    train_rows, held_out_rows = (
        [{**row, "group": number} for number, rows in enumerate(groups) for row in rows] for groups in (train, held_out)
    )
    return train_rows, held_out_rows


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
