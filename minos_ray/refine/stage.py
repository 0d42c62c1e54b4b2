"""The stage `refine`: rounds in which the critic learns from its own critiques (STaR, 2203.14465; ReST-EM, 2312.06585).

In each round the critic writes several critiques of labelled train candidates, those that agree with the labels are
trained on together with the bought ones, and the new critic is measured on candidates of problems that no training
sees. The rounds end with the first that does not raise the measure.
"""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any, get_args

import numpy as np

from minos_ray.candidates.stage import length_problems
from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.evaluation.verdicts import THRESHOLD, binary
from minos_ray.graph.specs import begin, critic_name, fresh
from minos_ray.meta.measures import outcome_intervals
from minos_ray.problems.split import round_robin
from minos_ray.refine.sampled import HELD_OUT, SAMPLED, candidates, write_critiques
from minos_ray.steps.critique_text import Status
from minos_ray.steps.split import without_thinking
from minos_ray.store.columns import Row
from minos_ray.store.run import Manifest, Run
from minos_ray.training.job import Job, make_job, write_table
from minos_ray.training.rows import base_tokenizer, read, require_rows, train_questions
from minos_ray.training.sft import CONTROLS, critique_data, held_out_problems, preference_data, preference_job
from minos_ray.training.trainer import fit

NAME = "refine.json"


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
    solutions = solutions_of(run, usable)
    sides = [[row for row in usable if solutions[row["candidate_id"]]["correct"] is right] for right in (False, True)]
    fewer = min(map(len, sides))
    chosen = [row for side in sides for row in round_robin(side, f"{config.seed}/{number}")[:fewer]]
    dropped["sampled_balance"] = len(usable) - len(chosen)
    questions = train_questions(run)
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
    sides = [[pair for pair in pairs if bool(pair["correct"]) is right] for right in (False, True)]
    fewer = min(map(len, sides))
    chosen = [pair for side in sides for pair in round_robin(side, f"{config.seed}/{number}")[:fewer]]
    dropped["sampled_balance"] = 2 * (len(pairs) - len(chosen))
    return sorted(chosen, key=lambda pair: pair["candidate_id"]), +dropped


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
        sampled = manifest_of(run, f"{SAMPLED}/{critic_name(number - 1)}")
        model = manifest_of(run, f"models/{critic_name(number)}")
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
        row["seconds_measuring"] = manifest_of(run, f"{HELD_OUT}/{row['critic']}").details["seconds"]
    best = max(curve, key=lambda row: row["auc"])["round"]
    ended = "rounds" if len(curve) > config.refine.rounds and best == curve[-1]["round"] else "no rise"
    run.write_bytes(NAME, json.dumps({"chosen": best, "ended": ended, "rounds": curve}, indent=1).encode())
    kept = sum(row.get("kept", 0) for row in curve)
    dropped = sum((Counter(row.get("dropped", {})) for row in curve), Counter[str]())
    return artefact.complete({"rounds": len(curve) - 1, "chosen": best, "kept": kept}, dict(dropped))


def manifest_of(run: Run, name: str) -> Manifest:
    """The manifest of an artefact that a round has just used."""
    manifest = run.artefact(name).manifest()
    if manifest is None:
        raise RuntimeError(f"{run.at(name)} is not complete")
    return manifest
