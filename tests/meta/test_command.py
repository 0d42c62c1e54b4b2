"""`minos meta` on real ProcessBench rows and on the miniature, with tiny verifiers, foreign models and critics."""

import json
import os
import random
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from minos_ray.config.schema import Meta, Model
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Scores, align
from minos_ray.imports import bring
from minos_ray.meta.command import Verifier, best_thresholds, foreign, judge, meta, read_set, set_key
from minos_ray.meta.measures import Threshold, calibration_lines, means
from minos_ray.miniature import load
from minos_ray.store import columns
from minos_ray.store.run import Run
from minos_ray.training.results import Platt
from tests.critiques.conftest import labelled
from tests.critiques.scripted import KEY, Reply, ScriptedServer
from tests.runs import config, make_run, put, scores
from tests.tiny import tiny_model

HALF = Threshold(0.5, 0.5, "given")


def verifier(run: Run, name: str) -> None:
    """A tiny model in the run, as training leaves it."""
    artefact = run.artefact(f"models/{name}")
    artefact.begin({"import": name})
    tiny_model(artefact.path, "orm" if name.startswith("orm") else "prm", spread=0.05)
    artefact.complete({})


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_processbench_f1_of_a_verifier(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())[::7]  # wrong ones come first
    (tmp_path / "gsm8k.json").write_text(json.dumps(rows))
    bench, run = Run(str(tmp_path / "bench")), Run(str(tmp_path / "run"))
    bring("processbench", str(tmp_path / "gsm8k.json"), bench)
    verifier(run, "orm-base")
    verifier(run, "prm-base")
    pool = {"score": {"actors": 1, "cpus": 1}}
    elsewhere = {"same": {"model": run.artefact("models/prm-base").path, "kind": "minos"}}
    asked = {"sets": [bench.path], "models": elsewhere}
    settings = config(run, reward={"verifiers": ["orm-base", "prm-base"]}, meta=asked, resources=pool)
    content = meta(settings, run)
    found = {(row["verifier"], row["level"]): row for row in content["rows"]}
    by_step = {(name, level) for name in ("prm-base", "same") for level in ("outcome", "step")}
    assert set(found) == {("orm-base", "outcome"), *by_step}
    assert [found[key]["kind"] for key in sorted(found)] == ["orm", "prm", "prm", "minos", "minos"]
    assert {row["set"] for row in content["rows"]} == {"processbench-gsm8k"}
    steps = found["prm-base", "step"]
    assert steps["wrong_solutions"] == sum(row["label"] >= 0 for row in rows)
    scores = run.artefact(f"meta/{set_key(bench)}/prm-base").read().to_pylist()
    labels = {row["candidate_id"]: row["step_labels"] for row in bench.artefact("labels").read().to_pylist()}
    hits = {True: [], False: []}
    for row in scores:
        own = labels[row["candidate_id"]]
        truth = own.index(0) if 0 in own else -1
        said = next((place for place, score in enumerate(row["step_scores"]) if score < 0.5), -1)
        hits[truth < 0].append(bool(row["step_scores"]) and said == truth)
    sides = [sum(hits[side]) / len(hits[side]) for side in (False, True)]
    expected = 2 * sides[0] * sides[1] / sum(sides) if sum(sides) else 0.0
    assert steps["first_error_f1"] == pytest.approx(expected)
    assert content["mean_first_error_f1"] == {name: pytest.approx(expected) for name in ("prm-base", "same")}
    assert json.loads(run.read_bytes("meta.json")) == content
    assert "threshold 0.5" in capsys.readouterr().out


