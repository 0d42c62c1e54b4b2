"""The plan of scoring and what actors read: every candidate of the split once, wherever its label lies."""

from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.errors import UserError
from minos_ray.scoring.stage import UNITS, Reader, missing, read_pieces
from minos_ray.store import columns
from minos_ray.store.run import Run
from tests.runs import make_run

SIZES = [3, 5, 1, 4]


class Taken:
    """A worker that gives back what it was given."""

    def __init__(self, run: str) -> None:
        self.run = run

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        return units, {"units": units.num_rows}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Candidates of four problems, by turns in three parts of the labels; the last problem is of the train split."""
    made = make_run(tmp_path / "run", SIZES)
    labels = made.artefact("labels").read().to_pylist()
    problems = made.artefact("problems").read().to_pylist()
    problems[-1]["split"] = "train"
    for name, parts in {"problems": [problems], "labels": [labels[0::3], labels[1::3], labels[2::3]]}.items():
        made.delete(name)
        artefact = made.artefact(name)
        artefact.begin({"import": name})
        for number, rows in enumerate(parts):
            artefact.write_part(str(number), columns.table(name, rows))
        artefact.complete({})
    return made


def scored(run: Run, units: pa.Table) -> list[dict[str, object]]:
    """What the worker gets of units, two at a time."""
    reader = Reader("tests.scoring.test_solutions:Taken", run.path, run=run.path)
    return [row for at in range(0, units.num_rows, 2) for row in reader(units.slice(at, 2))[0].to_pylist()]


def test_every_candidate_of_the_split_is_read_once_for_each_artefact(run: Run) -> None:
    names = ["scores/orm-base", "scores/prm-base"]
    pieces = read_pieces(run, "test")
    rows = scored(run, missing([run.artefact(name) for name in names], pieces))
    labels = {
        r["candidate_id"]: r["steps"] for r in run.artefact("labels").read().to_pylist() if r["problem_id"] != "p3"
    }
    for name in names:
        its = [row for row in rows if row["artefact"] == name]
        read = {c: steps for row in its for c, steps in zip(row["candidate_ids"], row["steps"], strict=True)}
        assert sum(len(row["candidate_ids"]) for row in its) == sum(SIZES[:3]) == len(read)
        assert read == labels
    assert all(row["question"].startswith(f"Tom has {row['problem_id'][1:]} apples") for row in rows)
    assert len({row["unit_id"] for row in rows}) == len(rows)
    assert [set(row) for row in rows] == [set(UNITS.names)] * len(rows)


def test_only_pieces_whose_rows_are_stored_are_left_out(run: Run) -> None:
    artefact, pieces = run.artefact("scores/orm-base"), read_pieces(run, "test")
    every = missing([artefact], pieces)
    first, second = every.slice(0, 2).to_pylist()
    row = {"candidate_id": "c", "problem_id": "p", "score": 0.5, "step_scores": []}
    artefact.write_part("whole", columns.table("scores", [row] * first["rows"]), {}, [first["unit_id"]])
    artefact.write_part("short", columns.table("scores", [row] * (second["rows"] + 1)), {}, [second["unit_id"]])
    left = missing([artefact], pieces)
    assert left["unit_id"].to_pylist() == every["unit_id"].to_pylist()[1:]
    assert artefact.part_names() == ["whole"]


def test_labels_that_are_not_complete_or_of_no_problem_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="split 'validation'"):
        read_pieces(run, "validation")
    run.delete("labels/manifest.json")
    with pytest.raises(UserError, match="not complete"):
        read_pieces(run, "test")
