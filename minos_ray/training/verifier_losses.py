"""Losses of verifiers: pure functions of a packed micro-batch that `reward.loss` names, and the check of a user's own.

A loss is called as `loss(logits, targets, rows)`, all [n] over the trained positions: the logits (fp32), the targets
(0 to 1, 1 is right) and the number of the row that each position belongs to. It returns the summed loss and its count:
what the sum is divided by, over all micro-batches of a step, a function of targets and numbers alone. One that has a
fourth parameter `problems` [n] gets the right and wrong solutions of a problem together: positions with the same number
are of one group, which always lies in one micro-batch (`reward.group_rows`).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from minos_ray.config.load import resolve
from minos_ray.config.training import Kind, Reward
from minos_ray.errors import UserError

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
