"""evaluate, end to end on runs made on the spot."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.errors import UserError
from minos_ray.evaluation import blocks, stage, verdicts
from minos_ray.evaluation.comparison import read_outcomes
from minos_ray.evaluation.stage import evaluate
from minos_ray.store import columns
from minos_ray.store.run import Run
from minos_ray.training.results import Platt
from tests.runs import config, make_run, put, scores

VERIFIERS = ("orm-base", "orm-minos", "prm-base", "prm-minos")
SIZES = [8] * 10 + [5] * 10 + [16] * 4


def scored(run: Run, *names: str) -> Run:
    """The run with scores; those of Minos tell more."""
    for name in names:
        scores(run, name, 0.35 if name.endswith("minos") else 0.1)
    return run


def evaluated(run: Run, **sections: Any) -> dict[str, Any]:
    """The content of evaluation.json."""
    settings = {"trials": 20, "bootstrap": 200}
    evaluate(config(run, evaluate={**settings, **sections.pop("evaluate", {})}, **sections), run)
    return json.loads(run.read_bytes("evaluation.json"))


def entry(content: dict[str, Any], method: str, verifier: str, n: int) -> dict[str, Any]:
    """One entry of `methods`."""
    return next(m for m in content["methods"] if (m["method"], m["verifier"], m["n"]) == (method, verifier, n))


def test_ragged_candidates_with_every_verifier(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS, "critic")
    content = evaluated(run)
    assert {m["n"] for m in content["methods"]} == {1, 2, 4, 8, 16}
    assert [entry(content, "pass@n", "", n)["problems"] for n in (4, 8, 16)] == [24, 14, 4]
    assert entry(content, "pass@1", "", 1)["accuracy"] == entry(content, "self-consistency", "", 1)["accuracy"]
    for m in content["methods"]:
        assert set(m) - {"se"} == {"method", "verifier", "n", "accuracy", "ci_low", "ci_high", "problems"}
        assert 0 <= m["ci_low"] <= m["accuracy"] <= m["ci_high"] <= 1
        assert m["accuracy"] <= entry(content, "pass@n", "", m["n"])["accuracy"] + 1e-9
    gain = next(p for p in content["paired"] if p["a"] == "best-of-n:orm-minos" and p["n"] == 4)
    sides = [entry(content, "best-of-n", name, 4)["accuracy"] for name in ("orm-minos", "orm-base")]
    assert gain["b"] == "best-of-n:orm-base"
    assert gain["difference"] == pytest.approx(sides[0] - sides[1])
    assert gain["difference"] > 0 and gain["p_value"] is not None
    assert all(p["p_value"] is None for p in content["paired"] if p["n"] != 4)
    leads = [p for p in content["paired"] if p["b"] == "self-consistency"]
    assert {p["n"] for p in leads} == {4} and len(leads) == 25
    assert all(0 <= p["p_value"] <= 1 for p in leads)


def test_counts_and_what_was_dropped(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS, "critic")
    content = evaluated(run)
    counts = content["counts"]
    labels = run.artefact("labels").read().to_pylist()
    assert counts["candidates"] == sum(SIZES) == len(labels)
    assert counts["no_answer"] == counts["truncated"] == sum(row["answer"] is None for row in labels) > 0
    assert sum(counts["status"].values()) == sum(SIZES)
    assert counts["problems_by_candidates"] == {"5": 10, "8": 10, "16": 4}
    assert counts["dropped"] == {"candidates": {"too_long": 2}}
    assert counts["missing"] == []


def test_meta_and_errors(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS, "critic")
    content = evaluated(run)
    rows = {(row["verifier"], row["level"]): row for row in content["meta"]}
    assert set(rows) == {(name, "outcome") for name in (*VERIFIERS, "critic")} | {
        (name, "step") for name in ("prm-base", "prm-minos", "critic")
    }  # fmt: skip
    assert rows["orm-minos", "outcome"]["auc"] > rows["orm-base", "outcome"]["auc"] > 0.5
    wrong = [row for row in run.artefact("labels").read().to_pylist() if not row["correct"]]
    rejected = content["errors"]["rejected"]["orm-minos"]
    assert sum(kind["wrong"] for kind in rejected.values()) == len(wrong) == content["errors"]["wrong"]["test"]


@pytest.mark.parametrize("aggregation", ["min", "product"])
def test_what_a_calibrated_verifier_said_before(tmp_path: Path, aggregation: str) -> None:
    """Two runs with the same candidates: the scores of the second are those of the first, calibrated."""
    runs, platt = [make_run(tmp_path / name, [8] * 10) for name in ("before", "after")], Platt(0.3, 0.8)
    for name in ("orm-base", "prm-base"):
        scores(runs[0], name, 0.2)
        rows = runs[0].artefact(f"scores/{name}").read().to_pylist()
        for row in rows:
            row["step_scores"] = [min(score, 0.999) for score in row["step_scores"]]
            row["score"] = min(row["score"], 0.999)
            if row["step_scores"]:
                row["score"] = float(getattr(np, {"min": "min", "product": "prod"}[aggregation])(row["step_scores"]))
        put(runs[0], f"scores/{name}", rows)
        for row in rows:
            row["step_scores"] = [line(platt, score) for score in row["step_scores"]]
            row["score"] = line(platt, row["score"])
            if row["step_scores"]:
                row["score"] = float(getattr(np, {"min": "min", "product": "prod"}[aggregation])(row["step_scores"]))
        put(runs[1], f"scores/{name}", rows)
        model = runs[1].artefact(f"models/{name}")
        model.begin({"import": "made"})
        model.complete({}, {}, {"calibration": platt._asdict()})
    before, after = (evaluated(run, score={"aggregation": aggregation, "judge": None}) for run in runs)
    assert [(row["verifier"], row["level"]) for row in after["meta"]] == [
        ("orm-base", "outcome"), ("prm-base", "outcome"), ("prm-base", "step")
    ]  # fmt: skip
    for raw, row in zip(before["meta"], after["meta"], strict=True):
        assert "uncalibrated" not in raw
        for name, value in row["uncalibrated"].items():
            assert value == pytest.approx(raw[name], abs=1e-5), (row["verifier"], row["level"], name)
            assert value != pytest.approx(row[name], abs=1e-3)
        if aggregation == "min":  # a product of calibrated chances is no function of the former product
            assert row["auc"] == pytest.approx(raw["auc"])
    if aggregation == "min":
        accuracies = [{(m["verifier"], m["n"]): m["accuracy"] for m in content["methods"] if m["method"] == "best-of-n"}
                      for content in (before, after)]  # fmt: skip
        assert accuracies[0] == pytest.approx(accuracies[1])
    for name in ("orm-base", "prm-base"):  # of a model that has been trained again since
        artefact = runs[1].artefact(f"scores/{name}")
        rows = artefact.read()
        artefact.begin({"needs": {f"models/{name}": "another"}})
        artefact.write_part("0", rows)
        artefact.complete({}, {})
    again = evaluated(runs[1], score={"aggregation": aggregation, "judge": None})
    assert [row for row in again["meta"] if "uncalibrated" in row] == []


def line(platt: Platt, score: float) -> float:
    """A calibrated score, by hand."""
    return float(1 / (1 + np.exp(-(platt.scale * np.log(score / (1 - score)) + platt.shift))))


def test_without_step_labels_critic_and_most_verifiers(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, [4] * 6, labelled=False), "orm-base")
    content = evaluated(run, score={"judge": None})
    assert {m["verifier"] for m in content["methods"]} == {"", "orm-base"}
    assert [row["level"] for row in content["meta"]] == ["outcome"]
    assert content["counts"]["missing"] == ["orm-minos", "prm-base", "prm-minos"]
    assert set(content["errors"]["rejected"]["orm-base"]) == {"untyped"}
    assert not any(p["a"].endswith("minos") for p in content["paired"])


def test_no_verifier_at_all_still_gives_the_vote(tmp_path: Path) -> None:
    content = evaluated(make_run(tmp_path, [3, 3]))
    assert {m["method"] for m in content["methods"]} == {"pass@1", "pass@n", "self-consistency"}
    assert {m["n"] for m in content["methods"]} == {1, 2, 3}
    assert content["paired"] == [] and content["counts"]["missing"][-1] == "critic"


def test_chosen_ns_beyond_every_problem_are_left_out(tmp_path: Path) -> None:
    content = evaluated(make_run(tmp_path, [3, 5]), evaluate={"ns": [2, 4, 64]})
    assert {m["n"] for m in content["methods"] if m["method"] == "pass@n"} == {2, 4}


def test_methods_are_compared_where_nearly_all_problems_have_as_many_candidates(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, [64] + [32] * 59 + [20] * 40), "orm-base", "prm-base")
    content = evaluated(run)
    assert content["n"] == 16 and entry(content, "pass@1", "", 1)["problems"] == 100
    assert [entry(content, "best-of-n", "orm-base", n)["problems"] for n in (16, 32, 64)] == [100, 60, 1]
    assert {p["n"] for p in content["paired"]} == {16}
    assert {m["n"] for m in read_outcomes(run).to_pylist()} == {1, 16}
    nearly = evaluated(run, evaluate={"ns": [1, 32, 64]})
    assert nearly["n"] == 1  # of 60 problems at 32 and 1 at 64
    few = evaluated(run, evaluate={"ns": [32, 64]})
    assert few["n"] == 32 and {m["problems"] for m in few["methods"] if m["n"] in (1, 32)} == {60}


def test_one_sample_is_of_the_problems_that_are_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path, [8] * 39 + [1])
    rows = run.artefact("labels").read().to_pylist()
    for row in rows:
        row["correct"] = row["problem_id"] != "p39"
    put(run, "labels", rows)
    content = evaluated(run)
    found = [entry(content, "pass@1", "", 1), entry(content, "self-consistency", "", 8)]
    assert content["n"] == 8 and [(m["accuracy"], m["problems"]) for m in found] == [(1.0, 39)] * 2


def test_a_candidate_that_is_missing_does_not_change_n(tmp_path: Path) -> None:
    content = evaluated(make_run(tmp_path, [12] * 39 + [11]))
    assert content["n"] == 12 and entry(content, "self-consistency", "", 12)["problems"] == 39


@pytest.mark.parametrize("section", [{}, {"ns": [1, 2, 4]}])
def test_groups_are_compared_at_the_same_n(tmp_path: Path, section: dict[str, Any]) -> None:
    content = evaluated(make_run(tmp_path, [12] * 39 + [24]), evaluate={"groups": 3, **section})
    assert content["groups"]["n"] == content["n"] == 4
    vote = next(m for m in content["groups"]["methods"] if m["method"] == "self-consistency")
    assert np.mean(vote["accuracy"]) == pytest.approx(entry(content, "self-consistency", "", 4)["accuracy"])


def test_refused_candidates_are_no_predictions_and_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, [6])
    right = [True] * 5 + [False]
    rows = run.artefact("labels").read().to_pylist()
    for row, fine in zip(rows, right, strict=True):
        status = "correct" if fine else "wrong"
        row |= {"answer": "40" if fine else "41", "correct": fine, "status": status}
    put(run, "labels", rows)
    given = [0.9, 0.9, 0.9, 0.9, 0.0, 0.4]
    facts = [{"candidate_id": f"p0/{at}", "problem_id": "p0"} for at in range(6)]
    put(run, "scores/orm-base", [{**f, "score": s, "step_scores": []} for f, s in zip(facts, given, strict=True)])
    content = evaluated(run)
    weighted = [entry(content, f"weighted-vote{rule}", "orm-base", 6) for rule in ("", "-mean", "-log-odds")]
    assert [m["accuracy"] for m in weighted] == [1.0] * 3
    (judged,) = content["meta"]
    assert (judged["examples"], judged["unscored"], judged["auc"]) == (6, 1, 1.0)
    assert judged["accuracy"] == pytest.approx(5 / 6) and judged["f1"] == pytest.approx(8 / 9)
    assert content["counts"]["unscored"] == {"unscored by orm-base": 1}
    assert sum(bin["rows"] for bin in content["calibration"]["orm-base"]) == 5
    alone = {**facts[5], "score": 0.0, "step_scores": []}
    run.delete("evaluation.json.manifest.json")
    put(run, "scores/orm-base", [{**f, "score": 0.9, "step_scores": []} for f in facts[:5]] + [alone])
    assert {k["share"] for k in evaluated(run)["errors"]["rejected"]["orm-base"].values()} == {0.0}


def test_unscored_candidates_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, [4] * 4)
    scores(run, "orm-base", 0.3, skip=["p0/0", "p1/1"])
    content = evaluated(run)
    assert content["counts"]["unscored"] == {"unscored by orm-base": 2}
    assert run.artefact("evaluation.json").manifest().dropped == {"unscored by orm-base": 2}


def test_many_candidates_are_judged_by_few_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS)
    judge, judging, most = verdicts.outcome_row, threading.Semaphore(2), []

    def outcome_row(*arguments: Any) -> dict[str, Any]:
        most.append(judging.acquire(blocking=False))
        time.sleep(0.05)
        judging.release()
        return judge(*arguments)

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(verdicts, "outcome_row", outcome_row)
    monkeypatch.setattr(stage, "JUDGED_AT_ONCE", 2 * sum(SIZES))
    assert len(evaluated(run)["meta"]) >= len(VERIFIERS) and len(most) >= len(VERIFIERS) and all(most)


def test_the_same_run_gives_the_same_file_and_is_skipped_when_fresh(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, SIZES), "orm-base")
    first = evaluated(run)
    created = run.artefact("evaluation.json").manifest().created
    assert evaluated(run) == first and run.artefact("evaluation.json").manifest().created == created
    run.delete("evaluation.json.manifest.json")
    assert evaluated(run) == first


def test_scores_outside_0_to_1_are_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path, [2])
    rows = [{"candidate_id": f"p0/{i}", "problem_id": "p0", "score": 1.0 + i, "step_scores": []} for i in range(2)]
    put(run, "scores/orm-base", rows)
    with pytest.raises(UserError, match=r"scores/orm-base: the score of 'p0/1' is 2\.0"):
        evaluated(run)


def test_no_test_problem_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'test'"):
        evaluated(make_run(tmp_path, []))


def test_blocks_of_problems_give_what_one_block_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS, "critic")
    shuffle_parts(run, 5)
    beside_other_rows(run)
    whole = evaluated(run)
    run.delete("evaluation.json.manifest.json")
    monkeypatch.setattr(blocks, "ROWS", 40)
    assert len(blocks.plan_blocks(run, "test").groups) == 5
    parts = evaluated(run)
    assert parts.keys() == whole.keys()
    for content in (parts, whole):
        del content["counts"]["wrong_answers"]  # different answers of each block
    for name, value in whole.items():
        assert close(parts[name], value), name


def test_blocks_are_larger_where_they_would_be_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, SIZES)
    monkeypatch.setattr(blocks, "ROWS", 1)
    every = blocks.plan_blocks(run, "test")
    for files in (1, 2, 3):
        monkeypatch.setattr(blocks, "FILES", files)
        plan = blocks.plan_blocks(run, "test")
        assert 1 <= len(plan.groups) <= files < len(every.groups)
        assert pa.concat_arrays(plan.groups) == pa.concat_arrays(every.groups)


def test_of_too_many_problems_some_are_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored(make_run(tmp_path, SIZES), *VERIFIERS)
    monkeypatch.setattr(blocks, "MOST_PROBLEMS", len(SIZES) - 1)
    drawn = {name for group in blocks.plan_blocks(run, "test").groups for name in group.to_pylist()}
    left_out = sum(size for number, size in enumerate(SIZES) if f"p{number}" not in drawn)
    content = evaluated(run)
    assert 0 < len(drawn) < len(SIZES) and content["counts"]["problems"] == len(drawn)
    assert content["counts"]["problem_not_drawn"] == left_out == sum(SIZES) - content["counts"]["candidates"]
    assert run.artefact("evaluation.json").manifest().dropped["problem_not_drawn"] == left_out


def test_train_candidates_that_are_left_out_of_the_error_types_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scored(make_run(tmp_path, [4] * 6), VERIFIERS[0])
    problems = run.artefact("problems").read().to_pylist()
    put(run, "problems", [{**row, "split": "train" if number >= 2 else "test"} for number, row in enumerate(problems)])
    monkeypatch.setattr(blocks, "MOST_PROBLEMS", 3)
    content, dropped = evaluated(run), run.artefact("evaluation.json").manifest().dropped
    left_out = 4 * (4 - len(pa.concat_arrays(blocks.plan_blocks(run, "train").groups)))
    assert dropped["train_problem_not_drawn"] == content["counts"]["train_problem_not_drawn"] == left_out > 0
    assert "problem_not_drawn" not in dropped and content["counts"]["problems"] == 2


def beside_other_rows(run: Run) -> None:
    """Adds a train problem whose labels are a part of their own, and a part without rows."""
    rows, labels = run.artefact("problems").read().to_pylist(), run.artefact("labels").read()
    problem = {**rows[0], "problem_id": "z", "split": "train"}
    run.artefact("problems").write_part("train", columns.table("problems", [problem]))
    few = labels.slice(0, 3).to_pylist()
    train = [{**row, "problem_id": "z", "candidate_id": f"z/{i}"} for i, row in enumerate(few)]
    run.artefact("labels").write_part("train", columns.table("labels", train))
    run.artefact("labels").write_part("none", labels.slice(0, 0))
    for name in ("problems", "labels"):
        run.artefact(name).complete({"rows": run.artefact(name).read(partial=True).num_rows})


@pytest.mark.parametrize("rows", [40, 10_000])
def test_labels_that_are_not_complete_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    run = scored(make_run(tmp_path, SIZES), "orm-base")
    run.delete("labels/manifest.json")
    monkeypatch.setattr(blocks, "ROWS", rows)
    with pytest.raises(UserError, match="labels is not complete"):
        evaluated(run)


def close(a: Any, b: Any) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b) if isinstance(b, float) else a == b


def shuffle_parts(run: Run, parts: int) -> None:
    """Rewrites labels and scores as parts in which problems are mixed."""
    rng = np.random.default_rng(0)
    for name in ("labels", *(f"scores/{v}" for v in (*VERIFIERS, "critic"))):
        artefact = run.artefact(name)
        rows = artefact.read()
        rows = rows.take(rng.permutation(rows.num_rows))
        for part in range(parts):
            artefact.write_part(str(part), rows.take(np.arange(part, rows.num_rows, parts)))
        artefact.complete({"rows": rows.num_rows})


def test_groups_are_evaluated_one_by_one_and_averaged(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path / "run", [12] * 20), "orm-base", "prm-base")
    content = evaluated(run, evaluate={"groups": 3})
    assert {m["n"] for m in content["methods"]} == {1, 2, 4}
    assert content["groups"]["count"] == 3 and content["groups"]["n"] == 4
    labels = run.artefact("labels").read().sort_by("candidate_id").to_pylist()
    score = {r["candidate_id"]: r["score"] for r in run.artefact("scores/orm-base").read().to_pylist()}
    by_hand = np.zeros((20, 3))
    for problem in range(20):
        rows = [row for row in labels if row["problem_id"] == f"p{problem}"]
        for group in range(3):
            best = max(
                (r for r in rows[4 * group : 4 * group + 4] if r["answer"]), key=lambda r: score[r["candidate_id"]],
                default={"correct": False},
            )  # fmt: skip
            by_hand[problem, group] = best["correct"]
    assert entry(content, "best-of-n", "orm-base", 4)["accuracy"] == pytest.approx(by_hand.mean())
    assert content["groups"]["left_out"] == content["groups"]["too_few"] == 0
    found = next(m for m in content["groups"]["methods"] if m["method"] == "best-of-n" and m["verifier"] == "orm-base")
    assert found["accuracy"] == pytest.approx(by_hand.mean(axis=0).tolist())


def test_what_groups_leave_out_is_counted(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, [13] * 9 + [2]), "orm-base")
    groups = evaluated(run, evaluate={"groups": 3})["groups"]
    assert (groups["left_out"], groups["too_few"]) == (9 + 2, 1)


@pytest.mark.parametrize("section", [{"groups": 3}, {"ns": [4]}, {"groups": 2, "ns": [2]}])
def test_more_candidates_than_there_are_is_a_user_error(tmp_path: Path, section: dict[str, Any]) -> None:
    run = scored(make_run(tmp_path, [2] * 3), "orm-base")
    before = evaluated(run)
    with pytest.raises(UserError, match=r"evaluate\.groups = .*no problem has so many candidates; the largest has 2"):
        evaluated(run, evaluate=section)
    assert run.artefact("evaluation.json").manifest() and evaluated(run) == before


def test_p_values_name_their_test(tmp_path: Path) -> None:
    whole = evaluated(scored(make_run(tmp_path / "a", [8] * 10), "orm-base"))
    parts = evaluated(scored(make_run(tmp_path / "b", [8] * 10 + [9] * 10), "orm-base"))
    for content, tests in ((whole, {"mcnemar"}), (parts, {"sign-flip"})):
        assert {p["test"] for p in content["paired"] if p["p_value"] is not None} == tests


def test_a_prm_is_read_in_four_ways(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, [8] * 10), "prm-base")
    content = evaluated(run)
    rows = {(r["method"], r["aggregation"], r["n"]): r for r in content["aggregations"]}
    assert {key[1] for key in rows} == {"min", "product", "last", "mean"} and len(rows) == 2 * 4 * 4
    for method in ("best-of-n", "weighted-vote"):
        for n in (1, 2, 8):
            # All steps but the last score 1 in these runs, and `scores` holds the last one's.
            main = entry(content, method, "prm-base", n)["accuracy"]
            assert rows[method, "min", n]["accuracy"] == pytest.approx(main)
            assert rows[method, "last", n]["accuracy"] == pytest.approx(main)


def test_sampled_votes_say_how_far_their_subsets_may_be_off(tmp_path: Path) -> None:
    run = scored(make_run(tmp_path, [16] * 12), "orm-base")
    few, many = (evaluated(run, evaluate={"trials": trials}) for trials in (20, 2000))
    for method in ("self-consistency", "weighted-vote", "weighted-vote-mean", "weighted-vote-log-odds"):
        verifier = "" if method == "self-consistency" else "orm-base"
        one, other = (entry(content, method, verifier, 4) for content in (few, many))
        assert one["se"] > 5 * other["se"] > 0
        assert abs(one["accuracy"] - other["accuracy"]) < 4 * one["se"] + 4 * other["se"]
    assert all("se" not in m for m in few["methods"] if m["method"] in ("best-of-n", "pass@n") or m["n"] in (1, 16))


def test_wrong_answers_of_equal_value_vote_together(tmp_path: Path) -> None:
    run = make_run(tmp_path, [5])
    answers = ["2\\sqrt{3}", "\\sqrt{12}", "\\frac{6}{\\sqrt{3}}", "40", "40"]
    rows = run.artefact("labels").read().to_pylist()
    for row, answer in zip(rows, answers, strict=True):
        row |= {"answer": answer, "correct": answer == "40", "status": "correct" if answer == "40" else "wrong"}
    put(run, "labels", rows)
    content = evaluated(run)
    assert entry(content, "self-consistency", "", 5)["accuracy"] == 0.0
    assert content["counts"]["wrong_answers"] == {"fast": 0, "parsed": 3, "unreadable": 0, "timeout": 0}
