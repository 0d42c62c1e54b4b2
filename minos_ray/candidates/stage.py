"""Stage `sample`: n candidates of every problem, each exactly once, whatever happened before.

The plan of those that are missing works on columns, since a million problems are four million units. And what would
stop the stage, and what it will write.
"""

import json
import math
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED, GroupSampler, Sampler
from minos_ray.candidates.prompts import prompt_of, prompt_tokens
from minos_ray.cluster.connect import joined_unless_failed
from minos_ray.cluster.room import Bundles
from minos_ray.config.load import Config, NamedFunction
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, errors_of
from minos_ray.graph import lengths, specs
from minos_ray.graph.lengths import DRAWN, PROMPT_TOO_LONG, require_room
from minos_ray.graph.state import Todo
from minos_ray.problems.split import read_problems
from minos_ray.store.filesystem import prefetch
from minos_ray.store.model_files import engine_bytes, is_hub_id, locate
from minos_ray.store.run import Artefact, Manifest, Run, fingerprint
from minos_ray.units.beside import beside
from minos_ray.units.run_units import Work, compacted_before_pieces, mark_stored, run_units

# Problems that are planned at once, to bound memory.
BLOCK = 1 << 15
AMOUNTS = ("n_train", "n_test")
# Units whose ids are made at once: one array holds no more than 2 GiB of them.
IDS_AT_ONCE = 1 << 20
# Candidates of a group: enough to keep an engine full, few enough to lose.
GROUP_CANDIDATES = 1024
# Stored bytes for each token of the limit: about half of it is used, a token is four characters, zstd halves them.
TOKEN_BYTES = 1


@dataclass(frozen=True)
class Targets:
    """The problems (table with `problem_id`, `question`) and how many candidates each of them gets, [problems]."""

    problems: pa.Table
    amounts: np.ndarray

    @property
    def rows(self) -> int:
        """Candidates of all problems."""
        return int(self.amounts.sum())


def sample(config: Config, run: Run, grouped: bool = False) -> Manifest:
    """Samples candidates for both splits (`n_train`, `n_test`); a rerun samples only those that are missing.

    `grouped`: always the same problems are sampled together and stored at once, so that a rerun draws the texts that a
    killed one would have drawn.
    """
    if done := specs.fresh(config, run, "candidates"):
        return done
    targets = read_targets(config, run)
    check_prompt(config, run, targets)
    extend(config, run)
    artefact = specs.begin(config, run, "candidates")
    lengths.make_again(artefact, lengths.length_of(config, "candidates", locate(generator(config), run)), not_refused)
    start = time.monotonic()
    before = sample_missing(config, run, artefact, targets, grouped)
    return finish(config, artefact, targets, before, time.monotonic() - start)


def not_refused(part: pa.Table) -> pa.Table:
    """The candidates whose prompt was not too long."""
    return part.filter(pc.not_equal(part["finish_reason"], PROMPT_TOO_LONG))


def generator(config: Config) -> Model:
    """The model that samples; UserError when the config names none."""
    if config.generator is None:
        raise UserError("generator.model is missing: name the model that samples candidates, or import candidates")
    return config.generator


def read_targets(config: Config, run: Run) -> Targets:
    """All problems and how many candidates each gets."""
    problems = read_problems(run, None, ["problem_id", "split", "question"])
    test = pc.equal(problems["split"], "test").to_numpy(zero_copy_only=False)
    return Targets(problems.combine_chunks(), np.where(test, config.sample.n_test, config.sample.n_train))


