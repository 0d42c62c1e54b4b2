"""Outcomes by problem, beside evaluation.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from minos_ray.evaluation.comparison import OUTCOMES_SCHEMA, outcomes_of, read_outcomes
from minos_ray.evaluation.stage import evaluate
from tests.runs import config, make_run, scores


def test_outcomes_by_problem_are_what_the_accuracies_are_means_of(tmp_path: Path) -> None:
    run = make_run(tmp_path, [8] * 37 + [3] * 2 + [16] * 2)
    scores(run, "orm-base", 0.2)
    evaluate(config(run, evaluate={"trials": 20, "bootstrap": 100}), run)
    table = read_outcomes(run)
    assert table.schema == OUTCOMES_SCHEMA
    methods = {
        (m["method"], m["verifier"]): m
        for m in json.loads(run.read_bytes("evaluation.json"))["methods"]
        if m["n"] == (1 if m["method"] == "pass@1" else 8)
    }
    kept = {(row["method"], row["verifier"], row["n"]) for row in table.to_pylist()}
    assert kept == {(name, verifier, 1 if name == "pass@1" else 8) for name, verifier in methods}
    for name, verifier in methods:
        values = outcomes_of(table, name, verifier)
        assert len(values) == 41
        assert np.nanmean(values) == pytest.approx(methods[name, verifier]["accuracy"])
        assert int(np.isnan(values).sum()) == 2 == 41 - methods[name, verifier]["problems"]


def test_they_are_in_the_order_of_problem_ids(tmp_path: Path) -> None:
    run = make_run(tmp_path, [4] * 12)
    evaluate(config(run, evaluate={"bootstrap": 100}), run)
    table = read_outcomes(run)
    labels = run.artefact("labels").read().to_pylist()
    ids = sorted({row["problem_id"] for row in labels})
    shares = [np.mean([row["correct"] for row in labels if row["problem_id"] == name]) for name in ids]
    assert outcomes_of(table, "pass@1", "") == pytest.approx(shares)
