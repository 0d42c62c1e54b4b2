"""Accuracies by category of the problems, against the same numbers taken by hand from outcomes.parquet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minos_ray.evaluation.comparison import read_outcomes
from minos_ray.evaluation.stage import evaluate
from minos_ray.report.statement import NOT_ADJUSTED, category_tables
from minos_ray.store.run import Run
from tests.runs import config, make_run, put, scores

LEVELS = ["5", "1", "10", None]


def evaluated(path: Path, sizes: Sequence[int], **categories: Sequence[Any]) -> tuple[dict[str, Any], Run]:
    """evaluation.json of a run with two verifiers whose problems have these values, one after the other."""
    run = make_run(path, sizes)
    rows = run.artefact("problems").read().to_pylist()
    for place, row in enumerate(rows):
        row.update({name: values[place % len(values)] for name, values in categories.items()})
    put(run, "problems", rows)
    for name, sharpness in (("orm-base", 0.1), ("orm-minos", 0.35)):
        scores(run, name, sharpness)
    evaluate(config(run, evaluate={"trials": 20, "bootstrap": 400}), run)
    return json.loads(run.read_bytes("evaluation.json")), run


def test_every_number_is_that_of_the_categorys_own_problems(tmp_path: Path) -> None:
    # One problem of level 1 has too few candidates to be compared; "only" and "number" are no categories.
    content, run = evaluated(
        tmp_path, [8] * 39 + [2], level=[*LEVELS], only=["x"], number=[str(k) for k in range(40)] + ["a"]
    )
    assert list(content["categories"]) == ["level", "number"]
    assert [entry["value"] for entry in content["categories"]["level"]] == ["1", "5", "10", None]
    level_of = {row["problem_id"]: row["level"] for row in run.artefact("problems").read().to_pylist()}
    table = read_outcomes(run).to_pylist()
    by_method: dict[tuple[str, str], dict[str, float]] = {}
    for row in table:
        if row["outcome"] is not None:
            by_method.setdefault((row["method"], row["verifier"]), {})[row["problem_id"]] = row["outcome"]
    for entry in content["categories"]["level"]:
        members = [name for name in by_method["self-consistency", ""] if level_of[name] == entry["value"]]
        assert entry["problems"] == len(members)
        taken = {key: np.array([values[name] for name in members]) for key, values in by_method.items()}
        assert {(m["method"], m["verifier"]) for m in entry["methods"]} == set(taken)
        for m in entry["methods"]:
            assert m["accuracy"] == pytest.approx(taken[m["method"], m["verifier"]].mean())
            assert 0 <= m["ci_low"] <= m["accuracy"] <= m["ci_high"] <= 1
        for d in entry["paired"]:
            a, b = (tuple((d[side] + ":").split(":")[:2]) for side in ("a", "b"))
            assert d["difference"] == pytest.approx((taken[a] - taken[b]).mean())
            assert -1 <= d["ci_low"] <= d["difference"] <= d["ci_high"] <= 1
        pairs = {(d["a"], d["b"]) for d in entry["paired"]}
        assert ("best-of-n:orm-minos", "best-of-n:orm-base") in pairs
        assert ("weighted-vote:orm-base", "self-consistency") in pairs
    assert sum(entry["problems"] for entry in content["categories"]["level"]) == 39


def test_the_problems_of_a_category_alone_give_the_same_intervals(tmp_path: Path) -> None:
    content, _ = evaluated(tmp_path / "all", [4] * 20, level=["1", "2"])
    lone = make_run(tmp_path / "alone", [4] * 20)
    chosen = {f"p{number}" for number in range(0, 20, 2)}
    for name in ("problems", "labels"):
        rows = lone.artefact(name).read().to_pylist()
        put(lone, name, [row for row in rows if row["problem_id"] in chosen])
    evaluate(config(lone, evaluate={"trials": 20, "bootstrap": 400}), lone)
    expected = json.loads(lone.read_bytes("evaluation.json"))["methods"]
    vote = next(m for m in expected if m["method"] == "self-consistency" and m["n"] == 4)
    (first, _) = content["categories"]["level"]
    own = next(m for m in first["methods"] if m["method"] == "self-consistency")
    assert own == {**{name: vote[name] for name in ("accuracy", "ci_low", "ci_high", "method")}, "verifier": ""}


def test_a_run_without_categories_has_no_table(tmp_path: Path) -> None:
    content, _ = evaluated(tmp_path, [4] * 6)
    assert content["categories"] == {} and category_tables(content) == ""
    del content["categories"]  # an evaluation of an earlier version
    assert category_tables(content) == ""


def test_the_text_names_every_value_and_says_that_intervals_are_not_adjusted(tmp_path: Path) -> None:
    content, _ = evaluated(tmp_path, [4] * 6, level=["2", "1", None])
    text = category_tables(content)
    first_words = [line.split()[:2] for line in text.splitlines() if "pass@1" in line]
    assert first_words == [["1", "2"], ["2", "2"], ["none", "given"]]
    assert text.endswith(NOT_ADJUSTED) and "Minos minus base" in text