def check_prompt(config: Config, run: Run, targets: Targets) -> None:
    """Makes the prompt of the shortest question, to raise a UserError about the generator, its tokenizer, the prompt or
    its length before any work.

    It is made in another process, for transformers brings torch, unless both are here already; meanwhile this one joins
    Ray, if nothing is stored yet. Ray ends again when the check fails.
    """
    model, questions = generator(config), targets.problems["question"]
    path = locate(model, run)
    shortest = pc.index(characters := pc.utf8_length(questions), pc.min(characters)).as_py() if len(questions) else None
    question = None if shortest is None else questions[shortest].as_py()
    arguments = (config.sample, path, model.trust_remote_code, question)
    with ExitStack() as stack:
        if "transformers" in sys.modules:
            tokens = prompt_tokens(*arguments)
        else:
            value = stack.enter_context(beside(f"{prompt_tokens.__module__}:{prompt_tokens.__name__}", *arguments))
            # One listing, not all footers: with parts there, whether rows are missing is seen when they are read.
            if targets.rows and not any(file.startswith("part-") for file in run.files("candidates")):
                stack.enter_context(joined_unless_failed(config.resources))
            tokens = value()
        if question is not None:
            require_room("sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, path, tokens)


def extend(config: Config, run: Run) -> None:
    """Keeps the stored candidates when only `n_train` or `n_test` has grown; the new ones are then missing.

    The fingerprint changes, so that artefacts made from the smaller set are stale.
    """
    artefact = run.artefact("candidates")
    before = artefact.begun_inputs()
    inputs = specs.comparable(specs.inputs(config, run, specs.spec(config, "candidates")), before)
    if before is None or fingerprint(specs.significant(before)) == fingerprint(inputs):
        return
    grown = json.loads(json.dumps(specs.significant(before)))
    section = grown.get("config", {}).get("sample", {})
    larger = all(section.get(key, np.inf) <= getattr(config.sample, key) for key in AMOUNTS)
    section.update({key: getattr(config.sample, key) for key in AMOUNTS})
    if larger and fingerprint(grown) == fingerprint(inputs):
        artefact.adopt(inputs)
        artefact.run.delete(f"{artefact.name}/{DRAWN}")


def stored_candidates(artefact: Artefact, targets: Targets) -> np.ndarray:
    """Which candidates are stored, [problems, candidates]; a part that repeats one is deleted.

    Rows are read, not footers: another `sample.unit` or a larger `n_test` cuts the same candidates into other units.
    """
    width = max(targets.amounts, default=0)
    numbers = {name: number for number, name in enumerate(targets.problems["problem_id"].to_pylist())}
    names = compacted_before_pieces(artefact.part_names())

    def claims() -> Iterator[tuple[str, np.ndarray]]:
        columns, encode = ["problem_id", "index"], ["problem_id"]
        for name, part in prefetch(lambda name: artefact.read_part(name, columns, encode), names):
            encoded = part["problem_id"].unify_dictionaries().combine_chunks()
            problem = np.array([numbers[problem_id] for problem_id in encoded.dictionary.to_pylist()], dtype=np.int64)
            yield name, problem[encoded.indices.to_numpy()] * width + part["index"].to_numpy()

    return mark_stored(artefact, claims(), len(targets.amounts) * width).reshape(len(targets.amounts), width)


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
    # Each gap [start, stop) in chunks of `size`, its last one smaller.
    chunks = -(-(stop - start) // size)
    gap = np.repeat(np.arange(len(problem)), chunks)
    number = np.arange(len(gap)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    first = start[gap] + number * size
    columns = (problem[gap] + first_problem, first, np.minimum(stop[gap] - first, size))
    return tuple(column.astype(np.int32) for column in columns)


def task_units(units: Units, rows: int) -> int:
    """How many units hold about `rows` candidates."""
    return max(1, round(rows * len(units) / units.count.sum())) if len(units) else 1


def missing(config: Config, artefact: Artefact, targets: Targets) -> Units:
    """The units that are not stored."""
    return plan(targets.amounts, stored_candidates(artefact, targets), config.sample.unit).shuffled(config.seed)


def sample_missing(config: Config, run: Run, artefact: Artefact, targets: Targets, grouped: bool = False) -> int:
    """Samples the candidates that are not stored; returns how many were stored before."""
    units = missing(config, artefact, targets)
    before = targets.rows - int(units.count.sum())
    if before < targets.rows:
        mark_resampled(artefact)
    resources = config.resources.sample
    work = Work(
        label="sample",
        pool="sample",
        worker=Sampler,
        kwargs={
            "run": run.path,
            "model": generator(config),
            "resources": resources,
            "sample": config.sample,
            "seed": config.seed,
        },
        batch_units=task_units(units, resources.units_per_task * config.sample.unit),
        least_units=task_units(units, resources.max_num_seqs),
        rows=targets.rows,
        rows_before=before,
        row_name="candidates",
    )
    # Popped from a list, so that no reference stays here: in a large run the table is large, and Ray's store holds it.
    tables = [unit_table(units, targets.problems)]
    if grouped:
        work = replace(work, worker=GroupSampler, batch_units=1, least_units=None, most_units=1)
        tables = [group_table(units, tables.pop(), targets)]
    del units
    pa.default_memory_pool().release_unused()
    run_units(run, artefact.name, tables.pop(), work, config.resources)
    return before


def unit_table(units: Units, problems: pa.Table) -> pa.Table:
    """The units as the actors get them. Dictionary columns hold the text of a problem once for all of its units."""
    number, first = pa.array(units.problem, pa.int32()), pa.array(units.first, pa.int32())
    columns = {name: problems[name].combine_chunks() for name in ("problem_id", "question")}
    encoded = {name: pa.DictionaryArray.from_arrays(number, column) for name, column in columns.items()}
    unit_ids = []
    for i in range(0, len(units), IDS_AT_ONCE):
        problem_ids = columns["problem_id"].take(number[i : i + IDS_AT_ONCE])
        unit_ids.append(pc.binary_join_element_wise(problem_ids, first[i : i + IDS_AT_ONCE].cast(pa.string()), "#"))
    unit_id = pa.chunked_array(unit_ids, pa.string())
    return pa.table({"unit_id": unit_id, **encoded, "first": first, "count": pa.array(units.count, pa.int32())})


def group_table(units: Units, table: pa.Table, targets: Targets) -> pa.Table:
    """The units, as `unit_table` has them, in groups of neighbouring problems, the same whatever is missing."""
    size = max(1, GROUP_CANDIDATES // int(targets.amounts.max()))
    in_order = np.lexsort((units.first, units.problem))
    numbers, rows = units.problem[in_order] // size, table.take(in_order).to_pylist()
    groups = [[row for _, row in group] for _, group in groupby(zip(numbers, rows, strict=True), itemgetter(0))]
    return pa.Table.from_pylist([{"unit_id": group[0]["unit_id"], "units": group} for group in groups])


def count_reasons(artefact: Artefact) -> tuple[Counter[str], int]:
    """Candidates by finish reason, and the tokens of all."""
    reasons, tokens = Counter[str](), 0
    columns = ["finish_reason", "num_tokens"]
    for _, part in prefetch(lambda name: artefact.read_part(name, columns), artefact.part_names()):
        reasons.update({row["values"]: row["counts"] for row in part["finish_reason"].value_counts().to_pylist()})
        tokens += pc.sum(part["num_tokens"]).as_py() or 0
    return reasons, tokens


def mark_resampled(artefact: Artefact) -> None:
    """Must be called before candidates are sampled that a complete artefact has lost: others will take their place.

    Labels, critiques and scores of the lost ones are then stale. No config shows that, so a token in the manifest does.
    """
    if artefact.run.exists(f"{artefact.name}/{DRAWN}"):
        artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", secrets.token_hex(8).encode())


def finish(config: Config, artefact: Artefact, targets: Targets, before: int, seconds: float) -> Manifest:
    """Checks that every (problem, index) is stored once, then writes the manifest."""
    if missing_rows := targets.rows - int(stored_candidates(artefact, targets).sum()):
        raise RuntimeError(f"{missing_rows} candidates are missing; run again")
    artefact.run.delete(f"{artefact.name}/attempts")
    if not artefact.run.exists(f"{artefact.name}/{DRAWN}"):  # from now on others may rest on a candidate that is lost
        artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", b"")
    reasons, tokens = count_reasons(artefact)
    counts = {"candidates": targets.rows, "problems": len(targets.amounts), "tokens": tokens}
    dropped = {"truncated_at_max_tokens": reasons.get("length", 0)}
    dropped |= {reason: reasons.get(reason, 0) for reason in (PROMPT_TOO_LONG, ENGINE_DIED)}
    stats = artefact.stats()
    details: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "candidates_before": before,
        "candidates_per_second": round((targets.rows - before) / max(seconds, 1e-9), 1),
        "engine_seconds": round(stats.get("seconds", 0.0), 2),
        "model": generator(config).model,
        "prompt": config.sample.prompt,
        **lengths.details(artefact, stats),
    }
    return artefact.complete(counts, dropped, details)


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The prompt of the generator, which rollouts need too."""
    if "sample" in stages or ("label" in stages and config.label.rollouts):
        form = "(question, tokenizer) -> token ids"
        yield NamedFunction("sample.prompt", config.sample.prompt, form, ("1 + 1?", None))


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The generator, with its key; it completes the rollouts that name no completer."""
    rollouts = config.label.rollouts if "label" in stages else None
    if config.generator and ("sample" in stages or (rollouts and not rollouts.completer)):
        yield "generator.model", config.generator


def problems_of(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """One line for each thing wrong with the prompt or the lengths."""
    if "sample" in todo.stages or "rollouts" in todo.artefacts:
        yield from errors_of(prompt_of, config.sample)
    if "candidates" in todo.artefacts and config.generator:
        yield from length_problems(
            "sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, config.generator, run
        )


def length_problems(key: str, tokens: int, pool: str, engine: Engine, model: Model, run: Run) -> list[str]:
    """No room for a prompt beside `tokens`, in the engine or in a model that lies on this machine."""
    path = None
    if not is_hub_id(model.model) and not model.model.startswith("run:"):
        with suppress(UserError):  # `graph.models` names what is wrong with the model
            path = locate(model, run)
    return errors_of(require_room, key, tokens, pool, engine, path)


def gpu_problems(config: Config, run: Run, pools: Mapping[str, Bundles], gpu_gb: float) -> Iterator[str]:
    """The generator, when GPUs of `gpu_gb` cannot hold its weights."""
    if "sample" in pools and config.generator:
        yield from weight_problems("sample", config.resources.sample, config.generator, run, gpu_gb)


def weight_problems(pool: str, engine: Engine, model: Model, run: Run, gpu_gb: float) -> Iterator[str]:
    """An engine whose weights do not fit on its GPUs."""
    usable = gpu_gb * engine.gpu_memory_utilization * min(1, engine.gpus)
    gpus = math.ceil(engine.gpus) * engine.pipeline_parallel_size
    weights = engine_bytes(model, run, engine.dtype) / 1e9 / max(1, gpus)
    if gpus and weights > usable:
        yield (
            f"resources.{pool}: the weights of '{model.model}' take {weights:.2f} GB on each of "
            f"{gpus} GPUs, which offer {usable:.2f}; raise resources.{pool}.gpus"
        )


def bytes_of_candidates(config: Config, run: Run) -> float:
    """Bytes of all candidates; 0 when it is not known how many problems there are."""
    problems: dict[str, int | None] = {}
    if manifest := run.artefact("problems").manifest():
        problems = dict(manifest.counts)
    elif config.problems:
        problems = {"train": config.problems.train.limit, "test": config.problems.test.limit}
    counts = {"train": config.sample.n_train, "test": config.sample.n_test}
    rows = sum(count * (problems.get(split) or 0) for split, count in counts.items())
    return rows * config.sample.max_tokens * TOKEN_BYTES
