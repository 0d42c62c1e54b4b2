"""The sampling stage: n candidates of every problem, exactly once each, whatever happened before."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray import cluster, stages
from minos_ray.candidates.engine import PROMPT_TOO_LONG
from minos_ray.candidates.plan import Unit, batch_units, plan, shuffled
from minos_ray.candidates.sampler import UNITS, Sampler
from minos_ray.config import Config, resolve
from minos_ray.errors import UserError
from minos_ray.models import load_tokenizer, locate
from minos_ray.sections import Model
from minos_ray.store import Artefact, Manifest, Run
from minos_ray.units import run_units, stored_ids


def sample(config: Config, run: Run) -> Manifest:
    """Candidates for both splits (`n_train`, `n_test`); a rerun asks only for those that are missing."""
    done = stages.fresh(config, run, "candidates")
    if done is not None:
        return done
    model = generator(config)
    problems = run.artefact("problems").read(columns=["problem_id", "split", "question"]).to_pylist()
    prompts = encode(config, run, model, problems)
    wanted = {p["problem_id"]: amount(config, p["split"]) for p in problems}
    artefact = stages.begin(config, run, "candidates")
    assert isinstance(artefact, Artefact)
    start = time.monotonic()
    before = sum(len(indices) for indices in existing(artefact).values())
    sample_missing(config, run, artefact, wanted, prompts)
    return finish(config, artefact, wanted, before, time.monotonic() - start)


def generator(config: Config) -> Model:
    """The model that samples; UserError when the config names none."""
    if config.generator is None:
        raise UserError("generator.model is missing: name the model that samples candidates, or import candidates")
    return config.generator


def amount(config: Config, split: str) -> int:
    """How many candidates a problem of that split gets."""
    return config.sample.n_test if split == "test" else config.sample.n_train


def encode(config: Config, run: Run, model: Model, problems: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The prompt of every problem as token ids."""
    prompt = resolve(config.sample.prompt)
    tokenizer = load_tokenizer(locate(model, run), model.trust_remote_code)
    return {p["problem_id"]: prompt(p["question"], tokenizer) for p in problems}


def existing(artefact: Artefact) -> dict[str, set[int]]:
    """Problem -> indices of its candidates that are stored."""
    found: dict[str, set[int]] = {}
    for candidate_id in stored_ids(artefact, "candidate_id"):
        problem_id, _, index = candidate_id.rpartition("/")
        found.setdefault(problem_id, set()).add(int(index))
    return found


def sample_missing(
    config: Config, run: Run, artefact: Artefact, wanted: dict[str, int], prompts: dict[str, list[int]]
) -> None:
    """Plans what is not stored and has it sampled."""
    stored = existing(artefact)
    units = shuffled(plan(wanted, stored, config.sample.unit), config.seed)
    if not units:
        return
    resources = config.resources.sample
    cluster.connect(config)
    run_units(
        run,
        artefact.name,
        unit_table(units, prompts),
        Sampler,
        {
            "run": run.path,
            "model": generator(config),
            "resources": resources,
            "sample": config.sample,
            "seed": config.seed,
        },
        resources,
        batch_units=batch_units(units, resources.units_per_task * config.sample.unit),
        label="sample",
        rows=sum(wanted.values()),
        rows_before=sum(len(indices) for indices in stored.values()),
        unit="candidates",
        wait_s=config.resources.wait_s,
    )


def unit_table(units: list[Unit], prompts: dict[str, list[int]]) -> pa.Table:
    """The units with their prompts, as the actors get them."""
    rows = [{**unit._asdict(), "unit_id": unit.unit_id, "prompt": prompts[unit.problem_id]} for unit in units]
    return pa.Table.from_pylist(rows, schema=UNITS)


def finish(config: Config, artefact: Artefact, wanted: dict[str, int], before: int, seconds: float) -> Manifest:
    """Makes sure that every (problem, index) is there once, then writes the manifest."""
    if missing := plan(wanted, existing(artefact), config.sample.unit):
        raise RuntimeError(f"{len(missing)} units of candidates are missing, first {missing[0].unit_id}; run again")
    rows = artefact.read(columns=["finish_reason", "num_tokens"], partial=True)
    reasons = Counter(rows["finish_reason"].to_pylist())
    counts = {"candidates": rows.num_rows, "problems": len(wanted), "tokens": pc.sum(rows["num_tokens"]).as_py() or 0}
    dropped = {"truncated_at_max_tokens": reasons["length"], PROMPT_TOO_LONG: reasons[PROMPT_TOO_LONG]}
    details = {
        "seconds": round(seconds, 2),
        "candidates_before": before,
        "candidates_per_second": round((rows.num_rows - before) / max(seconds, 1e-9), 1),
        "engine_seconds": round(artefact.stats().get("seconds", 0.0), 2),
        "model": generator(config).model,
        "prompt": config.sample.prompt,
    }
    return artefact.complete(counts, dropped, details)
