"""What trials start from: nested critiques, fewer test problems, written once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run
from minos_ray.study.space import Trial, trial_run
from minos_ray.study.sweep_inputs import Inputs, chosen_problems
from tests.training.world import fill


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """36 train and 4 test problems of 4 candidates each, all with a critique."""
    run = Run(str(tmp_path / "run"))
    fill(run, 40, 4)
    return run


def config(run: Run, **sweep: object) -> Config:
    return Config(run=run.path, base={"model": "x"}, sweep=sweep)


def ids(run: Run, trial: Trial, artefact: str, column: str) -> list[str]:
    return trial_run(run, trial).artefact(artefact).read([column])[column].to_pylist()


def test_a_larger_amount_of_critiques_holds_every_smaller_one(run: Run) -> None:
    inputs = Inputs(config(run), run)
    found = []
    for amount in (5, 20, 60):
        inputs.give(Trial(amount, 1))
        found.append(ids(run, Trial(amount, 1), "critiques", "candidate_id"))
    assert [len(set(each)) for each in found] == [5, 20, 60]
    assert set(found[0]) < set(found[1]) < set(found[2])
    inputs.give(Trial(20, 2))
    assert set(ids(run, Trial(20, 2), "critiques", "candidate_id")) != set(found[1])


def test_half_of_the_critiques_are_of_wrong_candidates(run: Run) -> None:
    Inputs(config(run), run).give(Trial(20, 0))
    labels = run.artefact("labels").read(["candidate_id", "correct"]).to_pylist()
    correct = {row["candidate_id"]: row["correct"] for row in labels}
    assert sum(correct[name] for name in ids(run, Trial(20, 0), "critiques", "candidate_id")) == 10


def test_no_critique_of_a_test_problem_is_chosen(run: Run) -> None:
    problems = run.artefact("problems").read(["problem_id", "split"]).to_pylist()
    tests = {row["problem_id"] for row in problems if row["split"] == "test"}
    Inputs(config(run), run).give(Trial(100, 0))
    assert not tests & {name.partition("/")[0] for name in ids(run, Trial(100, 0), "critiques", "candidate_id")}


def test_critiques_of_test_problems_never_fill_a_gap(run: Run) -> None:
    with pytest.raises(UserError, match=r"the run has critiques of \d+ different") as refused:
        Inputs(config(run), run).give(Trial(155, 0))
    there = {label["problem_id"]: label for label in run.artefact("problems").read().to_pylist()}
    usable = int(str(refused.value).partition("critiques of ")[2].partition(" ")[0])
    Inputs(config(run), run).give(Trial(usable, 0))
    chosen = ids(run, Trial(usable, 0), "critiques", "candidate_id")
    assert len(chosen) == usable <= 144
    assert {there[name.partition("/")[0]]["split"] for name in chosen} == {"train"}


def test_without_critiques_there_is_no_artefact_of_them(run: Run) -> None:
    Inputs(config(run), run).give(Trial(0, 0))
    assert trial_run(run, Trial(0, 0)).artefact("critiques").manifest() is None
    assert len(ids(run, Trial(0, 0), "labels", "candidate_id")) == 160


def test_fewer_test_problems_and_only_their_candidates(run: Run) -> None:
    Inputs(config(run, problems=2), run).give(Trial(0, 0))
    problems = trial_run(run, Trial(0, 0)).artefact("problems").read()
    assert problems.schema == SCHEMAS["problems"]
    assert problems["split"].to_pylist().count("test") == 2
    assert problems["split"].to_pylist().count("train") == 36
    assert set(ids(run, Trial(0, 0), "labels", "problem_id")) == set(problems["problem_id"].to_pylist())


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
        Inputs(Config(run=run.path, seed=seed, base={"model": "x"}, sweep={"problems": 2}), run).give(Trial(0, 0))
        choice = trial_run(run, Trial(0, 0)).artefact("problems").manifest().inputs["choice"]
        assert choice == {"problems": 2, "seed": seed}
    Inputs(config(run), run).give(Trial(0, 0))
    assert trial_run(run, Trial(0, 0)).artefact("problems").manifest().inputs["choice"] == {"problems": None}


def test_more_critiques_than_there_are_is_refused_with_numbers(run: Run) -> None:
    with pytest.raises(UserError, match=r"sweep\.critiques = 5000, but the run has critiques of \d+ different"):
        Inputs(config(run), run).give(Trial(5000, 0))


def test_inputs_are_written_once_and_again_when_their_source_changed(run: Run) -> None:
    trial = Trial(10, 0)
    own = trial_run(run, trial)
    Inputs(config(run), run).give(trial)
    before = {name: own.artefact(name).manifest() for name in ("problems", "labels", "critiques")}
    (Path(own.path) / "labels" / "manifest.json").touch()
    stamp = (Path(own.path) / "labels" / "manifest.json").stat().st_mtime_ns
    Inputs(config(run), run).give(trial)
    assert (Path(own.path) / "labels" / "manifest.json").stat().st_mtime_ns == stamp
    critiques = run.artefact("critiques")
    rows = critiques.read()
    critiques.begin({"import": "other"})
    critiques.write_part("all", rows)
    critiques.complete({"rows": rows.num_rows})
    Inputs(config(run), run).give(trial)
    after = {name: own.artefact(name).manifest() for name in before}
    assert [name for name in before if before[name].fingerprint != after[name].fingerprint] == ["critiques"]


def test_every_trial_has_the_same_problems_and_labels_from_one_reading(run: Run) -> None:
    inputs = Inputs(config(run, problems=3), run)
    for name in ("problems", "labels", "critiques"):
        run.delete(name)
    for trial in (Trial(0, 0), Trial(10, 0), Trial(10, 1)):
        inputs.put(trial_run(run, trial), "problems", inputs.problems, {})
        inputs.put(trial_run(run, trial), "labels", inputs.labels, {})
    first, *others = [
        [trial_run(run, trial).artefact(name).read() for name in ("problems", "labels")]
        for trial in (Trial(0, 0), Trial(10, 0), Trial(10, 1))
    ]
    assert all(other == first for other in others)


def test_the_base_that_a_run_made_goes_with_the_trial(run: Run) -> None:
    base = run.artefact("models/base")
    base.begin({"seed": 0})
    run.write_bytes("models/base/config.json", b"{}")
    run.write_bytes("models/base/model.safetensors", b"weights")
    base.complete({})
    with_base = Config(run=run.path, base={"model": "run:models/base"}, pretrain={"corpus": "a:b"})
    Inputs(with_base, run).give(Trial(0, 0))
    own = trial_run(run, Trial(0, 0))
    assert own.read_bytes("models/base/model.safetensors") == b"weights"
    assert own.artefact("models/base").manifest().inputs["from"] == base.manifest().fingerprint


def test_all_rows_of_critiques_are_whole(run: Run) -> None:
    Inputs(config(run), run).give(Trial(10, 0))
    kept = trial_run(run, Trial(10, 0)).artefact("critiques").read()
    assert kept.schema == SCHEMAS["critiques"]
    source = run.artefact("critiques").read().to_pylist()
    assert all(row in source for row in pa.Table.to_pylist(kept))
