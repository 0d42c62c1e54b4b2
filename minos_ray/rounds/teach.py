"""The stage `teach`: rejection-sampling fine-tuning of the generator with a verifier as the judge, in rounds.

A round is a run directory of its own, `teach/round-R`, with candidates and labels of policy R: of train problems, to
learn from, and of test problems, on which it is measured. Policy 0 is the generator; the next one starts from it and
learns the solutions that the judge scores highest (RAFT, Dong et al. 2023, arXiv 2304.06767). Gold accuracy and the
judge's mean score of each policy stand side by side: a score that rises alone is a judge that is hacked.
"""

import functools
import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.candidates.prompts import prompt_of
from minos_ray.candidates.stage import generator, sample
from minos_ray.config.load import Config
from minos_ray.config.schema import NEXT_QUESTION, ErrorAnalysis, Inserted, Model
from minos_ray.config.training import Refine, StepEncoding, Study, Teach
from minos_ray.errors import UserError
from minos_ray.evaluation.statistics import bounded_intervals
from minos_ray.graph.specs import begin, fresh
from minos_ray.pipeline import open_run, run_all
from minos_ray.problems.split import problems_by_id, read_problems
from minos_ray.scoring.stage import read_pieces, score_artefacts
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.study.grid import copy
from minos_ray.training.data import (
    Data,
    Job,
    encoded,
    language_row,
    make_job,
    require_rows,
    split_by_problem,
    write_table,
)
from minos_ray.training.trainer import finished, fit

RESULTS, MADE_FROM = "teach/results.parquet", "teach/made-from.txt"
STAGES = ("sample", "label")
RESAMPLES = 2000
HELD_OUT_ROWS = 200  # a fiftieth of the rows, at most so many