def miniature(path: Path, split: str, dataset: str, problems: int = 8) -> Run:
    """A labelled set of the miniature: three attempts at each problem."""
    run, rng = Run(str(path)), random.Random(1)
    rows = [{**problem, "split": "test", "dataset": dataset} for problem in load(split, problems, 0)]
    put(run, "problems", rows)
    put(run, "labels", [labelled(problem, index, rng) for problem in rows for index in range(3)])
    return run


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_foreign_models_and_critics_with_thresholds_from_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = miniature(tmp_path / "judged", "test", "prmbench-circular")
    other = miniature(tmp_path / "other", "train", "else", 12)
    run = Run(str(tmp_path / "run"))
    foreign = {"model": tiny_model(tmp_path / "prm", "prm"), "kind": "tokens"}
    critic = {"base_url": "offline"}
    asked = {"sets": [judged.path], "models": {"trl": foreign}, "critics": {"teacher": critic}}
    pool = {"score": {"actors": 1, "cpus": 1}, "client": {"cpus": 0.5}}
    settings = config(run, meta={**asked, "threshold_from": other.path}, resources=pool)
    content = meta(settings, run)
    found = {(row["verifier"], row["level"]): row for row in content["rows"]}
    assert set(found) == {(name, level) for name in ("trl", "teacher") for level in ("outcome", "step")}
    assert {row["kind"] for row in content["rows"]} == {"tokens", "critic"}
    assert {row["threshold_from"] for row in content["rows"]} == {other.path} == {content["threshold_from"]}
    assert found["teacher", "outcome"]["threshold"] == found["teacher", "step"]["threshold"] == 0.5
    assert found["teacher", "step"]["accuracy"] > 0.8, "it misreads when it sees no labels, but not often"
    assert found["teacher", "step"]["unscored"] <= 2 and found["teacher", "step"]["unscored"] <= 2
    assert found["trl", "step"]["threshold"] == chosen_by_hand(run, other, "trl")
    low, high = found["trl", "step"]["accuracy_ci"]
    assert low <= found["trl", "step"]["accuracy"] <= high
    assert content["prmbench"]["teacher"]["classes"]["NCL"] == found["teacher", "step"]["macro_f1"]
    manifest = run.artefact(f"meta/{set_key(judged)}/teacher").manifest()
    assert manifest.counts["candidates"] == manifest.counts["critiques"] == 24
    assert manifest.counts["ok"] + sum(manifest.dropped.values()) == 24
    printed = capsys.readouterr().out
    assert f"thresholds chosen on {other.path}" in printed and "PRMScore" in printed
    bought = run.files("cache/critiques")
    run.delete(f"meta/{set_key(judged)}/teacher/manifest.json")
    assert meta(settings, run) == content
    assert run.files("cache/critiques") == bought


def chosen_by_hand(run: Run, other: Run, name: str) -> float:
    """Half-way between two scores, by trying all of them on the other set."""
    labels = {row["candidate_id"]: row["step_labels"] for row in other.artefact("labels").read().to_pylist()}
    rows = run.artefact(f"meta/{set_key(other)}/{name}").read().to_pylist()
    values = sorted({score for row in rows for score in row["step_scores"]})
    tried = [(a + b) / 2 for a, b in pairwise(values)]

    def f1(threshold: float) -> float:
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for row in rows:
            own = labels[row["candidate_id"]]
            truth = own.index(0) if 0 in own else -1
            said = next((place for place, score in enumerate(row["step_scores"]) if score < threshold), -1)
            hits[truth < 0].append(said == truth)
        a, b = (sum(hits[side]) / len(hits[side]) for side in (True, False))
        return 2 * a * b / (a + b) if a + b else 0.0

    reached = {threshold: f1(threshold) for threshold in tried}
    best = max(reached.values())
    return min((t for t in tried if reached[t] == best), key=lambda t: abs(t - 0.5))


