"""The sampling stage: n candidates of every problem, exactly once each, whatever happened before."""

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED
from minos_ray.candidates.plan import Units, plan, task_units
from minos_ray.candidates.prompts import prompt_of
from minos_ray.candidates.sampler import Sampler
from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.graph import lengths, specs
from minos_ray.graph.lengths import DRAWN, PROMPT_TOO_LONG, require_room
from minos_ray.problems.split import read_problems
from minos_ray.store.filesystem import prefetch
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Artefact, Manifest, Run, fingerprint
from minos_ray.work.run_units import Work, compacted_before_pieces, mark_stored, run_units

AMOUNTS = ("n_train", "n_test")
# Units that are named at once: one array holds no more than 2 GiB of ids.
NAMED = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """The problems (table with `problem_id`, `question`) and how many candidates each of them gets."""

    problems: pa.Table
    amounts: np.ndarray

    @property
    def rows(self) -> int:
        """Candidates of all problems."""
        return int(self.amounts.sum())


def sample(config: Config, run: Run) -> Manifest:
    """Candidates for both splits (`n_train`, `n_test`); a rerun asks only for those that are missing."""
    if done := specs.fresh(config, run, "candidates"):
        return done
    wanted = read_wanted(config, run)
    check_prompt(config, run, wanted)
    extend(config, run)
    artefact = specs.begin(config, run, "candidates")
    lengths.make_again(artefact, lengths.length_of(config, "candidates", locate(generator(config), run)), not_refused)
    start = time.monotonic()
    before = sample_missing(config, run, artefact, wanted)
    return finish(config, artefact, wanted, before, time.monotonic() - start)


def not_refused(part: pa.Table) -> pa.Table:
    """The candidates whose prompt was not too long."""
    return part.filter(pc.not_equal(part["finish_reason"], PROMPT_TOO_LONG))


def generator(config: Config) -> Model:
    """The model that samples; UserError when the config names none."""
    if config.generator is None:
        raise UserError("generator.model is missing: name the model that samples candidates, or import candidates")
    return config.generator


def read_wanted(config: Config, run: Run) -> Wanted:
    """All problems and how many candidates they get."""
    problems = read_problems(run, None, ["problem_id", "split", "question"])
    test = pc.equal(problems["split"], "test").to_numpy(zero_copy_only=False)
    return Wanted(problems.combine_chunks(), np.where(test, config.sample.n_test, config.sample.n_train))


def check_prompt(config: Config, run: Run, wanted: Wanted) -> None:
    """Asks for the prompt of the shortest question; UserError about the generator, its tokenizer, the prompt or its
    length comes before any work."""
    model = generator(config)
    path = locate(model, run)
    tokenizer = load_tokenizer(path, model.trust_remote_code)
    prompt, questions = prompt_of(config.sample), wanted.problems["question"]
    if len(questions):
        shortest = pc.index(characters := pc.utf8_length(questions), pc.min(characters)).as_py()
        tokens = len(prompt(questions[shortest].as_py(), tokenizer))
        require_room("sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, path, tokens)


def extend(config: Config, run: Run) -> None:
    """Keeps what is there when only `n_train` or `n_test` has grown: the artefact then lacks the new candidates.

    Its fingerprint changes, so that what was made from the smaller set is stale.
    """
    artefact = run.artefact("candidates")
    old = artefact.begun_inputs()
    inputs = specs.comparable(specs.inputs(config, run, specs.spec(config, "candidates")), old)
    if old is None or fingerprint(specs.still_telling(old)) == fingerprint(inputs):
        return
    grown = json.loads(json.dumps(specs.still_telling(old)))
    section = grown.get("config", {}).get("sample", {})
    larger = all(section.get(key, np.inf) <= getattr(config.sample, key) for key in AMOUNTS)
    section.update({key: getattr(config.sample, key) for key in AMOUNTS})
    if larger and fingerprint(grown) == fingerprint(inputs):
        artefact.adopt(inputs)
        artefact.run.delete(f"{artefact.name}/{DRAWN}")


def stored_candidates(artefact: Artefact, wanted: Wanted) -> np.ndarray:
    """Which candidates are stored, [problems, candidates]; a part that repeats one is deleted.

    Rows are read, not footers: another `sample.unit` or a larger `n_test` cuts the same candidates into other units.
    """
    width = max(wanted.amounts, default=0)
    numbers = {name: number for number, name in enumerate(wanted.problems["problem_id"].to_pylist())}
    names = compacted_before_pieces(artefact.part_names())

    def claims() -> Iterator[tuple[str, np.ndarray]]:
        for name, part in prefetch(lambda name: artefact.read_part(name, ["problem_id", "index"]), names):
            encoded = part["problem_id"].combine_chunks().dictionary_encode()
            problem = np.array([numbers[problem_id] for problem_id in encoded.dictionary.to_pylist()], dtype=np.int64)
            yield name, problem[encoded.indices.to_numpy()] * width + part["index"].to_numpy()

    return mark_stored(artefact, claims(), len(wanted.amounts) * width).reshape(len(wanted.amounts), width)


def missing(config: Config, artefact: Artefact, wanted: Wanted) -> Units:
    """The units that are not stored."""
    return plan(wanted.amounts, stored_candidates(artefact, wanted), config.sample.unit).shuffled(config.seed)


def sample_missing(config: Config, run: Run, artefact: Artefact, wanted: Wanted) -> int:
    """Samples the candidates that are not stored; returns how many were stored before."""
    units = missing(config, artefact, wanted)
    before = wanted.rows - int(units.count.sum())
    if before < wanted.rows:
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
        rows=wanted.rows,
        rows_before=before,
        row_name="candidates",
    )
    # A list, out of which the table goes to Ray's store: for a large run it is not small, and need not stay here too.
    tables = [unit_table(units, wanted.problems)]
    del units
    pa.default_memory_pool().release_unused()
    run_units(run, artefact.name, tables.pop(), work, config.resources)
    return before