def teach(config: Config, run: Run) -> Manifest:
    """Every round that is not complete, then a row for each policy; a stopped call goes on where it was."""
    if done := fresh(config, run, RESULTS):
        fit(config, run, "teach", [])
        return done
    if generator(config).adapter:
        raise UserError("generator.adapter: a policy starts from weights; merge it with peft (merge_and_unload) first")
    target, start = begin(config, run, RESULTS), time.monotonic()
    inputs = str(target.begun()).encode()
    if not run.exists(MADE_FROM) or run.read_bytes(MADE_FROM) != inputs:  # rounds of other inputs
        for folder in run.folders("teach"):
            run.delete(f"teach/{folder}")
        run.write_bytes(MADE_FROM, inputs)
    dropped: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number in range(config.teach.rounds + 1):
        learned = train_policy(config, run, number, dropped) if number else {"rows": 0, "right": None}
        place = sample_round(config, run, number)
        rows.append({"round": number, **learned, **measure(config, run, place, number)})
        line = "policy {round}: gold accuracy {gold:.3f} [{gold_low:.3f}, {gold_high:.3f}], judge's score {proxy:.3f}"
        print(f"teach: {line.format(**rows[-1])}", flush=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    run.write_bytes(RESULTS, sink.getvalue().to_pybytes())
    details = {"seconds": round(time.monotonic() - start, 1), "judge": config.teach.judge, "policies": rows}
    return target.complete({"rounds": config.teach.rounds, "rows": sum(row["rows"] for row in rows)}, dropped, details)


def policy(number: int) -> str:
    """The model of a round's policy, in the round's own run directory; there is none of round 0."""
    return f"models/policy-{number}"


def round_run(run: Run, number: int) -> Run:
    """The run directory of a round."""
    return Run(run.at(f"teach/round-{number}"))


def round_config(config: Config, run: Run, number: int) -> Config:
    """What samples and labels a round: the policy, its problems and amounts, outcomes alone."""
    last = number == config.teach.rounds
    amounts = {"n_train": 0 if last else config.teach.samples, "n_test": config.teach.test_samples}
    changes = {
        "run": round_run(run, number).path,
        "seed": (config.seed + number) % (1 << 32),
        "generator": Model(model=f"run:{policy(number)}") if number else generator(config),
        "sample": config.sample.model_copy(update=amounts),
        "label": config.label.model_copy(update={"steps": None, "rollouts": None}),
        **{"inserted": Inserted(), "error_analysis": ErrorAnalysis(), "study": Study()},
        **{"refine": Refine(), "teach": Teach()},
    }
    return config.model_copy(update=changes)


def sample_round(config: Config, run: Run, number: int) -> Run:
    """Samples and labels of a round, scored by the judge; returns its run directory."""
    settings, place = round_config(config, run, number), round_run(run, number)
    base = "models/base"
    if not number and generator(config).model == f"run:{base}" and place.artefact(base).manifest() is None:
        copy(run.artefact(base), place.artefact(base))
    problems = place.artefact("problems")
    if problems.manifest() is None:  # all test problems, and the train problems of the round
        table = run.artefact("problems").read().sort_by("problem_id")
        is_test = pc.equal(table["split"], "test")
        test, train = table.filter(is_test), table.filter(pc.invert(is_test))
        count = min(config.teach.problems or train.num_rows, train.num_rows)
        drawn = random.Random(f"teach {config.seed} {number}").sample(range(train.num_rows), count)
        problems.begin({"import": "teach"})
        problems.write_part("0", pa.concat_tables([train.take(sorted(drawn)), test]))
        problems.complete({})
    say = functools.partial(print, f"teach: round {number}:", flush=True)
    run_all(settings, open_run(settings), say, STAGES, {"sample": functools.partial(sample, grouped=True)})
    scores = scores_of(config, run, number)
    if scores is not None and scores.manifest() is None:
        scores.begin({"round": number})
        judge = Model(model=f"run:models/{config.teach.judge}", trust_remote_code=config.base.trust_remote_code)
        score_artefacts(config, run, [scores], {scores.name: judge}, place, read_pieces(place, None))
    return place


def scores_of(config: Config, run: Run, number: int) -> Artefact | None:
    """The judge's scores of a round's solutions; None where the labels are the judge."""
    judge = config.teach.judge
    return None if judge == "gold" else run.artefact(f"teach/round-{number}/scores/{judge}")


def judged(config: Config, run: Run, place: Run, number: int, split: str) -> list[Row]:
    """The solutions of a split: candidate, problem, text, outcome, and the judge's `score` (gold: 1 or 0)."""
    in_split = set(read_problems(place, split, ["problem_id"])["problem_id"].to_pylist())
    columns = ["candidate_id", "problem_id", "index", "text", "finish_reason", "num_tokens"]
    candidates = place.artefact("candidates").read_where("problem_id", in_split, columns)
    labels = place.artefact("labels").read_where("problem_id", in_split, ["candidate_id", "correct"])
    correct = dict(zip(labels["candidate_id"].to_pylist(), labels["correct"].to_pylist(), strict=True))
    rows = candidates.sort_by([("problem_id", "ascending"), ("index", "ascending")]).to_pylist()
    score: dict[str, float] = {name: float(right) for name, right in correct.items()}
    if (scores := scores_of(config, run, number)) is not None:
        table = scores.read_where("problem_id", in_split, ["candidate_id", "score"])
        score = dict(zip(table["candidate_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    return [row | {"correct": bool(correct[row["candidate_id"]]), "score": score[row["candidate_id"]]} for row in rows]


def train_policy(config: Config, run: Run, number: int, dropped: Counter[str]) -> dict[str, Any]:
    """Policy `number`, from the one before it and the best of its solutions; how many, and how many of them right."""
    before = round_run(run, number - 1)
    solutions = judged(config, run, before, number - 1, "train")
    chosen = chosen_solutions(solutions, config.teach, dropped)
    if not chosen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"teach: none of {len(solutions)} solutions of policy {number - 1} is kept ({reasons}); lower "
            "teach.threshold, raise teach.samples or sample.max_tokens, or name another teach.judge"
        )
    target = run.artefact(f"teach/round-{number}/{policy(number)}")
    if target.manifest() is None:
        target.begin({"round": number, "made from": run.read_bytes(MADE_FROM).decode()})
        start = Model(model=f"run:teach/round-{number - 1}/{policy(number - 1)}") if number > 1 else generator(config)
        fit(config, run, "teach", [policy_job(config, run, target.name, start, chosen)])
    trained = finished(run, target.name).counts["rows"]
    return {"rows": trained, "right": sum(row["correct"] for row in chosen) / len(chosen)}


def measure(config: Config, run: Run, place: Run, number: int) -> dict[str, Any]:
    """A policy on the test problems: gold accuracy and the judge's mean score, with 95 % intervals over problems."""
    solutions = judged(config, run, place, number, "test")
    by_problem: dict[str, list[tuple[float, float]]] = {}
    for row in solutions:
        by_problem.setdefault(row["problem_id"], []).append((row["correct"], row["score"]))
    values = np.array([np.mean(pairs, axis=0) for pairs in by_problem.values()])
    mean, low, high = bounded_intervals(values, 2, RESAMPLES, config.evaluate.seed)
    columns = {
        f"{measure}{end}": float(numbers[column])
        for column, measure in enumerate(("gold", "proxy"))
        for end, numbers in (("", mean), ("_low", low), ("_high", high))
    }
    tokens = float(np.mean([row["num_tokens"] for row in solutions]))
    return {**columns, "tokens": tokens, "problems": len(values), "solutions": len(solutions)}


def chosen_solutions(solutions: Sequence[Row], section: Teach, dropped: Counter[str]) -> list[Row]:
    """The best solutions of each problem, sorted by problem; of equal scores the first sampled.

    Left out, and counted: what did not end, what the judge rejected (score 0) or scored below the threshold, what
    repeats a better one word for word, and what is over the number that is kept.
    """
    chosen = []
    for _, of_problem in groupby(sorted(solutions, key=itemgetter("problem_id")), key=itemgetter("problem_id")):
        texts: set[str] = set()
        for row in sorted(of_problem, key=lambda row: (-row["score"], row["index"])):
            if row["finish_reason"] != "stop":
                dropped[f"not_ended_{row['finish_reason']}"] += 1
            elif not row["score"]:
                dropped["rejected"] += 1
            elif row["score"] < section.threshold:
                dropped["below_threshold"] += 1
            elif row["text"] in texts:
                dropped["same_text"] += 1
            elif len(texts) == section.most:
                dropped["over_most"] += 1
            else:
                texts.add(row["text"])
                chosen.append(row)
    return chosen


def policy_job(config: Config, run: Run, artefact: str, start: Model, chosen: list[Row]) -> Job:
    """The training of a policy on these solutions, with the prompts that they were sampled from; the prompt has no
    loss. UserError when the generator's tokenizer cannot end a solution."""
    section, tokenizer = config.teach, load_tokenizer(locate(start, run), start.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"generator.model: the tokenizer of '{start.model}' has no EOS token, which would end a solution"
        )
    dropped: Counter[str] = Counter()
    rows = solution_rows(config, run, tokenizer, chosen, dropped)
    train, held_out = split_by_problem(rows, min(HELD_OUT_ROWS, len(rows) // 50), None, section.seed)
    data = Data(train, held_out, dropped)
    require_rows("teach", data)
    name = artefact.rpartition("/")[2]
    job = make_job(run, artefact, "lm", start, write_table(run, name, data), section, config)
    # A policy that is asked by its chat template keeps it.
    asks = tokenizer.chat_template and config.sample.prompt not in NEXT_QUESTION
    turns = {"system": config.sample.system, "chat_template_kwargs": config.sample.chat_template_kwargs}
    layout = StepEncoding(name="chat", **turns) if asks else encoding.LINES
    return job.model_copy(update={"encoding": layout})


def solution_rows(config: Config, run: Run, tokenizer: Any, chosen: list[Row], dropped: Counter[str]) -> list[Row]:
    """Rows of a language model: the prompt, the text of the solution and EOS."""
    questions, prompt, rows = problems_by_id(run, "train", ["problem_id", "question"]), prompt_of(config.sample), []
    # Special tokens that a sampler leaves in a text, as those around a thought, are the policy's own.
    texts = encoded(
        chosen,
        lambda row: row["text"],
        lambda tokenizer, some, _: tokenizer(some, add_special_tokens=False)["input_ids"],
        tokenizer,
    )
    for row, text in texts:
        asked = prompt(questions[row["problem_id"]]["question"], tokenizer)
        ids = [*asked, *text, tokenizer.eos_token_id]
        if len(ids) > config.teach.max_length:
            dropped["over_max_length"] += 1
        else:
            rows.append(language_row(row["problem_id"], ids, len(asked)))
    return rows
