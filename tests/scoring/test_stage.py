"""The stage `score` on a real Ray, with tiny verifiers."""

import json
import shutil
from pathlib import Path

import pytest

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.scoring.stage import score
from minos_ray.scoring.verifier import Scorer
from minos_ray.store.run import Run
from tests.runs import config, make_run, put
from tests.tiny import tiny_model

SIZES = [7, 7, 4, 12, 1, 3, 9, 2, 6, 5]


def verifier(run: Run, name: str) -> None:
    """A tiny model in the run, as training leaves it."""
    artefact = run.artefact(f"models/{name}")
    artefact.begin({"import": name})
    tiny_model(artefact.path, "orm" if name.startswith("orm") else "prm", seed=len(name))
    artefact.complete({})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ten test problems, one train problem, one ORM and one PRM."""
    made = make_run(tmp_path / "run", SIZES)
    problems = made.artefact("problems").read().to_pylist()
    put(made, "problems", [*problems, {**problems[0], "problem_id": "other", "split": "train"}])
    verifier(made, "orm-base")
    verifier(made, "prm-minos")
    return made


@pytest.fixture
def settings(run: Run) -> Config:
    """One actor for both verifiers, no critic."""
    pool = {"score": {"actors": 1, "cpus": 1}}
    return config(run, reward={"verifiers": ["orm-base", "prm-minos"]}, score={"judge": None}, resources=pool)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_every_candidate_is_scored_once(run: Run, settings: Config) -> None:
    manifest = score(settings, run)
    assert manifest.artefact == "scores/prm-minos" and manifest.counts["candidates"] == sum(SIZES)
    labels = {row["candidate_id"]: row for row in run.artefact("labels").read().to_pylist()}
    for name in ("orm-base", "prm-minos"):
        rows = run.artefact(f"scores/{name}").read().to_pylist()
        assert sorted(row["candidate_id"] for row in rows) == sorted(labels)
        scorer = Scorer(run.artefact(f"models/{name}").path)
        for row in rows[:10]:
            question = f"Tom has {row['problem_id'][1:]} apples and buys 40 more. How many apples does Tom have?"
            (found,), _ = scorer.score([(question, labels[row["candidate_id"]]["steps"])])
            assert row["score"] == pytest.approx(min(found), abs=1e-4)
            assert row["step_scores"] == pytest.approx(found if name == "prm-minos" else [], abs=1e-4)
    assert score(settings, run).created == manifest.created


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_both_engines_score_the_same_and_fill_each_others_gaps(run: Run) -> None:
    labels = run.artefact("labels").read().to_pylist()
    shutil.rmtree(run.artefact("labels").path)
    put(
        run,
        "labels",
        [{**row, "steps": [], "step_labels": []} if row["candidate_id"] == "p0/0" else row for row in labels],
    )
    every_token(run, "orm-base")
    names = ["orm-base", "prm-minos"]

    def scored(**resources: object) -> dict[str, list[dict[str, object]]]:
        pool = {"score": {"units_per_task": 4, **resources}}
        made = config(run, reward={"verifiers": names}, score={"judge": None}, resources=pool)
        manifest = score(made, run)
        assert manifest.dropped == {"no_steps": 1}
        assert manifest.counts["candidates"] == sum(SIZES)
        return {n: run.artefact(f"scores/{n}").read().sort_by("candidate_id").to_pylist() for n in names}

    ours = scored()
    shutil.rmtree(f"{run.path}/scores")
    theirs = scored(engine="vllm", kv_cache_gb=0.05)
    assert run.artefact("scores/prm-minos").manifest().details["engine"] == "vllm"
    for name in names:
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert (mine["candidate_id"], mine["problem_id"]) == (other["candidate_id"], other["problem_id"])
            assert mine["score"] == pytest.approx(other["score"], abs=1e-4)
            assert mine["step_scores"] == pytest.approx(other["step_scores"], abs=1e-4)
            if name == "orm-base" and mine["step_scores"]:
                assert mine["score"] == mine["step_scores"][-1]
    assert [row["score"] for row in ours["orm-base"] if not row["step_scores"]] == [0.0]

    artefact = run.artefact("scores/orm-base")
    lost, *kept = artefact.part_names()
    before = {part: artefact.read_part(part).to_pylist() for part in kept}
    run.delete(f"scores/orm-base/part-{lost}.parquet")
    run.delete("scores/orm-base/manifest.json")
    again = scored()["orm-base"]
    assert [row["candidate_id"] for row in again] == [row["candidate_id"] for row in ours["orm-base"]]
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in ours["orm-base"]], abs=1e-4)
    assert before == {part: artefact.read_part(part).to_pylist() for part in kept}


def every_token(run: Run, name: str) -> None:
    """Says of a saved ORM that it was trained at every token."""
    path = Path(run.artefact(f"models/{name}").path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "orm_positions": "every_token"}))


def test_a_model_without_tokenizer_is_a_user_error_before_any_work(run: Run, settings: Config) -> None:
    (Path(run.artefact("models/orm-base").path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        score(settings, run)
    assert not run.exists("scores")


def test_no_candidates_of_the_test_split_is_a_user_error(run: Run, settings: Config) -> None:
    shutil.rmtree(run.artefact("labels").path)
    put(run, "labels", [])
    with pytest.raises(UserError, match="split 'test'"):
        score(settings, run)