def unit_table(units: Units, problems: pa.Table) -> pa.Table:
    """The units as the actors get them; the text of a problem is there once, however many units name it."""
    number, first = pa.array(units.problem, pa.int32()), pa.array(units.first, pa.int32())
    columns = {name: problems[name].combine_chunks() for name in ("problem_id", "question")}
    named = {name: pa.DictionaryArray.from_arrays(number, column) for name, column in columns.items()}
    unit_id = pa.chunked_array(
        [
            unit_ids(columns["problem_id"], number[at : at + NAMED], first[at : at + NAMED])
            for at in range(0, len(units), NAMED)
        ],
        pa.string(),
    )
    return pa.table({"unit_id": unit_id, **named, "first": first, "count": pa.array(units.count, pa.int32())})


def unit_ids(problem_ids: pa.Array, number: pa.Array, first: pa.Array) -> pa.Array:
    """The ids of units, which name the problem and the first index."""
    return pc.binary_join_element_wise(problem_ids.take(number), first.cast(pa.string()), "#")


def tallied(artefact: Artefact) -> tuple[Counter[str], int]:
    """How many candidates ended for which reason, and the tokens of all."""
    reasons, tokens = Counter[str](), 0
    columns = ["finish_reason", "num_tokens"]
    for _, part in prefetch(lambda name: artefact.read_part(name, columns), artefact.part_names()):
        reasons.update({row["values"]: row["counts"] for row in part["finish_reason"].value_counts().to_pylist()})
        tokens += pc.sum(part["num_tokens"]).as_py() or 0
    return reasons, tokens


def mark_resampled(artefact: Artefact) -> None:
    """Must be called before candidates are sampled that a complete artefact has lost: others will take their place.

    Labels, critiques and scores of the lost ones are stale then. No config says so, but a random word in the manifest.
    """
    if artefact.run.exists(f"{artefact.name}/{DRAWN}"):
        artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", secrets.token_hex(8).encode())


def finish(config: Config, artefact: Artefact, wanted: Wanted, before: int, seconds: float) -> Manifest:
    """Makes sure that every (problem, index) is there once, then writes the manifest."""
    if lacks := wanted.rows - int(stored_candidates(artefact, wanted).sum()):
        raise RuntimeError(f"{lacks} candidates are missing; run again")
    artefact.run.delete(f"{artefact.name}/attempts")
    if not artefact.run.exists(f"{artefact.name}/{DRAWN}"):
        artefact.run.write_bytes(f"{artefact.name}/{DRAWN}", b"")  # all candidates were there once
    reasons, tokens = tallied(artefact)
    counts = {"candidates": wanted.rows, "problems": len(wanted.amounts), "tokens": tokens}
    dropped = {"truncated_at_max_tokens": reasons.get("length", 0)}
    dropped |= {reason: reasons.get(reason, 0) for reason in (PROMPT_TOO_LONG, ENGINE_DIED)}
    stats = artefact.stats()
    details: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "candidates_before": before,
        "candidates_per_second": round((wanted.rows - before) / max(seconds, 1e-9), 1),
        "engine_seconds": round(stats.get("seconds", 0.0), 2),
        "model": generator(config).model,
        "prompt": config.sample.prompt,
        **lengths.details(artefact, stats),
    }
    return artefact.complete(counts, dropped, details)
