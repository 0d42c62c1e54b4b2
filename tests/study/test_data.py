"""What trials start from. A study: one budget for all data, copies that are what they were made from, trials that need
them. A sweep: nested critiques, fewer test problems, written once."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from minos_ray.config.load import Config, build
from minos_ray.critiques.limits import StopAtBudget
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.errors import UserError
from minos_ray.graph.specs import inputs, spec
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run
from minos_ray.study import comparison, stage
from minos_ray.study.grid import (
    Arm,
    Grid,
    SharedData,
    Trial,
    chosen_problems,
    copy,
    copy_fitting,
    give_data,
    has_data,
    study_grid,
    sweep_grid,
    with_remaining_budget,
)
from minos_ray.study.stage import check_labels
from tests.training.world import fill


def study(folder: Path, **critique: object) -> Grid:
    values = {"run": f"{folder}/run", "base": {"model": "x"}, "critique": {"count": 10, **critique}}
    return study_grid(build({**values, "study": {"seeds": [1, 2]}}), Run(f"{folder}/run"))


def put(config: Config, run: Run, name: str, parts: list[int]) -> None:
    """An artefact as its stage would leave it, of so many rows a part."""
    made = run.artefact(name)
    made.begin(inputs(config, run, spec(config, name)))
    for part, rows in enumerate(parts):
        made.write_part(f"{rows}-{part}", pa.table({"row": list(range(rows))}))
    made.complete({"rows": sum(parts)})


def test_the_limit_holds_for_the_data_of_all_seeds_together(tmp_path: Path) -> None:
    grid = study(tmp_path, max_usd=5)
    config, run = grid.config, grid.run
    places = [grid.data_run(Trial(grid.amounts[-1], seed)) for seed in (1, 2)]
    answer = Answer(text="x", outcome="answered", cost_usd=1.5)
    for key in ("a", "b"):
        asyncio.run(Cache(places[0]).add(key, answer))
    assert with_remaining_budget(config, run, places[0]).critique.max_usd == 5
    assert with_remaining_budget(config, run, places[1]).critique.max_usd == pytest.approx(2)
    asyncio.run(Cache(places[0]).add("c", Answer(text="x", outcome="answered", cost_usd=2.5)))
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = 5\.0: the data of other seeds"):
        with_remaining_budget(config, run, places[1])
    free = study(tmp_path).config
    assert with_remaining_budget(free, run, places[1]) == free


def test_a_copy_holds_nothing_of_what_was_there_with_the_same_inputs(tmp_path: Path) -> None:
    grid = study(tmp_path)
    config, source, target = grid.config, Run(grid.run.at("source")), Run(grid.run.at("target"))
    put(config, source, "problems", [2, 3])
    put(config, target, "problems", [4, 5, 6])
    copy_fitting(config, source, target)
    assert target.artefact("problems").manifest() == source.artefact("problems").manifest()
    assert target.artefact("problems").part_names() == source.artefact("problems").part_names()
    copy(source.artefact("problems"), target.artefact("problems"))
    assert target.artefact("problems").read().equals(source.artefact("problems").read())


def test_other_critiques_make_the_trials_that_read_them_stale_alone(tmp_path: Path) -> None:
    grid = study(tmp_path)
    base, minos = (Trial(arm, 1) for arm in (grid.amounts[0], grid.amounts[-1]))
    data = grid.data_run(base)
    for name in ("problems", "candidates", "labels", "critiques"):
        put(grid.data_config(base), data, name, [2])
    for trial in (base, minos):
        assert not has_data(grid, trial)
        give_data(grid, trial)
        assert has_data(grid, trial)
    put(grid.data_config(base), data, "critiques", [3])
    assert has_data(grid, base) and not has_data(grid, minos)
    grid.trial_run(minos).write_bytes("old", b"")
    give_data(grid, minos)
    assert has_data(grid, minos) and not grid.trial_run(minos).exists("old")
    assert grid.trial_config(minos).reward.verifiers == ("orm-minos", "prm-minos")


def test_an_arm_takes_the_critic_that_it_would_train_as_minos_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"refined": {"refine.rounds": 1}, "longer": {"sft.epochs": 9}}
    values = {"run": f"{tmp_path}/run", "base": {"model": "x"}, "critique": {"count": 10}}
    grid = study_grid(build({**values, "study": {"seeds": [1], "ablations": changes}}), Run(f"{tmp_path}/run"))
    minos, *ablations = (Trial(arm, 1) for arm in (grid.amounts[-1], *grid.ablations))
    for name in ("problems", "candidates", "labels", "critiques"):
        put(grid.data_config(minos), grid.data_run(minos), name, [2])
    for each in (minos, *ablations):
        give_data(grid, each)
    put(grid.trial_config(minos), grid.trial_run(minos), "models/critic", [1])
    stages: list[str] = []
    monkeypatch.setattr(stage, "resolve", lambda name: lambda config, run: stages.append(name.rpartition(":")[2]))
    for each in ablations:
        stage.run_trial(grid, each)
    critics = [grid.trial_run(each).artefact("models/critic").manifest() for each in ablations]
    assert critics == [grid.trial_run(minos).artefact("models/critic").manifest(), None]
    assert stages == ["sft", "refine", "reward", "score", "evaluate", "sft", "reward", "score", "evaluate"]
    # One that a trial has trained itself stays: what was made from it would be made again.
    refined = ablations[0]
    put(grid.trial_config(refined), grid.trial_run(refined), "models/critic", [3])
    own = grid.trial_run(refined).artefact("models/critic").manifest()
    stage.run_trial(grid, refined)
    assert own != critics[0] and grid.trial_run(refined).artefact("models/critic").manifest() == own
    # What stage 1 cost: all trainings up to the critic that stage 2 starts from.
    put(grid.trial_config(refined), grid.trial_run(refined), "models/critic-1", [3])
    for chosen in (0, 1):
        grid.trial_run(refined).write_bytes("refine.json", json.dumps({"chosen": chosen}).encode())
        trained = comparison.trained_critics(grid.trial_config(refined), grid.trial_run(refined))
        assert [m.artefact for m in trained] == ["models/critic", "models/critic-1"][: chosen + 1]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """36 train and 4 test problems of 4 candidates each, all with a critique."""
    run = Run(str(tmp_path / "run"))
    fill(run, 40, 4)
    return run


def test_more_labels_than_there_are_stop_a_study_before_its_trainings(tmp_path: Path) -> None:
    values = {"run": f"{tmp_path}/run", "base": {"model": "x"}, "critique": {"count": 10}}
    section = {"rows": 20, "eval_rows": 20, "wrong_share": 0.5}

    def labelled(times: float) -> Grid:
        amounts = {"seeds": [1], "kinds": ["orm"], "labels": [0.5, times]}
        return study_grid(build({**values, "reward": section, "study": amounts}), Run(f"{tmp_path}/run"))

    for arm in (labelled(2).labels[-1][2], labelled(20).labels[-1][2]):
        fill(labelled(2).trial_run(Trial(arm, 1)), 40, 4)
    check_labels(labelled(2))
    with pytest.raises(UserError, match=r"the largest amount is 400 labels, and seed 1 has \d+ for its orm; lower it"):
        check_labels(labelled(20))


def shared(run: Run, seed: int = 0, base: str = "x", pretrain: dict | None = None, **sweep: object) -> SharedData:
    config = Config(run=run.path, seed=seed, base={"model": base}, pretrain=pretrain, sweep=sweep)
    return SharedData(sweep_grid(config, run))


def trial(critiques: int, seed: int) -> Trial:
    return Trial(Arm(f"critiques-{critiques:06d}", critiques, {}), seed)


def trial_run(run: Run, critiques: int, seed: int) -> Run:
    return Run(run.at(f"sweep/trials/critiques-{critiques:06d}-seed-{seed}"))


def ids(run: Run, critiques: int, seed: int, artefact: str, column: str) -> list[str]:
    return trial_run(run, critiques, seed).artefact(artefact).read([column])[column].to_pylist()


def test_a_larger_amount_of_critiques_holds_every_smaller_one(run: Run) -> None:
    inputs = shared(run)
    found = []
    for amount in (5, 20, 60):
        inputs.give(trial(amount, 1))
        found.append(ids(run, amount, 1, "critiques", "candidate_id"))
    assert [len(set(each)) for each in found] == [5, 20, 60]
    assert set(found[0]) < set(found[1]) < set(found[2])
    inputs.give(trial(20, 2))
    assert set(ids(run, 20, 2, "critiques", "candidate_id")) != set(found[1])


def test_half_of_the_critiques_are_of_wrong_candidates(run: Run) -> None:
    shared(run).give(trial(20, 0))
    labels = run.artefact("labels").read(["candidate_id", "correct"]).to_pylist()
    correct = {row["candidate_id"]: row["correct"] for row in labels}
    assert sum(correct[name] for name in ids(run, 20, 0, "critiques", "candidate_id")) == 10


def test_no_critique_of_a_test_problem_is_chosen(run: Run) -> None:
    problems = run.artefact("problems").read(["problem_id", "split"]).to_pylist()
    tests = {row["problem_id"] for row in problems if row["split"] == "test"}
    shared(run).give(trial(100, 0))
    assert not tests & {name.partition("/")[0] for name in ids(run, 100, 0, "critiques", "candidate_id")}


def test_critiques_of_test_problems_never_fill_a_gap(run: Run) -> None:
    with pytest.raises(UserError, match=r"the run has critiques of \d+ different") as refused:
        shared(run).give(trial(155, 0))
    there = {label["problem_id"]: label for label in run.artefact("problems").read().to_pylist()}
    usable = int(str(refused.value).partition("critiques of ")[2].partition(" ")[0])
    shared(run).give(trial(usable, 0))
    chosen = ids(run, usable, 0, "critiques", "candidate_id")
    assert len(chosen) == usable <= 144
    assert {there[name.partition("/")[0]]["split"] for name in chosen} == {"train"}


def test_without_critiques_there_is_no_artefact_of_them(run: Run) -> None:
    shared(run).give(trial(0, 0))
    assert trial_run(run, 0, 0).artefact("critiques").manifest() is None
    assert len(ids(run, 0, 0, "labels", "candidate_id")) == 160


def test_fewer_test_problems_and_only_their_candidates(run: Run) -> None:
    shared(run, problems=2).give(trial(0, 0))
    problems = trial_run(run, 0, 0).artefact("problems").read()
    assert problems.schema == SCHEMAS["problems"]
    assert problems["split"].to_pylist().count("test") == 2
    assert problems["split"].to_pylist().count("train") == 36
    assert set(ids(run, 0, 0, "labels", "problem_id")) == set(problems["problem_id"].to_pylist())


def test_the_chosen_test_problems_are_a_seeded_sample_and_not_the_first() -> None:
    rows = [{"problem_id": str(at), "split": "test" if at % 2 else "train"} for at in range(2000)]
    table, drawn = pa.Table.from_pylist(rows), []
    for seed in (0, 0, 1):
        found = chosen_problems(table, 100, seed).filter(pc.field("split") == "test")["problem_id"].to_pylist()
        assert found == sorted(found) and len(set(found)) == 100
        drawn.append(found)
    by_id = sorted(row["problem_id"] for row in rows if row["split"] == "test")
    assert drawn[0] == drawn[1] != drawn[2] and by_id[:100] not in drawn
    assert 350 < np.mean([by_id.index(name) for name in drawn[0]]) < 650
    assert len(chosen_problems(table, None, 0)) == len(chosen_problems(table, 5000, 0)) == 2000


def test_other_problems_are_other_inputs(run: Run) -> None:
    for seed in (0, 1):
        shared(run, seed=seed, problems=2).give(trial(0, 0))
        choice = trial_run(run, 0, 0).artefact("problems").manifest().inputs["choice"]
        assert choice == {"problems": 2, "seed": seed}
    shared(run).give(trial(0, 0))
    assert trial_run(run, 0, 0).artefact("problems").manifest().inputs["choice"] == {"problems": None}


def test_more_critiques_than_there_are_is_refused_with_numbers(run: Run) -> None:
    with pytest.raises(UserError, match=r"sweep\.critiques = 5000, but the run has critiques of \d+ different"):
        shared(run).give(trial(5000, 0))


def test_inputs_are_written_once_and_again_when_their_source_changed(run: Run) -> None:
    own = trial_run(run, 10, 0)
    shared(run).give(trial(10, 0))
    before = {name: own.artefact(name).manifest() for name in ("problems", "labels", "critiques")}
    (Path(own.path) / "labels" / "manifest.json").touch()
    stamp = (Path(own.path) / "labels" / "manifest.json").stat().st_mtime_ns
    shared(run).give(trial(10, 0))
    assert (Path(own.path) / "labels" / "manifest.json").stat().st_mtime_ns == stamp
    critiques = run.artefact("critiques")
    rows = critiques.read()
    critiques.begin({"import": "other"})
    critiques.write_part("all", rows)
    critiques.complete({"rows": rows.num_rows})
    shared(run).give(trial(10, 0))
    after = {name: own.artefact(name).manifest() for name in before}
    assert [name for name in before if before[name].fingerprint != after[name].fingerprint] == ["critiques"]


def test_every_trial_has_the_same_problems_and_labels_from_one_reading(run: Run) -> None:
    inputs = shared(run, problems=3)
    for name in ("problems", "labels", "critiques"):
        run.delete(name)
    for trial in ((0, 0), (10, 0), (10, 1)):
        inputs.put(trial_run(run, *trial), "problems", inputs.problems, {})
        inputs.put(trial_run(run, *trial), "labels", inputs.labels, {})
    first, *others = [
        [trial_run(run, *trial).artefact(name).read() for name in ("problems", "labels")]
        for trial in ((0, 0), (10, 0), (10, 1))
    ]
    assert all(other == first for other in others)


def test_of_too_many_labels_those_with_bought_critiques_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, critiques = (run.artefact(name).read().to_pylist() for name in ("labels", "critiques"))
    problem_of = {row["candidate_id"]: row["problem_id"] for row in labels}
    paid = sorted(set(problem_of.values()))[:3]
    bought = run.artefact("critiques")
    run.delete("critiques")
    bought.begin({"import": "fewer"})
    some = [row for row in critiques if problem_of[row["candidate_id"]] in paid]
    bought.write_part("some", pa.Table.from_pylist(some, schema=SCHEMAS["critiques"]))
    bought.complete({"rows": len(some)})
    sizes = Counter(problem_of.values())
    most = 2 * sum(sizes[name] for name in paid)
    for bound, lost in ((most, False), (most // 2, True)):
        monkeypatch.setattr("minos_ray.study.grid.MOST", bound)
        inputs = shared(run)
        names = set(inputs.labels["problem_id"].to_pylist())
        assert inputs.not_drawn["labels"] == len(labels) - inputs.labels.num_rows > 0
        assert inputs.not_drawn["critiques"] == sum(problem_of[row["candidate_id"]] not in names for row in some)
        assert (inputs.not_drawn["critiques"] > 0) == lost and (names >= set(paid)) != lost


def test_the_base_that_a_run_made_goes_with_the_trial(run: Run) -> None:
    base = run.artefact("models/base")
    base.begin({"seed": 0})
    run.write_bytes("models/base/config.json", b"{}")
    run.write_bytes("models/base/model.safetensors", b"weights")
    base.complete({})
    shared(run, base="run:models/base", pretrain={"corpus": "a:b"}).give(trial(0, 0))
    own = trial_run(run, 0, 0)
    assert own.read_bytes("models/base/model.safetensors") == b"weights"
    assert own.artefact("models/base").manifest().inputs["from"] == base.manifest().fingerprint


def test_all_rows_of_critiques_are_whole(run: Run) -> None:
    shared(run).give(trial(10, 0))
    kept = trial_run(run, 10, 0).artefact("critiques").read()
    assert kept.schema == SCHEMAS["critiques"]
    source = run.artefact("critiques").read().to_pylist()
    assert all(row in source for row in pa.Table.to_pylist(kept))
