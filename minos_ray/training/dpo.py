"""Direct preference optimisation: of two texts after one prompt the chosen one becomes likelier than the rejected one.

Rafailov et al. 2023, equation 7. The reference is the model that the training starts from; the workers compute its
log-probabilities once, before the first step. Tokens that both texts begin with are computed once and have no loss:
they cancel in the margin.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.config.training import Dpo, StepEncoding
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.run import Run
from minos_ray.training.job import Job, make_job, write_table
from minos_ray.training.rows import Data, chunks, language_row, require_rows, split_by_problem

HELD_OUT_ROWS = 400  # a fiftieth of the rows, at most so many


def preference_data(tokenizer: Any, pairs: Sequence[Row], section: Dpo, layout: StepEncoding = encoding.LINES) -> Data:
    """Rows of pairs of critiques: `problem_id`, `question`, `steps`, and the texts `chosen` and `rejected`."""
    dropped: Counter[str] = Counter()
    rows = list(pair_rows(encoded_pairs(tokenizer, pairs, layout), section.max_length, dropped))
    parts = split_by_problem(rows, min(HELD_OUT_ROWS, len(rows) // 50), None, section.seed)
    train, held_out = ([{**row, "group": place // 2} for place, row in enumerate(part)] for part in parts)
    return Data(train, held_out, dropped)


def encoded_pairs(
    tokenizer: Any, pairs: Sequence[Row], layout: StepEncoding
) -> Iterator[tuple[str, list[int], list[int]]]:
    """The problem of each pair, and the tokens of prompt and text, chosen and rejected."""
    for chunk in chunks(pairs):
        sides = [
            encoding.encode_critiques(tokenizer, [(p["question"], p["steps"], p[side]) for p in chunk], layout)
            for side in ("chosen", "rejected")
        ]
        for pair, (chosen, _), (rejected, _) in zip(chunk, *sides, strict=True):
            yield pair["problem_id"], chosen, rejected


def pair_rows(
    pairs: Iterator[tuple[str, list[int], list[int]]], max_length: int, dropped: Counter[str]
) -> Iterator[Row]:
    """Two rows a pair, the chosen one first; the loss is on what follows the tokens that both begin with."""
    for problem_id, chosen, rejected in pairs:
        if max(len(chosen), len(rejected)) > max_length:
            dropped["over_max_length"] += 1
            continue
        both = zip(chosen, rejected, strict=False)
        shared = next((place for place, (one, other) in enumerate(both) if one != other), 0)
        if not shared:
            dropped["same_text"] += 1
            continue
        for ids, of_the_row_before in ((chosen, 0), (rejected, shared)):
            row = language_row(problem_id, ids, shared)
            yield {**row, "targets": [0.0] * len(row["positions"]), "shared": of_the_row_before}


def preference_job(run: Run, artefact: str, start: Model, data: Data, config: Config) -> Job:
    """The training of `artefact`, which has been begun, from `start`, which is its reference too."""
    require_rows("dpo", data)
    name = f"preferences-{artefact.rpartition('/')[2]}"
    return make_job(run, artefact, "lm", start, write_table(run, name, data), config.dpo, config)
