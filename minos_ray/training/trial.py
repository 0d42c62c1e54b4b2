"""Before a training its model is tried out: rows together must give what transformers gives for each row alone.

Nothing is assumed about what a model computes between its layers. Two short rows go through it, on its own weights
and on every rank: each alone by the model's own forward and plain attention, then both together in one way after the
other, the fastest first. The first that gives the same hidden states and the same losses is taken.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from minos_ray.errors import UserError
from minos_ray.training.losses import PACKED, Losses, Objective, Way
from minos_ray.training.packing import NotPackable, unpackable
from minos_ray.training.rows import Rows, as_table, language_row

Forward = Callable[[Rows, np.ndarray], Losses]

LENGTHS = (11, 7)
SHARED = 4  # tokens of both rows where pairs are trained
# The attention of transformers as models are written, without any kernel.
EAGER = "eager"
# Differences that are rounding, of hidden states and of logits (see `relative` and `mean_difference`): fp32 and half.
LIMITS = {torch.float32: (1e-4, 1e-4)}
HALF = (0.06, 0.06)
# These say something about the machine, not about the model.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


@torch.no_grad()
def choose(forward: Forward, objective: Objective, packing: str, name: str) -> str | None:
    """Takes the first way that is right for the model; a line for the user when it is slower than what was asked for.

    `forward` computes some rows with the objective. All ranks must call it. UserError when no way is right, or when
    `packing` (`resources.train.packing`) is `on` and packed rows are not.
    """
    training = objective.training
    objective.eval()
    rows = short_rows(objective)
    try:
        expected = each_alone(forward, objective, rows)
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        model = type(objective.model).__name__
        raise UserError(f"model '{name}' ({model}) cannot be run: {one_line(error)}") from error
    reasons: dict[Way, str] = {}
    for way in ways(objective, packing):
        reason = difference(forward, objective, way, rows, expected)
        if on_all_ranks(reason is None, expected[1].device):
            break
        reasons[way] = reason or "another rank found a difference"
    else:
        model, reason = type(objective.model).__name__, "; ".join(dict.fromkeys(reasons.values()))
        key = f"resources.train.packing: {packing}: " if packing == "on" else ""
        raise UserError(f"{key}model '{name}' ({model}) is not trained as transformers computes it: {reason}")
    objective.train(training)
    if PACKED not in reasons:
        return None
    logits = " and its own logits" if way.by_model else ""
    return f"model '{name}': padded rows, transformers' {way.attention} attention{logits}; packed: {reasons[PACKED]}"


def ways(objective: Objective, packing: str) -> Iterator[Way]:
    """From the fastest to the one that is nearest to transformers."""
    if packing != "off":
        yield PACKED
    if packing == "on":
        return
    for by_model in (False, True) if objective.kind == "lm" else (False,):
        for attention in dict.fromkeys((objective.attention, EAGER)):
            yield Way(False, attention, by_model)


def short_rows(objective: Objective) -> Rows:
    """Two rows of random tokens, none of which is the padding token."""
    config = objective.model.config.get_text_config()
    rng = np.random.default_rng(0)
    words = rng.permutation(
        np.setdiff1d(np.arange(min(config.vocab_size, 30_000)), [getattr(config, "pad_token_id", None) or 0])
    )
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(LENGTHS):
        ids = rng.choice(words, length).tolist()
        row = language_row(str(number), ids, 1)
        if objective.kind != "lm":
            positions = [length - 1] if objective.kind == "orm" else [length // 2, length - 1]
            row |= {"positions": positions, "targets": [1.0] * len(positions), "correct": True}
        elif objective.beta is not None:
            ids[:SHARED] = rows[0]["ids"][:SHARED] if rows else ids[:SHARED]
            row = {**language_row("0", ids, SHARED), "group": 0, "shared": SHARED if rows else 0}
            row["targets"] = [0.0] * (length - SHARED)
        rows.append(row)
    return Rows(as_table(rows))


def each_alone(forward: Forward, objective: Objective, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """What the heads read [n, width], and the logits (or log-probabilities) [n] of the model's own forward, of each row
    in a pass of its own."""
    results = []
    for by_model in (True, False) if objective.head_is_known else (True,):
        objective.take(Way(False, EAGER, by_model))
        losses = [forward(rows, np.array([row])) for row in range(len(rows))]
        results.append(torch.cat([loss.logits if by_model else loss.read for loss in losses]))
    return results[-1], results[0]


def difference(
    forward: Forward, objective: Objective, way: Way, rows: Rows, expected: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """How rows together differ in a way from each alone, None when they do not."""
    try:
        objective.take(way)
        if way.packed and (reason := unpackable(objective.model)):
            return reason
        losses = forward(rows, np.arange(len(rows)))
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        return one_line(error)
    states, logits = expected
    states_limit, logits_limit = LIMITS.get(states.dtype, HALF)
    # The largest difference of a position's hidden states [n, width], as a fraction of their length.
    states, seen = states.float(), losses.read.float()
    off = ((seen - states).norm(dim=-1) / states.norm(dim=-1)).max().item() if not way.by_model else 0.0
    if not off <= states_limit:
        return f"hidden states differ from those of each row alone by {off:.2g}"
    # The mean difference of logits [n], as a fraction of their mean size where that is above 1.
    off = ((losses.logits - logits).abs().mean() / logits.abs().mean().clamp(min=1)).item()
    if not off <= logits_limit:
        return f"losses differ from those of each row alone by {off:.2g}"
    return None


def one_line(error: Exception) -> str:
    """The type and the first line of an error; a reason why rows cannot be packed has no type."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, NotPackable) else f"{type(error).__name__}: {text}"


def on_all_ranks(right: bool, device: torch.device) -> bool:
    """Whether it is right on every rank."""
    if not dist.is_initialized():
        return right
    wrong = torch.tensor(float(not right), device=device)
    dist.all_reduce(wrong)
    return wrong.item() == 0