def test_the_key_of_a_set_is_its_content(tmp_path: Path) -> None:
    one, same, other = (make_run(tmp_path / n, [2, 1], seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert set_key(one) == set_key(same) != set_key(other)


def test_a_threshold_set_with_a_judged_question_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    copy, apart = make_run(tmp_path / "copy", [1, 1, 1]), make_run(tmp_path / "unlabelled", [0])
    with pytest.raises(UserError, match=r"threshold_from: '.*copy' shares 1 questions with the judged set '.*run'"):
        meta(config(run, meta={"threshold_from": copy.path}), run)
    with pytest.raises(UserError, match=r"threshold_from: '.*unlabelled' has no labelled solution in split test"):
        meta(config(run, meta={"threshold_from": apart.path}), run)


def test_what_cannot_be_judged_is_a_user_error_before_any_work(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    model = tiny_model(tmp_path / "model", "causal")
    with pytest.raises(UserError, match="kind 'qwen' is"):
        meta(config(run, meta={"models": {"a": {"model": model, "kind": "qwen"}}}), run)
    with pytest.raises(UserError, match="there is no directory"):
        meta(config(run, meta={"models": {"a": {"model": f"{tmp_path}/nothing", "kind": "qwen"}}}), run)
    with pytest.raises(UserError, match="'no/such-model' is neither a directory nor to be had"):
        meta(config(run, meta={"models": {"a": {"model": "no/such-model", "kind": "qwen"}}}), run)
    told = {"critics": {"c": {"prompt": "minos_ray.critiques.prompts:label_aware"}}}
    with pytest.raises(UserError, match=r"meta\.critics\.c\.prompt"):
        meta(config(run, meta=told), run)
    assert not run.exists("meta")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": {"prm-base": {"model": "a", "kind": "qwen"}}}, "'prm-base' is taken twice"),
        ({"models": {"a": {"model": "a", "kind": "qwen"}}, "critics": {"a": {}}}, "'a' is taken twice"),
        ({"models": {"a.b": {"model": "a", "kind": "qwen"}}}, "should match pattern"),
        ({"models": {"a": {"model": "a", "kind": "llama"}}}, "'sequence', 'tokens', 'shepherd' or 'qwen'"),
        ({"critics": {"a": {"count": 5}}}, "every solution is asked about"),
        ({"critics": {"a": {"samples": 5}}}, "needs a temperature above 0"),
        ({"threshold": 0.4, "threshold_from": "x"}, "not both"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Meta(**values)


def test_a_section_is_read_back_as_it_was_written() -> None:
    section = Meta(critics={"a": {"samples": 3, "temperature": 1.0}}, threshold_from="x")
    assert Meta(**section.model_dump(mode="json")) == section


def test_a_set_that_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    with pytest.raises(UserError, match=r"meta\.sets: '.*nothing' has no complete problems"):
        meta(config(run, meta={"sets": [str(tmp_path / "nothing")]}), run)


def test_a_run_without_verifiers_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    with pytest.raises(UserError, match="has none of the verifiers orm-base"):
        meta(config(run), run)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_what_a_critic_did_not_answer_is_asked_for_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_CRITIC_KEY", KEY)
    judged, run = miniature(tmp_path / "judged", "test", "else", 3), Run(str(tmp_path / "run"))
    refused: list[str] = []

    def script(content: str, before: int) -> Reply:
        refused.extend([content] * (not refused))
        return Reply(status=400) if content == refused[0] and not before else Reply(text="I like it.")

    server = ScriptedServer(script)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    critic = {"base_url": server.url, "model": "m", "api_key_env": "TEST_CRITIC_KEY"}
    client = {"cpus": 0.5, "concurrency": 1, "timeout_s": 60}
    settings = config(run, meta={"sets": [judged.path], "critics": {"gpt": critic}}, resources={"client": client})
    artefact = run.artefact(f"meta/{set_key(judged)}/gpt")
    meta(settings, run)
    assert artefact.manifest().dropped["critique_bad_request"] == 1
    assert "meta.critics.gpt: 1 critiques got no answer" in capsys.readouterr().out
    for _ in range(2):
        meta(settings, run)
        assert "critique_bad_request" not in artefact.manifest().dropped
    server.shutdown()
    server.server_close()
    times = server.times()
    assert times.pop(refused[0]) == 2 and set(times.values()) == {1}


def test_a_model_that_changes_in_its_place_is_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path / "run"))
    verifier(run, "prm-base")
    for name in ("a", "b"):
        tiny_model(tmp_path / name / "prm", "prm")

    def inputs(model: str, kind: str = "tokens") -> dict[str, Any]:
        return foreign(config(run, meta={"models": {"m": {"model": model, "kind": kind}}}), run)[0].inputs

    first, own = inputs(f"{tmp_path}/a/prm"), inputs("run:models/prm-base", "minos")
    assert inputs(f"{tmp_path}/a/prm") == first
    weights = tmp_path / "a" / "prm" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert inputs(f"{tmp_path}/a/prm") != first
    artefact = run.artefact("models/prm-base")
    artefact.adopt({"import": "another"})
    artefact.complete({})
    assert inputs("run:models/prm-base", "minos") != own
    by_path = inputs(artefact.path, "minos")
    assert by_path["weights"] == artefact.manifest().fingerprint
    monkeypatch.chdir(tmp_path / "a")
    relative = inputs("prm")
    monkeypatch.chdir(tmp_path / "b")
    assert inputs("prm") != relative


def test_steps_never_take_the_threshold_of_outcomes(tmp_path: Path) -> None:
    other = read_set(make_run(tmp_path / "run", [3, 2], labelled=False).path, "meta.threshold_from")
    scores = Scores(np.linspace(0, 1, 5), pa.chunked_array([[[0.5]] * 5], pa.list_(pa.float32())))
    assert not other.by_step
    with pytest.raises(UserError, match="no right or no wrong solution with step labels to choose the threshold of v"):
        best_thresholds("v", scores, other, by_step=True)
    assert best_thresholds("v", scores, other, by_step=False).source == other.run.path
    without = Scores(scores.score, pa.chunked_array([[[]] * 5], pa.list_(pa.float32())))
    assert best_thresholds("v", without, other, by_step=True).source == other.run.path


@pytest.mark.parametrize("kind, by_step", [("prm", True), ("orm", False)])
def test_a_set_where_nothing_was_scored_counts_in_the_mean(tmp_path: Path, kind: str, by_step: bool) -> None:
    run = make_run(tmp_path / "run", [3, 2, 4])
    part = read_set(run.path, "meta.sets").candidates
    ids = part.rows["candidate_id"].to_pylist()
    refused = [{"candidate_id": n, "problem_id": n.partition("/")[0], "score": 0.0, "step_scores": []} for n in ids]
    scores = align("scores/v", columns.table("scores", refused), part)
    judged = Verifier("v", kind, Model(model="m"), {}, by_step)
    rows = [{"set": "processbench-a", **row} for row in judge(config(run), judged, scores, part, HALF)]
    assert [(row["level"], row["unscored"]) for row in rows] == [("outcome", 9), ("step", 9)][: len(rows)]
    assert (rows[0]["accuracy"], rows[0]["f1"], rows[0]["auc"]) == (0.0, 0.0, None)
    other = {"set": "processbench-b", "verifier": "v", "first_error_f1": 0.8}
    assert means([*rows, other])["mean_first_error_f1"] == {"v": pytest.approx(0.4 if by_step else 0.8)}
    json.dumps(rows, allow_nan=False)


def test_our_verifiers_elsewhere_score_steps_by_their_architecture(tmp_path: Path) -> None:
    models = {k: {"model": tiny_model(tmp_path / k, k), "kind": "minos"} for k in ("orm", "prm")}
    found = foreign(config(Run(str(tmp_path / "run")), meta={"models": models}), Run(str(tmp_path / "run")))
    assert {verifier.name: verifier.by_step for verifier in found} == {"orm": False, "prm": True}


def test_a_calibrated_orm_elsewhere_is_an_orm_and_its_config_says_how_it_was_before(tmp_path: Path) -> None:
    folder = Path(tiny_model(tmp_path / "orm", "prm"))  # the class that has a bias
    settings = json.loads((folder / "config.json").read_text())
    facts = {"method": "platt", "scale": 0.5, "shift": -1.0}
    (folder / "config.json").write_text(json.dumps({**settings, "verifier_kind": "orm", "calibration": facts}))
    run = make_run(tmp_path / "run", [6] * 4)
    asked = config(run, meta={"models": {"orm": {"model": str(folder), "kind": "minos"}}})
    (judged,) = foreign(asked, run)
    assert not judged.by_step and judged.platt == Platt(0.5, -1.0)
    scores(run, "orm-base", 0.2)
    part = read_set(run.path, "meta.sets").candidates
    table = run.artefact("scores/orm-base").read()
    (row,) = judge(asked, judged, align("scores/orm", table, part), part, HALF)
    by_id = dict(zip(table["candidate_id"].to_pylist(), table["score"].to_numpy().astype(float), strict=True))
    given = np.clip([by_id[name] for name in part.rows["candidate_id"].to_pylist()], 1e-7, 1 - 1e-7)
    before = 1 / (1 + np.exp(-(np.log(given / (1 - given)) + 1.0) / 0.5))
    assert row["uncalibrated"]["brier"] == pytest.approx(((before - part.correct) ** 2).mean(), abs=1e-6)
    head = {"set": "small", "kind": "minos"}
    text = "\n".join(calibration_lines([head | row]))
    assert f"{row['uncalibrated']['log_loss']:.4f} -> {row['log_loss']:.4f}" in text
    assert calibration_lines([{**head, **row, "uncalibrated": {}}]) == []


def test_the_key_of_a_set_knows_its_splits(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a", [2, 1]), make_run(tmp_path / "b", [2, 1])
    rows = other.artefact("problems").read().to_pylist()
    put(other, "problems", [{**rows[0], "split": "train"}, *rows[1:]])
    assert set_key(one) != set_key(other)


def test_means_of_processbench_are_not_mixed_with_other_sets() -> None:
    sets = {"processbench-gsm8k": 0.8, "processbench-math": 0.6, "prmbench-circular": 0.1}
    rows = [{"set": name, "verifier": "v", "first_error_f1": value} for name, value in sets.items()]
    mean, others = "mean_first_error_f1", "mean_first_error_f1_of_others"
    assert means(rows) == {mean: {"v": pytest.approx(0.7)}, others: {"v": 0.1}}
    assert means(rows[2:]) == {mean: {"v": 0.1}, others: {}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_step_score_that_is_no_number_is_a_user_error(tmp_path: Path, value: float | None) -> None:
    candidates = read_set(make_run(tmp_path / "run", [2]).path, "meta.sets").candidates
    row = {"candidate_id": "p0/1", "problem_id": "p0", "score": 0.5, "step_scores": [0.5, value]}
    with pytest.raises(UserError, match=r"scores/v: a step score of 'p0/1' is (nan|inf); scores lie in 0\.\.1"):
        align("scores/v", columns.table("scores", [row]), candidates)
