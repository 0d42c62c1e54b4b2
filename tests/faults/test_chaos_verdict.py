"""The verdict on a round of kills finds what it is there to find."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from minos_ray.store import columns
from minos_ray.store.run import Run
from tests import runs
from tests.faults.chaos_round import Undisturbed
from tests.faults.chaos_verdict import bought_twice, in_work, wrong
from tests.faults.world import Asking

PARTS, TRIAL = 3, "sweep/trials/first"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Labels in three parts, a critic with two steps and an evaluation, a sweep whose trial has a critic too."""
    run, rng = Run(str(tmp_path_factory.mktemp("reference"))), random.Random(0)
    labels = run.artefact("labels")
    labels.begin({"import": "labels"})
    for number in range(PARTS):
        rows = [runs.candidate_label(number, index, rng, True) for index in range(2)]
        labels.write_part(str(number), columns.table("labels", rows))
    labels.complete({"rows": 2 * PARTS}, {"no_problem": 1})
    train(run)
    sweep(run)
    return run


def train(run: Run) -> None:
    """The critic as its training leaves it."""
    model = run.artefact("models/critic")
    model.begin({"import": "critic"})
    Path(model.path).mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.arange(8, dtype=np.float32)}, Path(model.path, "model.safetensors"))
    events = [("start", 0, {}), ("train", 1, {"loss": 2.0}), ("train", 2, {"loss": 1.5}), ("eval", 2, {"loss": 1.75})]
    lines = [{"event": event, "step": step, **numbers, "seconds": 0.5} for event, step, numbers in events]
    run.write_bytes("logs/critic.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    model.complete({"rows": 4, "held_out": 1})


def sweep(run: Run) -> None:
    """A sweep of one trial, which is a run of its own."""
    train(Run(f"{run.root}/{TRIAL}"))
    results = run.artefact("sweep/results.parquet")
    results.begin({"import": "sweep"})
    pq.write_table(pa.table({"critiques": [0], "seconds": [1.0]}), results.path)
    run.write_bytes("sweep/trend.json", b"{}")
    results.complete({"trials": 1, "rows": 1})


@pytest.fixture
def run(reference: Run, tmp_path: Path) -> Run:
    """A copy that one may damage."""
    return Run(str(shutil.copytree(reference.root, tmp_path / "run")))


def delete_a_part(run: Run) -> None:
    Path(run.root, "labels", "part-1.parquet").unlink()


def forget_a_part(run: Run) -> None:
    delete_a_part(run)
    complete(run)


def add_a_row_again(run: Run) -> None:
    labels = run.artefact("labels")
    labels.write_part("again", labels.read().slice(0, 1))
    complete(run)


def change_a_label(run: Run) -> None:
    labels = run.artefact("labels")
    rows = labels.read().slice(0, 2).to_pylist()
    rows[1]["step_labels"][0] = 1 - rows[1]["step_labels"][0]
    labels.write_part("0", columns.table("labels", rows))


def count_otherwise(run: Run) -> None:
    run.artefact("labels").complete({"rows": 2 * PARTS}, {"no_problem": 2})


def complete(run: Run) -> None:
    run.artefact("labels").complete({"rows": 2 * PARTS}, {"no_problem": 1})


def lose_the_manifest(run: Run) -> None:
    run.delete("labels/manifest.json")


def leave_attempts(run: Run) -> None:
    run.write_bytes("labels/attempts/0.json", b"{}")


def flip_a_bit(run: Run) -> None:
    path = Path(run.root, "models/critic/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def change_the_log(run: Run, old: str, new: str) -> None:
    name = "logs/critic.jsonl"
    run.write_bytes(name, run.read_bytes(name).decode().replace(old, new).encode())


def change_a_loss(run: Run) -> None:
    change_the_log(run, '"loss": 1.5,', '"loss": 1.5000001,')


def change_an_evaluation(run: Run) -> None:
    change_the_log(run, '"loss": 1.75', '"loss": 1.76')


def change_a_trial(run: Run) -> None:
    flip_a_bit(Run(f"{run.root}/{TRIAL}"))


def leave_a_checkpoint(run: Run) -> None:
    run.write_bytes("checkpoints/sft/critic/2/rank-0.json", b"{}")


@pytest.mark.parametrize(
    ("stage", "damage", "named"),
    [
        ("label", delete_a_part, "has 2 parts where its manifest counts 3"),
        ("label", forget_a_part, "labels: 2 rows missing"),
        ("label", add_a_row_again, "labels: 1 rows twice"),
        ("label", change_a_label, "labels: 1 rows changed"),
        ("label", count_otherwise, "labels: dropped no_problem is 2, not 1"),
        ("label", lose_the_manifest, "labels has no manifest"),
        ("label", leave_attempts, "left: labels/attempts"),
        ("sft", flip_a_bit, "models/critic/model.safetensors differs"),
        ("sft", change_a_loss, "models/critic: other losses at train 2"),
        ("sft", change_an_evaluation, "models/critic: other losses at eval 2"),
        ("sweep", change_a_trial, "first: models/critic/model.safetensors differs"),
        ("sft", leave_a_checkpoint, "left: checkpoints"),
    ],
)
def test_the_verdict_names_what_is_wrong(
    reference: Run, run: Run, stage: str, damage: Callable[[Run], None], named: str
) -> None:
    assert wrong(stage, run, reference) == []
    damage(run)
    (line,) = wrong(stage, run, reference)
    assert named in line


def test_seconds_and_starts_may_differ(reference: Run, run: Run) -> None:
    change_the_log(run, '"seconds": 0.5', '"seconds": 0.75')
    name = "logs/critic.jsonl"
    run.write_bytes(name, run.read_bytes(name) + b'{"event": "start", "step": 1}\n')
    assert wrong("sft", run, reference) == []


@pytest.mark.parametrize(
    ("asked", "stored", "excused", "named"),
    [
        ([(0, 1), (20, 21)], {}, 0, "no kill can have lost"),
        ([(9, 11), (20, 21)], {}, 1, ""),
        ([(9, 9.5), (20, 21)], {}, 1, ""),
        ([(8, 8.5), (20, 21)], {}, 0, "no kill can have lost"),
        ([(11, 12), (20, 21)], {}, 1, ""),
        ([(14, 15), (20, 21)], {}, 0, "no kill can have lost"),
        ([(9, 11), (20, 21), (30, 31)], {}, 1, "no kill can have lost"),
        ([(9, 9.5), (20, 21)], {"a": 10.0}, 0, "were stored were asked for again"),
    ],
)
def test_an_answer_is_bought_twice_only_when_a_kill_may_have_lost_it(
    asked: list[tuple[float, float]], stored: dict[str, float], excused: int, named: str
) -> None:
    other = Asking("b", 9.5, 10.5)
    found = bought_twice([other, *(Asking("a", *span) for span in asked)], [10.0], stored)
    assert found[0] == excused
    assert [(count, named in what) for what, count in found[1].items()] == ([(1, True)] if named else [])


def test_moments_cover_the_time_that_is_left_also_after_all_is_stored() -> None:
    reference = Undisturbed(20.0, 15.0, {"driver": (0.0, 20.0), "actor": (5.0, 10.0)}, {})
    assert reference.moment("driver", 0.0, 0.5) == (pytest.approx(10 / 15), 10.0, 0.0)
    assert reference.moment("driver", 0.0, 0.9)[::2] == (1.0, pytest.approx(3.0))
    assert reference.moment("driver", 1.0, 0.5)[::2] == (1.0, 2.5)
    assert reference.moment("actor", 0.5, 0.5) == (0.75, 1.25, 0.0)


def test_units_in_work_are_those_begun_on_the_node_and_in_no_part(run: Run) -> None:
    labels, log = run.artefact("labels"), {"node": "a", "running": ["u1", "u2"], "deaths": {}}
    labels.write_part("units", labels.read().slice(0, 1), {}, ["u1", "u4"])
    run.write_bytes("labels/attempts/call/labels/task.json", json.dumps(log).encode())
    run.write_bytes("labels/attempts/call/labels/other.json", json.dumps({**log, "running": ["u3", "u4"]}).encode())
    run.write_bytes("labels/attempts/call/labels/handed-back.json", json.dumps({**log, "running": []}).encode())
    run.write_bytes("labels/attempts/call/an-actor.json", b"1")
    assert [in_work("label", run, node) for node in ("a", "b")] == [2, 0]
