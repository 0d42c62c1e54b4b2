"""The critic as judge: a tiny critic that has learnt three critiques by heart judges real candidates through vLLM."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from minos_ray.candidates.engine import Text
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine, Resources
from minos_ray.config.schema import ForeignModel, Judge, Meta, Model, Score
from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.meta.command import read_set, score_set, verifiers
from minos_ray.scoring import judge as judging
from minos_ray.scoring.judge import (
    UNITS,
    CriticJudge,
    distinct,
    judge,
    part_names,
    plan,
    rate,
    read_solutions,
    scores_schema,
    verdicts,
)
from minos_ray.steps import encoding
from minos_ray.steps.critique_text import Parsed, parse_critique
from minos_ray.store import columns
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Run
from minos_ray.units.run_units import rows_of_units
from tests.tiny import tiny_model

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
RIGHT = ["Step 1: 3 + 4 = 7.", "The answer is: 7"]
WRONG = ["Step 1: 3 + 4 = 8.", "The answer is: 8"]
UNCLEAR = ["Step 1: So 7.", "The answer is: 7"]
CRITIQUES = [
    (RIGHT, "Step 1: 3 + 4 is 7. This step is correct.\nThe final answer is True.\n"),
    (WRONG, "Step 1: 3 + 4 is not 8. This step is incorrect.\nThe final answer is False.\n"),
    (UNCLEAR, "Step 1: many apples.\n"),
]
SOLUTIONS = {"p/0": RIGHT, "p/1": WRONG, "p/2": RIGHT, "p/3": UNCLEAR, "p/4": []}


def memorise(path: str, critiques: list[tuple[list[str], str]], enough: float = 0.01) -> None:
    """Trains the model in `path` until its loss is `enough` to write exactly these critiques."""
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), load_tokenizer(path)
    rows = encoding.encode_critiques(tokenizer, [(QUESTION, steps, text) for steps, text in critiques])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        losses = [model(torch.tensor([ids]), labels=masked(ids, start)).loss for ids, start in rows]
        loss = torch.stack(losses).mean()
        if loss < enough:
            model.save_pretrained(path)
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny critic did not learn: loss {loss.item()}")


def masked(ids: list[int], start: int) -> "torch.Tensor":  # noqa: F821
    """Labels of the critique only."""
    import torch

    return torch.tensor([[-100] * start + ids[start:]])


def make_run(tmp_path: Path, samples: int, temperature: float) -> tuple[Config, Run]:
    """A run with a test problem, a train problem, their labels, and the critic."""
    config = Config(
        run=str(tmp_path / "run"),
        base=Model(model="unused"),
        score=Score(judge=Judge(samples=samples, temperature=temperature, max_tokens=60)),
        resources=Resources(judge=Engine(kv_cache_gb=0.05, units_per_task=1)),
    )
    run = Run(config.run)
    problem = {"dataset": "test", "question": QUESTION, "answer": "7", "solution": None}
    rows = [{"problem_id": p, "split": s, **problem} for p, s in (("p", "test"), ("t", "train"))]
    imported(run, "problems", rows)
    imported(run, "labels", [label(name, steps) for name, steps in {**SOLUTIONS, "t/0": RIGHT}.items()])
    critic = run.artefact("models/critic")
    critic.begin({"import": "test"})
    tiny_model(critic.path, spread=0.05)
    memorise(critic.path, CRITIQUES)
    critic.complete({"rows": 3})
    return config, run


def imported(run: Run, name: str, rows: list[dict[str, object]]) -> None:
    """A complete artefact that nothing makes stale."""
    artefact = run.artefact(name)
    artefact.begin({"import": "test"})
    artefact.write_part("0", columns.table(name, rows))
    artefact.complete({"rows": len(rows)})


def label(candidate_id: str, steps: list[str]) -> dict[str, object]:
    """A label whose verdicts do not matter here."""
    nothing = {"answer": None, "correct": False, "status": "wrong", "step_scores": None, "step_source": "none"}
    labels = {"step_labels": [-1] * len(steps), "error_types": [""] * len(steps)}
    return {"candidate_id": candidate_id, "problem_id": candidate_id[0], "steps": steps, **labels, **nothing}


@pytest.mark.slow
def test_verdicts_become_scores_and_the_same_solution_is_judged_once(tmp_path: Path, local_ray: None) -> None:
    config, run = make_run(tmp_path, samples=1, temperature=0.0)
    manifest = judge(config, run)
    rows = columns.validate("scores", run.artefact("scores/critic").read()).to_pylist()
    found = {row["candidate_id"]: (row["score"], row["step_scores"]) for row in rows}
    assert found == {
        "p/0": (1.0, [1.0, 1.0]),
        "p/1": (0.0, [0.0, 0.0]),
        "p/2": (1.0, [1.0, 1.0]),
        "p/3": (0.0, []),
        "p/4": (0.0, []),
    }
    assert manifest.counts == {
        "candidates": 5,
        "distinct": 4,
        "critiques": 3,
        "ok": 2,
        "tokens": manifest.counts["tokens"],
    }
    assert manifest.dropped == {"critique_no_verdict": 1, "critique_no_steps": 1}
    assert judge(config, run) == manifest

    run.delete("scores/critic/manifest.json")
    part = next(name for name in run.artefact("scores/critic").part_names())
    lost = run.artefact("scores/critic").part_footer(part).rows
    run.delete(f"scores/critic/part-{part}.parquet")
    again = judge(config, run)
    assert lost > 0
    assert again.counts == manifest.counts
    assert again.dropped == manifest.dropped

    # The same critic on a labelled set elsewhere. An answer line that a solution lacks is added, and gets no score.
    bench, short = Run(str(tmp_path / "set")), {**label("p/2", RIGHT[:1]), "answer": "7"}
    imported(bench, "problems", run.artefact("problems").read().slice(0, 1).to_pylist())
    others = [label(name, steps) for name, steps in SOLUTIONS.items() if name != "p/2"]
    imported(bench, "labels", [short, *others])
    own = Meta(models={"own": ForeignModel(model="run:models/critic", kind="critic")})
    soft = config.model_copy(update={"meta": own, "score": Score(judge=Judge(max_tokens=60, soft=True))})
    names = score_set(soft, run, read_set(bench.path, "meta.sets"), verifiers(soft, run))
    tables = [run.artefact(names[name]).read().to_pylist() for name in ("own", "own-soft")]
    votes, likely = ({row["candidate_id"]: (row["score"], row["step_scores"]) for row in rows} for rows in tables)
    assert votes == {**found, "p/2": (1.0, [1.0])}
    assert all(0 < abs(likely[name][0] - score) < 0.1 for name, (score, _) in found.items() if name in ("p/0", "p/1"))
    assert likely["p/2"] == (likely["p/0"][0], likely["p/0"][1][:1])
    assert likely["p/3"] == likely["p/4"] == (0.0, [])
    nothing = config.model_copy(update={"meta": own, "score": Score(judge=None)})
    with pytest.raises(UserError, match="which is empty; set"):
        verifiers(nothing, run)
    orm = Meta(models={"own": ForeignModel(model=tiny_model(tmp_path / "orm", "orm"), kind="critic")})
    with pytest.raises(UserError, match="kind critic needs a language model"):
        verifiers(soft.model_copy(update={"meta": orm}), run)


def test_of_sampled_critiques_the_score_is_the_mean_verdict(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "critic", spread=0.05)
    # Of one solution the critic has learnt two verdicts: it cannot know better than to toss a coin.
    memorise(path, [(RIGHT, CRITIQUES[0][1]), (RIGHT, CRITIQUES[1][1])], enough=0.04)
    unit = {"unit_id": "p/0", "candidate_ids": ["p/0", "p/2"], "problem_id": "p", "question": QUESTION, "steps": RIGHT}
    units = pa.Table.from_pylist([unit], schema=UNITS)
    sampled = Judge(samples=24, temperature=1.0, max_tokens=60)
    engine = Engine(kv_cache_gb=0.05, dtype="float32")
    worker = CriticJudge(str(tmp_path), Model(model=path), engine, sampled, seed=0)
    rows, stats = worker(units)
    first, second = rows.to_pylist()
    assert stats["critiques"] == 24 and stats["distinct"] == 1 and stats["ok"] > 12
    assert 0 < first["score"] < 1 and first["score"] * 24 == pytest.approx(round(first["score"] * 24))
    assert all(0 < score < 1 for score in first["step_scores"])
    assert {**second, "candidate_id": "p/0"} == first
    assert worker(units)[0] == rows
    from tests.scoring.test_soft import logits_oracle

    # The same critiques, now with the probabilities of their verdicts.
    worker.judge = sampled.model_copy(update={"soft": True})
    soft = worker(units)[0].to_pylist()[0]
    assert (soft["score"], soft["step_scores"]) == (first["score"], first["step_scores"])
    texts = [text.text for text in worker.critiques([unit], worker.judge)[0]]
    read = [text for text in texts if parse_critique(text, 2).status == "ok"]
    chances = [logits_oracle(path, RIGHT, text) for text in read]
    assert soft["steps_right"] == pytest.approx([sum(step) / 24 for step in zip(*chances, strict=True)], abs=1e-4)
    assert soft["right"] == soft["steps_right"][-1] and 0.2 < soft["right"] < 0.8


def test_soft_scores_are_columns_beside_the_vote(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path / "run"), base=Model(model="unused"), score=Score(judge=Judge(soft=True)))
    run = Run(config.run)
    votes = run.artefact("scores/critic")
    votes.begin({"import": "test"})
    row = {"candidate_id": "p/0", "problem_id": "p", "score": 1.0, "step_scores": [1.0, 1.0]}
    rows = [{**row, "right": 0.75, "steps_right": [0.5, 0.75]}]
    votes.write_part("0", pa.Table.from_pylist(rows, schema=scores_schema(Judge(soft=True))))
    votes.complete({"candidates": 1, "distinct": 1, "tokens": 9})
    manifest = judge(config, run)
    soft = columns.validate("scores", run.artefact("scores/critic-soft").read()).to_pylist()
    assert soft == [{**row, "score": 0.75, "step_scores": [0.5, 0.75]}]
    assert manifest.artefact == "scores/critic-soft" and manifest.counts["tokens"] == 9
    assert scores_schema(Judge()) == columns.SCHEMAS["scores"], "nobody asked"


def test_the_score_is_the_share_of_verdicts() -> None:
    right = parse_critique("Step 1: a. This step is correct.\nThe final answer is True.", 2)
    wrong = parse_critique("Step 1: a. This step is incorrect.\nThe final answer is False.", 2)
    unread = parse_critique("Step 1: a.", 2)
    assert right == Parsed([1, 1], True, "ok")
    assert verdicts([right, wrong, right, unread], 2) == (0.5, [0.5, 0.5])
    assert verdicts([unread], 2) == (0.0, [0.0, 0.0])
    unclear = parse_critique("Step 1: a. Well.\nThe final answer is True.", 2)
    short = parse_critique("The final answer is True.", 4)
    assert (unclear.status, short.status) == ("unclear_step", "wrong_step_count")
    assert verdicts([right, unclear, short], 2) == (1 / 3, [1 / 3, 1 / 3]), "only what was read whole is counted"
    assert verdicts([], 0) == (0.0, [])


def test_a_critic_that_reads_a_template_is_asked_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    from minos_ray.training import models

    path, layout = tiny_model(tmp_path / "first", chat=True), StepEncoding(name="chat", system="Be strict.")
    tokenizer, model = load_tokenizer(path), AutoModelForCausalLM.from_pretrained(path)
    models.save(model, model.state_dict(), tokenizer, "lm", str(tmp_path / "critic"), layout=layout)
    asked: list[list[int]] = []

    class Recorder:
        """Takes requests and writes nothing."""

        def __init__(self, *_: object) -> None:
            pass

        def generate(self, requests: list[Any], *_: object, **__: object) -> list[list[Text]]:
            asked.extend(request.prompt for request in requests)
            return [[Text("", "stop", 0)] for _ in requests]

    monkeypatch.setattr(judging, "Generator", Recorder)
    unit = {"unit_id": "p/0", "candidate_ids": ["p/0"], "problem_id": "p", "question": QUESTION, "steps": RIGHT}
    judge_units = CriticJudge(str(tmp_path), Model(model=str(tmp_path / "critic")), Engine(), Judge(), 0)
    judge_units(pa.Table.from_pylist([unit], schema=UNITS))
    assert asked == [encoding.critic_prompt_ids(tokenizer, QUESTION, RIGHT, layout)]
    assert tokenizer.decode(asked[0]).startswith("<s>[system] Be strict.\n[user] Tom")


def test_units_whose_engine_died_score_nothing_and_are_counted() -> None:
    unit = {"unit_id": "p/0", "candidate_ids": ["p/0", "p/2"], "problem_id": "p", "question": QUESTION, "steps": RIGHT}
    rows, stats = CriticJudge.failed(pa.Table.from_pylist([unit], schema=UNITS), Judge(samples=3), run="run")
    assert [(row["candidate_id"], row["score"]) for row in rows.to_pylist()] == [("p/0", 0.0), ("p/2", 0.0)]
    assert rows["step_scores"].to_pylist() == [[], []], "score 0 and no step scores: there is none"
    unit["steps"] = RIGHT[:2]
    no = Text("Step 1: a. This step is incorrect.\nThe final answer is False.", "stop", 9)
    assert rate(unit, [no, Text("Step", "length", 9)], {})[0]["step_scores"] == [0.0, 0.0]
    assert stats["engine_died"] == 3
    assert stats["candidates"] == 2


def test_solutions_are_told_apart_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path / "run"))
    problem = {"dataset": "test", "question": QUESTION, "answer": "7", "solution": None}
    splits = (("q", "test"), ("p", "test"), ("t", "train"))
    imported(run, "problems", [{"problem_id": p, "split": s, **problem} for p, s in splits])
    written = {
        "p/3": ["a", "b"],
        "q/0": ["a"],
        "p/10": ["a", "b"],
        "p/2": ["a\nb"],
        "t/0": ["a"],
        "p/4": [],
        "p/5": ["A"],
    }
    artefact = run.artefact("labels")
    artefact.begin({"import": "test"})
    for number, some in enumerate(list(written.items())[at : at + 2] for at in range(0, 7, 2)):
        artefact.write_part(str(number), columns.table("labels", [label(name, steps) for name, steps in some]))
    artefact.complete({"rows": 7})
    problems = plan(run)
    assert part_names(problems) == ["0", "1", "2", "3"]
    parts = [read_solutions(artefact, name) for name in part_names(problems)]
    alone = {problem: len(distinct(parts, problems.slice(row, 1))) for row, problem in enumerate(problems["unit_id"])}
    assert {problem.as_py(): solutions for problem, solutions in alone.items()} == {"p": 4, "q": 1}
    units = distinct(parts, problems)
    assert units.schema == UNITS
    assert [(u["unit_id"], u["candidate_ids"], u["steps"]) for u in units.to_pylist()] == [
        ("p/4", ["p/4"], []),
        ("p/5", ["p/5"], ["A"]),
        ("p/10", ["p/10", "p/3"], ["a", "b"]),
        ("p/2", ["p/2"], ["a\nb"]),
        ("q/0", ["q/0"], ["a"]),
    ]
    assert {u["question"] for u in units.to_pylist()} == {QUESTION} and rows_of_units(problems) == 6

    class Echo:
        """A critic that accepts everything, and whose engine may have died."""

        def __init__(self, *_: object) -> None:
            pass

        def __call__(self, given: pa.Table) -> tuple[pa.Table, dict[str, float]]:
            return given, {}

        failed = staticmethod(lambda given, judge: (given, {"engine_died": 1.0}))

    monkeypatch.setattr(judging, "CriticJudge", Echo)
    worker = judging.ProblemJudge(run.path, Model(model="unused"), Engine(), Judge(), 0)
    one_by_one = [worker(problems.slice(row, 1))[0] for row in range(len(problems))]
    assert pa.concat_tables(one_by_one).sort_by("unit_id") == units.sort_by("unit_id")
    assert judging.ProblemJudge.failed(problems, run=run.path, judge=Judge(), seed=0) == (units, {"engine_died": 1.0})
