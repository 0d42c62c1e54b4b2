"""Units of candidates: the plan of those that are missing, and the worker that samples them.

A unit is one request: `count` candidates of one problem with indices `first`, `first + 1`, ... The plan works on
columns, since a million problems are four million units.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.candidates.engine import ENGINE_DIED, Generator, Request, Text
from minos_ray.candidates.prompts import prompt_of
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Model, Sample
from minos_ray.store import columns
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.units.actor import Finished, sum_stats

# Problems that are planned at once, to bound memory.
BLOCK = 1 << 15
# Keys of section `sample` that vLLM knows by the same names.
SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
}

THINKING_SIGN = re.compile(r"think|thought|reasoning|channel", re.IGNORECASE)


@dataclass(frozen=True)
class Units:
    """Columns (int32) of units: the number of the problem, the first index, and how many candidates."""

    problem: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.problem)

    def shuffled(self, seed: int) -> "Units":
        """Problems in a seeded order, so that all tasks are about equally long. Units of a problem stay together.

        Most problems are then in one task and in one part, and their prompt is computed once.
        """
        if not len(self):
            return self
        rank = np.random.default_rng(seed).permutation(int(self.problem.max()) + 1)
        order = np.argsort(rank[self.problem], kind="stable")
        return Units(self.problem[order], self.first[order], self.count[order])


def plan(counts: Sequence[int] | np.ndarray, stored: np.ndarray, size: int) -> Units:
    """Units of at most `size` candidates for all that are missing of the first `counts[p]` candidates of problem p.

    `stored` says which are stored, [problems, candidates]; a gap in it is cut into units from its first index on.
    """
    amounts = np.asarray(counts, dtype=np.int64)
    blocks = range(0, len(amounts), BLOCK)
    planned = [plan_block(i, amounts[i : i + BLOCK], stored[i : i + BLOCK], size) for i in blocks]
    empty = np.zeros(0, np.int32)
    return Units(*map(np.concatenate, zip(*planned, strict=True))) if planned else Units(empty, empty, empty)


def plan_block(first_problem: int, counts: np.ndarray, stored: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The units of a block of problems, `counts` [problems] and `stored` [problems, candidates]."""
    width = stored.shape[1]
    # 1 where a candidate is missing, with a column of zeros on both sides: gaps lie between steps up and steps down.
    is_missing = np.zeros((len(counts), width + 2), dtype=np.int8)
    np.greater(np.arange(width) < counts.reshape(-1, 1), stored, out=is_missing[:, 1:-1].view(bool))
    edges = np.diff(is_missing, axis=1)
    problem, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    return chunks(problem + first_problem, start, stop, size)


def chunks(problem: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Each range [start, stop) in chunks of `size`, its last one smaller."""
    counts = -(-(stop - start) // size)
    gap = np.repeat(np.arange(len(problem)), counts)
    number = np.arange(len(gap)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = start[gap] + number * size
    columns = (problem[gap], first, np.minimum(stop[gap] - first, size))
    return tuple(column.astype(np.int32) for column in columns)


def task_units(units: Units, rows: int) -> int:
    """How many units hold about `rows` candidates."""
    return max(1, round(rows * len(units) / units.count.sum())) if len(units) else 1


class Sampler:
    """Samples the candidates of units with its own engine.

    A unit is `count` candidates of the problem `problem_id` with indices from `first` on; it brings the `question`.
    """

    def __init__(self, run: str, model: Model, resources: Engine, sample: Sample, seed: int) -> None:
        path = locate(model, Run(run))
        self.generator = Generator(path, model, resources)
        self.tokenizer, self.prompt = load_tokenizer(path, model.trust_remote_code), prompt_of(sample)
        self.model, self.seed = model.model, seed
        self.sampling = sampling_of(sample, self.tokenizer)

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidates of all units at once, and their numbers."""
        finished = list(self.stream(units, lambda names: True))
        return pa.concat_tables([unit.rows for unit in finished]), sum_stats(unit.stats for unit in finished)

    def stream(self, batch: pa.Table, starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """The candidates of each unit as it is finished, and their numbers: tokens, seconds, finish reasons."""
        units = batch.to_pylist()
        requests = [Request(self.prompt(unit["question"], self.tokenizer), unit["count"]) for unit in units]
        since = time.monotonic()
        for place, texts in self.generator.stream(
            requests,
            self.sampling,
            f"{self.seed} {units[0]['unit_id']}",
            lambda places: starting([units[place]["unit_id"] for place in places]),
        ):
            now = time.monotonic()
            stats, since = numbers(texts, now - since), now
            yield Finished([units[place]["unit_id"]], candidates(units[place], texts, self.model), stats)

    @staticmethod
    def failed(units: pa.Table, model: Model, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty candidates of poisoned units, so that every (problem, index) has a row."""
        empty = Text("", ENGINE_DIED, 0)
        tables = [candidates(unit, [empty] * unit["count"], model.model) for unit in units.to_pylist()]
        rows = pa.concat_tables(tables)
        return rows, {ENGINE_DIED: rows.num_rows}


class GroupSampler:
    """Samples groups of units, each with a random stream of its own and an empty prefix cache.

    A unit of work is a group (column `units`: those of `Sampler`). Where groups are always the same ones, their texts
    are too, whatever was killed before.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.sampler = Sampler(**kwargs)

    def __call__(self, groups: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidates of all units, and their numbers."""
        tables, stats = [], []
        for units in groups["units"].to_pylist():
            # What the engine has kept of other groups would change the last digits of what it computes for this one.
            self.sampler.generator.llm.reset_prefix_cache()
            rows, counts = self.sampler(pa.Table.from_pylist(units))
            tables.append(rows)
            stats.append(counts)
        return pa.concat_tables(tables), sum_stats(stats)

    @staticmethod
    def failed(groups: pa.Table, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty candidates of groups that crashed every engine."""
        units = [unit for group in groups["units"].to_pylist() for unit in group]
        return Sampler.failed(pa.Table.from_pylist(units), **kwargs)


def sampling_of(sample: Sample, tokenizer: Any) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams."""
    values = sample.model_dump(include=SAMPLING)
    stops = {"stop": list(sample.stop) or None, "stop_token_ids": list(sample.stop_token_ids) or None}
    # Special tokens that begin and end a model's thinking (Magistral, gpt-oss) stay in the text; without them the
    # thinking would look like the solution.
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    thinks = any(map(THINKING_SIGN.search, special))
    return {**values, **stops, **({"skip_special_tokens": False} if thinks else {})}


def candidates(unit: dict[str, Any], texts: list[Text], model: str) -> pa.Table:
    """The rows of a unit."""
    problem_id, first = unit["problem_id"], unit["first"]
    rows = [
        {
            "candidate_id": f"{problem_id}/{index}",
            "problem_id": problem_id,
            "index": index,
            "text": text.text,
            "finish_reason": text.reason,
            "num_tokens": text.tokens,
            "model": model,
        }
        for index, text in enumerate(texts, first)
    ]
    return columns.table("candidates", rows)


def numbers(texts: list[Text], seconds: float) -> dict[str, float]:
    """Numbers that are summed over all units: seconds of all actors, tokens, texts by finish reason."""
    return {"seconds": seconds, "tokens": sum(t.tokens for t in texts), **Counter(t.reason for t in texts)}
