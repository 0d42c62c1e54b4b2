"""Critiques that the critic of a round writes of labelled train candidates: some to learn from, some to measure it.

A unit of work is a group of candidates, always the same ones and with a random stream of its own: whatever was killed
before, a rerun writes the same critiques.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED, Text
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Judge, Model
from minos_ray.config.training import Refine
from minos_ray.critiques.select import select
from minos_ray.errors import UserError
from minos_ray.graph import lengths
from minos_ray.graph.specs import begin, critic_name, fresh, spec
from minos_ray.problems.split import NOT_DRAWN
from minos_ray.scoring.judge import CriticJudge
from minos_ray.steps.critique_text import agreement_of, parse_critique
from minos_ray.store import columns
from minos_ray.store.columns import Row
from minos_ray.store.model_files import locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.training.reward import labelled
from minos_ray.training.rows import train_questions
from minos_ray.training.sft import held_out_problems
from minos_ray.units.run_units import Work, run_units, stored_units

SAMPLED, HELD_OUT = "sampled", "held-out"
# Critiques of one unit at most: enough to keep an engine full, few enough to lose.
UNIT_CRITIQUES = 512
# Candidates of a unit: several units where one critique of each is written, for several actors.
UNIT_CANDIDATES = 64

CANDIDATE = pa.struct(
    [
        ("unit_id", pa.string()),  # of the candidate
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("steps", columns.STRINGS),
        ("step_labels", columns.LABELS),
        ("correct", pa.bool_()),
    ]
)
UNITS = pa.schema([("unit_id", pa.string()), ("artefact", pa.string()), ("candidates", pa.list_(CANDIDATE))])


class CritiqueSampler:
    """Writes the critiques of units (schema `UNITS`) and compares them with the labels."""

    def __init__(self, run: str, model: Model, resources: Engine, section: Refine, seed: int) -> None:
        self.critic, self.section = CriticJudge(run, model, resources, Judge(), seed), section

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of the schema `sampled`, and counts: critiques, tokens, seconds, prompts that were too long."""
        start = time.monotonic()
        rows: list[Row] = []
        for unit in units.to_pylist():
            # What the engine has kept of other units would change the last digits of what it computes for this one.
            self.critic.generator.llm.reset_prefix_cache()
            texts = self.critic.critiques(unit["candidates"], how(self.section, unit["artefact"]))
            for candidate, critiques in zip(unit["candidates"], texts, strict=True):
                rows += self.rows(candidate, critiques)
        return as_table(rows, time.monotonic() - start)

    def rows(self, candidate: Row, texts: list[Text]) -> Iterator[Row]:
        """The rows of one candidate."""
        for row, text in zip(critique_rows(candidate, texts), texts, strict=True):
            if text.logprobs is not None and row["agreement"] != "unreadable":
                critique = parse_critique(text.text, len(candidate["steps"]))
                row["right"], row["steps_right"] = self.critic.soft_verdicts(text, critique)
            yield row

    @staticmethod
    def failed(units: pa.Table, section: Refine, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty critiques of units that crashed every engine."""
        rows: list[Row] = []
        for unit in units.to_pylist():
            texts = [Text("", ENGINE_DIED, 0)] * how(section, unit["artefact"]).samples
            rows += [row for candidate in unit["candidates"] for row in critique_rows(candidate, texts)]
        return as_table(rows, 0.0)


def how(section: Refine, artefact: str) -> Judge:
    """How critiques are written: several to choose from, or the likeliest one with its probabilities to measure."""
    if artefact.startswith(HELD_OUT):
        return Judge(max_tokens=section.max_tokens, soft=True)
    return Judge(samples=section.samples, temperature=section.temperature, max_tokens=section.max_tokens)


def critique_rows(candidate: Row, texts: list[Text]) -> Iterator[Row]:
    """What the critiques of a candidate say, and whether its labels say the same."""
    for number, text in enumerate(texts):
        critique = parse_critique(text.text, len(candidate["steps"]))
        yield {
            "critique_id": f"{candidate['unit_id']}#{number:03}",
            "candidate_id": candidate["unit_id"],
            "problem_id": candidate["problem_id"],
            "text": text.text,
            "status": critique.status if text.reason == "stop" else text.reason,
            "step_verdicts": critique.step_verdicts,
            "final_verdict": critique.final_verdict,
            "agreement": agreement_of(critique, candidate["step_labels"], candidate["correct"])
            if text.reason == "stop"
            else "unreadable",
            "right": None,
            "steps_right": [],
            "tokens": text.tokens,
        }


def as_table(rows: list[Row], seconds: float) -> tuple[pa.Table, dict[str, float]]:
    """Rows and their numbers; the seconds are those of all actors."""
    numbers = {"critiques": len(rows), "tokens": sum(row["tokens"] for row in rows), "seconds": seconds}
    too_long = sum(row["status"] == lengths.PROMPT_TOO_LONG for row in rows)
    return columns.table(SAMPLED, rows), numbers | {lengths.PROMPT_TOO_LONG: too_long}


def write_critiques(config: Config, run: Run, number: int, kinds: list[str]) -> None:
    """`sampled/` and `held-out/` critiques by the critic of a round, those of `kinds` that are missing, in one pool."""
    name = critic_name(number)
    missing = [f"{kind}/{name}" for kind in kinds if not fresh(config, run, f"{kind}/{name}")]
    if not missing:
        return
    model = Model(model=f"run:models/{name}", trust_remote_code=config.base.trust_remote_code)
    path, engine = locate(model, run), config.resources.judge
    lengths.require_room("refine.max_tokens", config.refine.max_tokens, "judge", engine, path)
    planned = [(begin(config, run, artefact), plan(config, run, artefact, number)) for artefact in missing]
    todo = []
    for artefact, (units, _) in planned:
        lengths.make_again(artefact, lengths.length_of(config, artefact.name, path))
        todo.append(units.filter(pa.array(~stored(config, artefact, units))))
    rows = sum(size(config, units) for _, (units, _) in planned)
    start = time.monotonic()
    work = Work(
        label=f"critiques by {name}",
        pool="judge",
        worker=CritiqueSampler,
        kwargs={"run": run.path, "model": model, "resources": engine, "section": config.refine, "seed": config.seed},
        batch_units=1,
        rows=rows,
        rows_before=rows - sum(size(config, units) for units in todo),
        row_name="critiques",
    )
    stats = run_units(run, missing[0], pa.concat_tables(todo), work, config.resources)
    seconds = time.monotonic() - start
    for artefact, (units, not_drawn) in planned:
        finish(config, artefact, units, seconds, stats.get("seconds", 0.0), not_drawn)


def plan(config: Config, run: Run, artefact: str, number: int) -> tuple[pa.Table, int]:
    """The units of an artefact, candidates of a problem side by side, and how many candidates were not drawn;
    UserError where there are no candidates."""
    chosen, not_drawn = candidates(config, run, number, held_out=artefact.startswith(HELD_OUT))
    rows = [{**row, "unit_id": row["candidate_id"]} for row in chosen]
    most = min(UNIT_CANDIDATES, max(1, UNIT_CRITIQUES // how(config.refine, artefact).samples))
    groups = [rows[first : first + most] for first in range(0, len(rows), most)]
    units = [{"unit_id": f"{artefact} {g[0]['unit_id']}", "artefact": artefact, "candidates": g} for g in groups]
    return pa.Table.from_pylist(units, schema=UNITS), not_drawn


def candidates(config: Config, run: Run, number: int, held_out: bool) -> tuple[list[Row], int]:
    """Labelled train candidates, half of them wrong, problems by turns; sorted by id, with their questions; and how
    many candidates other such problems have that are not `drawn`.

    Those that measure a critic are of problems that stage 2 holds out, and the same in every round. Those to learn from
    are of other problems, and others in each round; first come those without a bought critique.
    """
    apart = held_out_problems(run, config.reward)
    rows, dropped = labelled(run, apart if held_out else train_questions(run).keys() - apart)
    labels = [row for row in rows if len(row["step_labels"]) == len(row["steps"])]
    if held_out:
        chosen = select(labels, config.refine.held_out, 0.5, config.seed).rows
        if len({bool(row["correct"]) for row in chosen}) < 2:
            raise UserError(
                "refine: the problems that stage 2 holds out lack right or wrong candidates to measure critics by; "
                f"raise reward.eval_rows = {config.reward.eval_rows}, or lower it where it holds out all problems"
            )
    else:
        bought: set[str] = set()
        if "critiques" in spec(config, f"{SAMPLED}/{critic_name(number)}").needs:
            bought.update(run.artefact("critiques").read(["candidate_id"])["candidate_id"].to_pylist())
        unseen = [row for row in labels if row["candidate_id"] not in bought]
        seed, count = config.seed + 1 + number, config.refine.candidates
        chosen = select(unseen, count, 0.5, seed).rows
        chosen += select([row for row in labels if row["candidate_id"] in bought], count - len(chosen), 0.5, seed).rows
    return sorted(chosen, key=lambda row: row["candidate_id"]), dropped[NOT_DRAWN]


def size(config: Config, units: pa.Table) -> int:
    """Critiques of units."""
    return sum(critiques_of(config, units))


def critiques_of(config: Config, units: pa.Table) -> list[int]:
    """[units]: how many critiques each has."""
    lengths_of = pc.list_value_length(units["candidates"]).to_pylist()
    pairs = zip(units["artefact"].to_pylist(), lengths_of, strict=True)
    return [count * how(config.refine, artefact).samples for artefact, count in pairs]


def stored(config: Config, artefact: Artefact, units: pa.Table) -> np.ndarray:
    """[units] of bool: which are stored."""
    return stored_units(artefact, units["unit_id"].combine_chunks(), np.array(critiques_of(config, units)))


def finish(
    config: Config,
    artefact: Artefact,
    units: pa.Table,
    seconds: float,
    engine_seconds: float,
    not_drawn: int,
) -> Manifest:
    """Writes the manifest; RuntimeError unless every candidate has its critiques.

    `seconds` of a pool that may have worked on two artefacts are shared out by those of the engines.
    """
    if lacking := int((~stored(config, artefact, units)).sum()):
        raise RuntimeError(f"{artefact.name} lacks {lacking} of {len(units)} groups of candidates; run again")
    stats = artefact.stats()
    rows = artefact.read(["candidate_id", "agreement"], partial=True)
    counts = {"critiques": rows.num_rows, "candidates": len(rows["candidate_id"].unique())}
    counts |= {
        "agrees": int(pc.sum(pc.equal(rows["agreement"], "agrees")).as_py() or 0),
        "tokens": int(stats["tokens"]),
    }
    others = {row["values"]: row["counts"] for row in rows["agreement"].value_counts().to_pylist()}
    share = min(1.0, stats["seconds"] / max(engine_seconds, 1e-9))
    details = {
        **lengths.details(artefact, stats),
        "engine_seconds": round(stats["seconds"], 2),
        "seconds": round(seconds * share, 2),
    }
    dropped = {reason: n for reason, n in others.items() if reason != "agrees"} | {NOT_DRAWN: not_drawn}
    return artefact.complete(counts, dropped, details)
