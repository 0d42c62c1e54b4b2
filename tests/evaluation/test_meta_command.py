"""`minos meta` on real ProcessBench rows, with tiny verifiers."""

import json
from pathlib import Path

import pytest

from minos_ray.errors import UserError
from minos_ray.evaluation.meta_command import meta, set_key
from minos_ray.imports import bring
from minos_ray.store import Run
from tests.runs import config, make_run
from tests.tiny import tiny_model


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
    settings = config(run, reward={"verifiers": ["orm-base", "prm-base"]}, meta={"sets": [bench.path]}, resources=pool)
    content = meta(settings, run)
    found = {(row["verifier"], row["level"]): row for row in content["rows"]}
    assert set(found) == {("orm-base", "outcome"), ("prm-base", "outcome"), ("prm-base", "step")}
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
    assert content["mean_first_error_f1"] == {"prm-base": pytest.approx(expected)}
    assert json.loads(run.read_bytes("meta.json")) == content
    assert "threshold 0.5" in capsys.readouterr().out


def test_a_set_that_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    with pytest.raises(UserError, match=r"meta\.sets: '.*nothing' has no complete problems"):
        meta(config(run, meta={"sets": [str(tmp_path / "nothing")]}), run)


def test_a_run_without_verifiers_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2])
    with pytest.raises(UserError, match="has none of the verifiers orm-base"):
        meta(config(run), run)
