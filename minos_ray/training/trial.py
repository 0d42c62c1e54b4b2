"""Before a training its model is tried out: rows together must give what transformers gives for each row alone.

Of what a model computes between its layers nothing is known here. So two short rows go through it, on its own weights
and on every rank: each alone by the model's own forward and plain attention, then both together in one way after the
other, from the fastest on. The first that gives the same hidden states and the same losses is taken.
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
# The attention of transformers as models are written, without any kernel.
EAGER = "eager"
# What is rounding, relative to the hidden states and to log-probabilities or logits (but at least 1): fp32 and half.
LIMITS = {torch.float32: (1e-4, 1e-4)}
HALF = (0.06, 0.06)
# These say something about the machine, not about the model.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


@torch.no_grad()
def choose(forward: Forward, objective: Objective, packing: str, name: str) -> str | None:
    """Takes the first way that is right for the model; a line when it is a slower one than was asked for.

    `forward` computes some rows with the objective. All ranks must call it. UserError when no way is right, or when
    `packing` (`resources.train.packing`) is `on` and packed rows are not.
    """
    training = objective.training
    objective.eval()
    rows = short_rows(objective)
    try:
        expected = alone(forward, objective, rows)
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        raise UserError(f"model '{name}' ({type(objective.model).__name__}) cannot be run: {said(error)}") from error
    wrong: dict[Way, str] = {}
    for way in ways(objective, packing):
        reason = difference(forward, objective, way, rows, expected)
        if everywhere(reason is None, expected[1].device):
            break
        wrong[way] = reason or "another rank found a difference"
    else:
        model, reason = type(objective.model).__name__, "; ".join(dict.fromkeys(wrong.values()))
        key = f"resources.train.packing: {packing}: " if packing == "on" else ""
        raise UserError(f"{key}model '{name}' ({model}) is not trained as transformers computes it: {reason}")
    objective.train(training)
    if PACKED not in wrong:
        return None
    how = " and its own logits" if way.own else ""
    return f"model '{name}': padded rows, transformers' {way.attention} attention{how}; packed: {wrong[PACKED]}"


def ways(objective: Objective, packing: str) -> Iterator[Way]:
    """From the fastest to the one that is nearest to transformers."""
    if packing != "off":
        yield PACKED
    if packing == "on":
        return
    for own in (False, True) if objective.kind == "lm" else (False,):
        for attention in dict.fromkeys((objective.attention, EAGER)):
            yield Way(False, attention, own)


def short_rows(objective: Objective) -> Rows:
    """Two rows of random tokens, none of which is the padding token."""
    config = objective.model.config.get_text_config()
    rng = np.random.default_rng(0)
    words = rng.permutation(
        np.setdiff1d(np.arange(min(config.vocab_size, 30_000)), [getattr(config, "pad_token_id", None) or 0])
    )
    made: list[dict[str, Any]] = []
    for number, length in enumerate(LENGTHS):
        ids = rng.choice(words, length).tolist()
        places = [length - 1] if objective.kind == "orm" else [length // 2, length - 1]
        verdicts = {"positions": places, "targets": [1.0] * len(places), "first": 1, "correct": True}
        row = {"problem_id": str(number), "ids": ids, **verdicts}
        made.append(language_row(str(number), ids, 1) if objective.kind == "lm" else row)
    return Rows(as_table(made))


def alone(forward: Forward, objective: Objective, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """What the heads read, and the logits (or log-probabilities) of the model's own forward, of each row alone."""
    found = []
    for own in (True, False) if objective.head_is_known else (True,):
        objective.take(Way(False, EAGER, own))
        parts = [forward(rows, np.array([row])) for row in range(len(rows))]
        found.append(torch.cat([part.logits if own else part.read for part in parts]))
    return found[-1], found[0]


def difference(
    forward: Forward, objective: Objective, way: Way, rows: Rows, expected: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """In what rows together differ from each alone in a way, None when they do not."""
    try:
        objective.take(way)
        if way.packed and (reason := unpackable(objective.model)):
            return reason
        found = forward(rows, np.arange(len(rows)))
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        return said(error)
    states, logits = expected
    at_states, at_logits = LIMITS.get(states.dtype, HALF)
    if not way.own and not (off := relative(found.read, states)) <= at_states:
        return f"hidden states differ from those of each row alone by {off:.2g}"
    if not (off := apart(found.logits, logits)) <= at_logits:
        return f"losses differ from those of each row alone by {off:.2g}"
    return None


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of a place's hidden states, as a share of their length."""
    found, expected = found.float(), expected.float()
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The mean difference of logits, as a share of their mean size where that is above 1."""
    return ((found - expected).abs().mean() / expected.abs().mean().clamp(min=1)).item()


def said(error: Exception) -> str:
    """In one line."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, NotPackable) else f"{type(error).__name__}: {text}"


def everywhere(right: bool, device: torch.device) -> bool:
    """Whether all ranks say so."""
    if not dist.is_initialized():
        return right
    wrong = torch.tensor(float(not right), device=device)
    dist.all_reduce(wrong)
    return wrong.item() == 0
