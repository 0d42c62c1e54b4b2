"""Trackers of real trainings: called by rank 0, under one id before and after a kill; a failing one stops nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from minos_ray.observe.trackers import TrackedRun
from tests.training.trainings import Trained, records

pytestmark = pytest.mark.slow


class Recorder:
    """Writes each call as a line of JSON; fails at the steps in `bad`, and kills its process, once, at `kill_at`."""

    def __init__(self, run: TrackedRun, path: str, bad: list[int], kill_at: int | None) -> None:
        self.path, self.bad, self.kill_at = Path(path), bad, kill_at
        self.write("start", run.id, run.name, run.group, run.settings)

    def write(self, *call: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(call) + "\n")

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        if step in self.bad:
            raise ConnectionError("no network")
        self.write("log", numbers, step)
        if step == self.kill_at and len(starts(self.path)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self) -> None:
        self.write("finish")


def recording(run: TrackedRun, *, path: str, bad: tuple[int, ...] = (), kill_at: int | None = None) -> Recorder:
    return Recorder(run, path, list(bad), kill_at)


def calls(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def starts(path: Path) -> list[list[Any]]:
    return [call for call in calls(path) if call[0] == "start"]


def test_a_tracker_gets_every_number_of_the_log_and_may_fail(trained: Trained) -> None:
    recorded = calls(trained.folder / "tracked.jsonl")
    [start] = starts(trained.folder / "tracked.jsonl")
    train, evaluated = (records(trained.run, "tracked", event) for event in ("train", "eval"))
    assert start[2:4] == ["tracked", "run"] and start[4]["lr"] == 2e-3 and start[4]["steps"] == len(train)
    logged = [(call[2], call[1]) for call in recorded if call[0] == "log"]
    losses = {step: numbers["train/loss"] for step, numbers in logged if "train/loss" in numbers}
    assert losses == {record["step"]: record["loss"] for record in train if record["step"] not in (3, 4)}
    measures = {step: (n["eval/loss"], n["eval/f1"]) for step, n in logged if "eval/loss" in n}
    assert measures == {record["step"]: (record["loss"], record["f1"]) for record in evaluated}
    assert all({"train/lr", "train/tokens_per_s"} <= set(n) for _, n in logged if "train/loss" in n)
    assert recorded[-1] == ["finish"]
    manifest = trained.run.artefact("models/tracked").manifest()
    assert manifest is not None and manifest.details["tracker"]["lost"] == 2
    [warning] = records(trained.run, "tracked", "tracker")
    assert "ConnectionError: no network; the work goes on without it" in warning["text"]


def test_a_killed_training_goes_on_under_its_id(trained: Trained) -> None:
    path = trained.folder / "killed-tracked.jsonl"
    first, second = starts(path)
    assert first == second and calls(path)[-1] == ["finish"]
    before, after = (records(trained.run, name, "train") for name in ("tracked", "killed-tracked"))
    logged = {call[2]: call[1]["train/loss"] for call in calls(path) if call[0] == "log" and "train/loss" in call[1]}
    assert logged == {record["step"]: record["loss"] for record in after}
    assert [r["loss"] for r in before] == [r["loss"] for r in after], "a tracker changes no training"
