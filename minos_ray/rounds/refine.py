"""The stage `refine`: rounds in which the critic learns from its own critiques (STaR, 2203.14465; ReST-EM, 2312.06585).

In each round the critic writes several critiques of labelled train candidates, those that agree with the labels are
trained on together with the bought ones, and the new critic is measured on candidates of problems that no training
sees. The rounds end with the first that does not raise the measure.

A unit of work is a group of candidates, always the same ones and with a random stream of its own: whatever was killed
before, a rerun writes the same critiques.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED, Text
from minos_ray.candidates.stage import length_problems
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Judge, Model
from minos_ray.config.training import Refine
from minos_ray.errors import UserError
from minos_ray.evaluation.verdicts import THRESHOLD, binary
from minos_ray.graph import lengths
from minos_ray.graph.specs import begin, critic_name, fresh, spec
from minos_ray.meta.measures import outcome_intervals
from minos_ray.problems.split import NOT_DRAWN, round_robin, select
from minos_ray.scoring.judge import CriticJudge
from minos_ray.steps.critique_text import Status, agreement_of, parse_critique
from minos_ray.steps.split import without_thinking
from minos_ray.store import columns
from minos_ray.store.columns import Row
from minos_ray.store.model_files import locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import Job, make_job, read, require_rows, train_questions, write_table
from minos_ray.training.reward import labelled
from minos_ray.training.sft import CONTROLS, critique_data, held_out_problems, preference_data, preference_job
from minos_ray.training.trainer import finished, fit
from minos_ray.units.run_units import Work, run_units, stored_units

NAME, SAMPLED, HELD_OUT = "refine.json", "sampled", "held-out"
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


def refine(config: Config, run: Run) -> Manifest:
    """The rounds of the critic, and refine.json, which says what each came to and which critic is the best."""
    curve: list[dict[str, Any]] = []
    for number in range(config.refine.rounds + 1):
        if number:
            write_critiques(config, run, number - 1, [SAMPLED])
            jobs = []
            if not fresh(config, run, f"models/{critic_name(number)}"):
                begin(config, run, f"models/{critic_name(number)}")
                jobs = [round_job(config, run, number)]
            fit(config, run, "refine", jobs)
        # The bought critic is measured by the engines that sample with it.
        write_critiques(config, run, number, [HELD_OUT] if number else [HELD_OUT, SAMPLED])
        curve.append(measure(config, run, number))
        if number and not curve[number]["auc"] > max(before["auc"] for before in curve[:number]):
            break
    return fresh(config, run, NAME) or summarise(config, run, curve)


def check_rounds(config: Config, run: Run) -> None:
    """UserError where the rounds cannot be made: stage 1 teaches no critiques, there is no room to write them, or
    labels that are there already leave none to measure critics by."""
    if config.sft.source in CONTROLS:
        raise UserError(
            f"refine.rounds = {config.refine.rounds}: sft.source = {config.sft.source} trains no critic that writes "
            "critiques; set it to critiques, inserted or both"
        )
    engine, tokens = config.resources.judge, config.refine.max_tokens
    for line in length_problems("refine.max_tokens", tokens, "judge", engine, config.base, run):
        raise UserError(line)
    if fresh(config, run, "labels"):
        candidates(config, run, 0, held_out=True)


def round_job(config: Config, run: Run, number: int) -> Job:
    """The training of a round: on what stage 1 learns from, and the agreeing critiques of all rounds so far."""
    section, name = config.refine, critic_name(number)
    if section.epochs is not None:
        trainings = {key: getattr(config, key).model_copy(update={"epochs": section.epochs}) for key in ("sft", "dpo")}
        config = config.model_copy(update=trainings)
    before = Model(model=f"run:models/{critic_name(number - 1)}", trust_remote_code=config.base.trust_remote_code)
    tokenizer, layout = base_tokenizer(config, run, critic=True), config.base.encoding
    if section.method == "dpo":  # the last critic's own critiques alone: it is the reference, too
        pairs, unused = preferences(config, run, number - 1)
        preferred = preference_data(tokenizer, pairs, config.dpo, layout)
        preferred.dropped.update(unused)
        return preference_job(run, f"models/{name}", before, preferred, config)
    critiques: dict[tuple[str, str], Row] = {}
    dropped = Counter[str]()
    for past in range(number):
        rows, reasons = agreeing(config, run, past)
        distinct = {(row["candidate_id"], row["critique"]): row for row in rows}
        repeated = len(rows) - len(distinct.keys() - critiques.keys())
        dropped += reasons + Counter({"sampled_same_text": repeated})
        critiques = distinct | critiques
    agreed = list(critiques.values())
    if not agreed:
        raise UserError(
            f"refine: no critique agrees with the labels ({dict(dropped)}); raise refine.samples or candidates"
        )
    excluded = held_out_problems(run, config.reward)
    data = critique_data(
        run, tokenizer, config.sft, config.sft.rows, config.inserted.count > 0, excluded, layout, agreed
    )
    data.dropped.update(dropped)
    require_rows("refine", data)
    start = before if section.start == "critic" else config.base
    return make_job(run, f"models/{name}", "lm", start, write_table(run, f"critiques-{name}", data), config.sft, config)


def agreeing(config: Config, run: Run, number: int) -> tuple[list[Row], Counter[str]]:
    """Of the critiques that a critic sampled those to train on, with their solutions; how many others, by reason.

    Of each candidate the first `refine.keep` distinct ones; then as many of right candidates as of wrong ones, problems
    by turns.
    """
    columns = ["critique_id", "candidate_id", "problem_id", "text", "agreement"]
    sampled = read(run, f"{SAMPLED}/{critic_name(number)}", columns)
    dropped = Counter(f"sampled_{row['agreement']}" for row in sampled if row["agreement"] != "agrees")
    usable: list[Row] = []
    for _, group in groupby((row for row in sampled if row["agreement"] == "agrees"), lambda row: row["candidate_id"]):
        distinct = list({row["text"]: row for row in reversed(list(group))}.values())[::-1]
        usable += distinct[: config.refine.keep]
        dropped["sampled_surplus_of_candidate"] += len(distinct[config.refine.keep :])
    dropped["sampled_same_text"] = sum(row["agreement"] == "agrees" for row in sampled) - len(usable)
    dropped["sampled_same_text"] -= dropped["sampled_surplus_of_candidate"]
    solutions, questions = solutions_of(run, usable), train_questions(run)
    sides = [row | {"correct": solutions[row["candidate_id"]]["correct"]} for row in usable]
    chosen = balanced(sides, f"{config.seed}/{number}")
    dropped["sampled_balance"] = len(usable) - len(chosen)
    return [
        {
            **solutions[row["candidate_id"]],
            "question": questions[row["problem_id"]],
            "critique": without_thinking(row["text"]),
            "source": "sampled",
        }
        for row in sorted(chosen, key=lambda row: row["critique_id"])
    ], +dropped


def preferences(config: Config, run: Run, number: int) -> tuple[list[Row], Counter[str]]:
    """Pairs of critiques of one candidate, one that agrees with its labels and one that does not; how many critiques
    are in none, by reason.

    At most `refine.keep` pairs of a candidate; as many pairs of right candidates as of wrong ones, problems by turns.
    A text that was cut off is in no pair: what it would have said is not known.
    """
    columns = ["critique_id", "candidate_id", "problem_id", "text", "agreement", "status"]
    sampled = read(run, f"{SAMPLED}/{critic_name(number)}", columns)
    complete = [row for row in sampled if row["agreement"] != "unreadable" or row["status"] in get_args(Status)]
    dropped = Counter({"sampled_unreadable": len(sampled) - len(complete)})
    solutions, questions, pairs = solutions_of(run, complete), train_questions(run), []
    for name, group in groupby(complete, lambda row: row["candidate_id"]):
        rows = list(group)
        agreed, others = (
            list(dict.fromkeys(row["text"] for row in rows if (row["agreement"] == "agrees") is side))
            for side in (True, False)
        )
        count = min(len(agreed), len(others), config.refine.keep)
        dropped["sampled_same_text"] += len(rows) - len(agreed) - len(others)
        reason = "sampled_surplus_of_candidate" if count else "sampled_no_partner"
        dropped[reason] += len(agreed) + len(others) - 2 * count
        solution = {**solutions[name], "question": questions[rows[0]["problem_id"]]}
        texts = zip(agreed[:count], others[:count], strict=True)
        pairs += [{**solution, "chosen": without_thinking(a), "rejected": without_thinking(b)} for a, b in texts]
    chosen = balanced(pairs, f"{config.seed}/{number}")
    dropped["sampled_balance"] = 2 * (len(pairs) - len(chosen))
    return sorted(chosen, key=lambda pair: pair["candidate_id"]), +dropped


def balanced(rows: list[Row], seed: str) -> list[Row]:
    """As many rows of wrong candidates as of right ones, problems by turns."""
    sides = [[row for row in rows if bool(row["correct"]) is right] for right in (False, True)]
    fewer = min(map(len, sides))
    return [row for side in sides for row in round_robin(side, seed)[:fewer]]


def solutions_of(run: Run, rows: Iterable[Row]) -> dict[str, Row]:
    """Labels of the candidates of these rows, by their ids."""
    names = {row["candidate_id"] for row in rows}
    columns = ["candidate_id", "problem_id", "steps", "correct"]
    labels = run.artefact("labels").read_where("candidate_id", names, columns)
    return {row["candidate_id"]: row for row in labels.to_pylist()}


def measure(config: Config, run: Run, number: int) -> dict[str, Any]:
    """How well the critic of a round judges held-out candidates: AUC and accuracy of P(True), with 95 % intervals.

    A critique that cannot be read accepts nothing: P(True) = 0.
    """
    rows = read(
        run, f"{HELD_OUT}/{critic_name(number)}", ["critique_id", "candidate_id", "problem_id", "agreement", "right"]
    )
    solutions = solutions_of(run, rows)
    scores = np.array([row["right"] or 0.0 for row in rows], dtype=np.float64)
    correct = np.array([bool(solutions[row["candidate_id"]]["correct"]) for row in rows])
    _, problems = np.unique([row["problem_id"] for row in rows], return_inverse=True)
    values = binary(scores, correct)
    agreements = Counter(row["agreement"] for row in rows)
    return {
        "round": number,
        "critic": critic_name(number),
        "auc": values["auc"],
        "accuracy": values["accuracy"],
        **outcome_intervals(scores, correct, THRESHOLD, problems, config.evaluate),
        "held_out": len(rows),
        "held_out_agreements": dict(sorted(agreements.items())),
    }


def summarise(config: Config, run: Run, curve: list[dict[str, Any]]) -> Manifest:
    """Writes refine.json: the measures of each round, and what was sampled, kept and trained on in it."""
    artefact = begin(config, run, NAME)
    for row in curve[1:]:
        number = row["round"]
        sampled = finished(run, f"{SAMPLED}/{critic_name(number - 1)}")
        model = finished(run, f"models/{critic_name(number)}")
        rows, dropped = (preferences if config.refine.method == "dpo" else agreeing)(config, run, number - 1)
        row |= {
            "candidates": sampled.counts["candidates"],
            "sampled": sampled.counts["critiques"],
            "sampled_tokens": sampled.counts["tokens"],
            "kept": 2 * len(rows) if config.refine.method == "dpo" else len(rows),
            "dropped": {reason.removeprefix("sampled_"): count for reason, count in sorted(dropped.items())},
            "trained_rows": model.counts["rows"],
            "seconds_sampling": sampled.details["seconds"],
            "seconds_training": model.details["seconds"],
        }
    for row in curve:
        row["seconds_measuring"] = finished(run, f"{HELD_OUT}/{row['critic']}").details["seconds"]
    best = max(curve, key=lambda row: row["auc"])["round"]
    ended = "rounds" if len(curve) > config.refine.rounds and best == curve[-1]["round"] else "no rise"
    run.write_bytes(NAME, json.dumps({"chosen": best, "ended": ended, "rounds": curve}, indent=1).encode())
    kept = sum(row.get("kept", 0) for row in curve)
    dropped = sum((Counter(row.get("dropped", {})) for row in curve), Counter[str]())
    return artefact.complete({"rounds": len(curve) - 1, "chosen": best, "kept": kept}, dict(dropped))


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
                for row, text in zip(critique_rows(candidate, critiques), critiques, strict=True):
                    if text.logprobs is not None and row["agreement"] != "unreadable":
                        critique = parse_critique(text.text, len(candidate["steps"]))
                        row["right"], row["steps_right"] = self.critic.soft_verdicts(text, critique)
                    rows.append(row)
        return as_table(rows, time.monotonic() - start)

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
    rows = sum(sum(critiques_of(config, units)) for _, (units, _) in planned)
    start = time.monotonic()
    work = Work(
        label=f"critiques by {name}",
        pool="judge",
        worker=CritiqueSampler,
        kwargs={"run": run.path, "model": model, "resources": engine, "section": config.refine, "seed": config.seed},
        batch_units=1,
        rows=rows,
        rows_before=rows - sum(sum(critiques_of(config, units)) for units in todo),
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
    others = Counter(rows["agreement"].to_pylist())
    counts |= {"agrees": others.pop("agrees", 0), "tokens": int(stats["tokens"])}
    share = min(1.0, stats["seconds"] / max(engine_seconds, 1e-9))
    details = {
        **lengths.details(artefact, stats),
        "engine_seconds": round(stats["seconds"], 2),
        "seconds": round(seconds * share, 2),
    }
    return artefact.complete(counts, dict(others) | {NOT_DRAWN: not_drawn}, details)
