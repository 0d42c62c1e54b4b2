"""Which sampled critiques a round learns from, alone or in pairs, counted by hand; no engine is started."""

from collections import Counter
from pathlib import Path

import pytest

from minos_ray.config.load import Config
from minos_ray.config.training import Dpo, Refine, Reward
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin
from minos_ray.rounds.refine import agreeing, check_rounds, preferences, round_job
from minos_ray.store.columns import Row
from minos_ray.store.run import Run
from minos_ray.training.data import Rows
from tests.rounds.test_refine import TEXTS, bought, config_of, label
from tests.runs import put
from tests.scoring.test_judge import QUESTION
from tests.tiny import tiny_model

# Of each candidate (problem, right or not) what its critiques say: agreeing ones, disagreeing ones, no critique at all.
WRITTEN = {
    (0, True): ["a1", "a1", "a2", "a3", "d1"],
    (1, True): ["a1", "a2"],
    (0, False): ["a1", "d1", "d2", "cut off"],
    (1, False): ["d1", "unclear"],
    (2, False): ["a1", "d1"],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Five problems, of which stage 2 holds out two, and the critiques above."""
    run = Run(str(tmp_path / "run"))
    problem = {"dataset": "test", "split": "train", "question": QUESTION, "answer": "7", "solution": None}
    put(run, "problems", [{"problem_id": f"p{n}", **problem} for n in range(5)])
    labels = [label(n, right) for n in range(5) for right in (True, False)]
    put(run, "labels", labels)
    put(run, "critiques", [bought(row) for row in labels if row["problem_id"] == "p0"])
    written = [(*key, place, text) for key, texts in WRITTEN.items() for place, text in enumerate(texts)]
    put(run, "sampled/critic", [critique(*row) for row in written])
    tiny_model(tmp_path / "base")
    return run


def critique(number: int, right: bool, place: int, kind: str) -> Row:
    """A sampled critique: its text says what it is."""
    name = f"p{number}/{int(right)}"
    agreement = {"a": "agrees", "d": "wrong_final_verdict"}.get(kind[0], "unreadable")
    status = {"cut off": "length", "unclear": "unclear_step"}.get(kind, "ok")
    return {
        **{"critique_id": f"{name}#{place:03}", "candidate_id": name, "problem_id": f"p{number}"},
        **{"text": f"{kind} {TEXTS[right == (agreement == 'agrees')]}", "status": status, "step_verdicts": []},
        **{"final_verdict": None, "agreement": agreement, "right": None, "steps_right": [], "tokens": 9},
    }


def test_of_agreeing_critiques_a_candidate_gives_a_few_and_both_sides_as_many(run: Run) -> None:
    rows, dropped = agreeing(config_of(run), run, 0)
    sides = Counter(row["correct"] for row in rows)
    assert sides == {True: 2, False: 2} and all(row["source"] == "sampled" for row in rows)
    assert {row["critique"][:2] for row in rows if not row["correct"]} == {"a1"}
    assert dropped == {
        "sampled_wrong_final_verdict": 5,
        "sampled_unreadable": 2,
        "sampled_same_text": 1,
        "sampled_surplus_of_candidate": 1,
        "sampled_balance": 2,
    }
    assert len(rows) + dropped.total() == sum(map(len, WRITTEN.values()))


def test_pairs_are_of_one_candidate_and_every_other_critique_is_counted(run: Run) -> None:
    pairs, dropped = preferences(config_of(run), run, 0)
    assert {(pair["chosen"][:2], pair["rejected"][:2]) for pair in pairs} == {("a1", "d1")}
    names = {pair["candidate_id"] for pair in pairs}
    assert len(pairs) == 2 and "p0/1" in names and names < {"p0/1", "p0/0", "p2/0"}
    assert dropped == {
        "sampled_unreadable": 1,
        "sampled_same_text": 1,
        "sampled_no_partner": 4,
        "sampled_surplus_of_candidate": 3,
        "sampled_balance": 2,
    }
    assert 2 * len(pairs) + dropped.total() == sum(map(len, WRITTEN.values()))


@pytest.mark.parametrize(("method", "rows"), [("rejection", 2 + 4), ("dpo", 2 * 2)])
def test_the_training_of_a_round_is_on_them(run: Run, method: str, rows: int) -> None:
    section = config_of(run, method=method, start="base")
    config = section.model_copy(update={"dpo": Dpo(beta=0.3, max_length=160)})
    run.artefact("models/critic").begin({"import": "test"})
    run.artefact("models/critic").complete({})
    begin(config, run, "models/critic-1")
    job = round_job(config, run, 1)
    assert job.table.rows == rows == len(Rows.read(run, f"{job.table.name}-train"))
    assert (job.artefact, job.kind) == ("models/critic-1", "lm")
    starts_from_critic = job.start.model == "run:models/critic"
    assert starts_from_critic == (method == "dpo") == isinstance(job.section, Dpo)
    assert job.table.dropped["sampled_balance"] == 2


@pytest.mark.parametrize("method", ["rejection", "dpo"])
def test_a_round_may_be_trained_longer_than_stage_1(run: Run, method: str) -> None:
    run.artefact("models/critic").begin({"import": "test"})
    run.artefact("models/critic").complete({})
    plain = config_of(run, method=method)
    longer = plain.model_copy(update={"refine": plain.refine.model_copy(update={"epochs": 7.0})})
    epochs = []
    for config in (plain, longer):
        begin(config, run, "models/critic-1")
        epochs.append(round_job(config, run, 1).section.epochs)
    assert epochs == [plain.sft.epochs if method == "rejection" else plain.dpo.epochs, 7.0]


def test_rounds_need_a_critic_that_writes(run: Run) -> None:
    config: Config = config_of(run)
    check_rounds(config, run)
    plain = config.model_copy(update={"sft": config.sft.model_copy(update={"source": "solutions"})})
    with pytest.raises(UserError, match=r"refine\.rounds = 1: sft\.source = solutions trains no critic"):
        check_rounds(plain, run)


def test_a_critique_that_two_critics_wrote_is_trained_on_once(run: Run) -> None:
    put(run, "sampled/critic-1", run.artefact("sampled/critic").read().to_pylist())
    config = config_of(run).model_copy(update={"refine": Refine(rounds=2, samples=6, keep=2)})
    begin(config, run, "models/critic-2")
    job, (rows, dropped) = round_job(config, run, 2), agreeing(config, run, 0)
    twice = {(row["candidate_id"], row["critique"]) for row in rows} & {
        (row["candidate_id"], row["critique"]) for row in agreeing(config, run, 1)[0]
    }
    assert twice and job.table.rows == 2 + 2 * len(rows) - len(twice)
    assert job.table.dropped["sampled_same_text"] == 2 * dropped["sampled_same_text"] + len(twice)


def test_rounds_need_candidates_that_measure_a_critic(run: Run) -> None:
    put(run, "labels", [label(n, n > 0) for n in range(5)])
    one_problem = config_of(run).model_copy(update={"reward": Reward(eval_rows=1)})
    with pytest.raises(UserError, match=r"stage 2 holds out lack right or wrong candidates.*reward\.eval_rows = 1"):
        check_rounds(one_problem, run)
