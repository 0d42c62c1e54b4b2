"""Trackers: what they are called with, what happens when they fail, and the three shipped ones with their libraries."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import build
from minos_ray.config.resources import Observe
from minos_ray.config.schema import Model
from minos_ray.config.training import Reward
from minos_ray.errors import UserError
from minos_ray.evaluation.stage import evaluate
from minos_ray.observe import trackers
from minos_ray.observe.trackers import TrackedRun, Tracking
from minos_ray.pipeline import require
from minos_ray.store.run import Run
from minos_ray.training.data import Job, Table
from minos_ray.training.results import Log, read_log
from minos_ray.training.trainer import watch
from tests.runs import config, make_run, scores

SHIPPED = "minos_ray.observe.trackers"
ME = "tests.observe.test_tracker"


class Recorder:
    """Writes each call as a line of JSON; fails at the steps in `bad`."""

    def __init__(self, path: str, bad: list[int]) -> None:
        self.path, self.bad = path, bad

    def write(self, call: str, *values: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps([call, *values]) + "\n")

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        if step in self.bad:
            raise ConnectionError(f"no answer at step {step} for {os.environ.get('SOME_API_KEY')}")
        self.write("log", numbers, step)

    def finish(self) -> None:
        self.write("finish")


def recording(run: TrackedRun, *, path: str, bad: list[int] | None = None) -> Recorder:
    recorder = Recorder(path, bad or [])
    recorder.write("start", *run)
    return recorder


def hanging(run: TrackedRun) -> Recorder:
    threading.Event().wait()
    raise AssertionError("never")


def calls(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def send(observe: Observe, run: Run, records: Mapping[int, dict[str, float]]) -> dict[str, Any]:
    tracking = Tracking(observe, run, "orm-base", "key", {"lr": 1e-3, "lora": {"rank": 4}})
    for step, numbers in records.items():
        tracking.log(numbers, step)
    tracked = tracking.close()
    assert (tracking.error is None) == (not tracked["tracker"]["lost"]), tracking.error
    return tracked["tracker"]


def test_one_training_has_one_id_and_another_another(tmp_path: Path) -> None:
    run, path = Run(str(tmp_path / "gsm8k")), tmp_path / "calls"
    observe = Observe(tracker=f"{ME}:recording", options={"path": str(path)})
    for key in ("key", "key", "other"):
        Tracking(observe, run, "orm-base", key, {}).close()
    first, again, other = (call for call in calls(path) if call[0] == "start")
    assert first == again and first[1] != other[1]
    assert first[2:] == ["orm-base", "gsm8k", {}] and len(first[1]) == 16


def test_what_fails_is_counted_and_told_once_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdef123456")
    run, path = Run(str(tmp_path / "run")), tmp_path / "calls"
    observe = Observe(tracker=f"{ME}:recording", options={"path": str(path), "bad": [2, 3]})
    log = Log(run, "orm-base", [], Tracking(observe, run, "orm-base", "key", {}))
    for step in (1, 2, 3, 4):
        log.add({"event": "train", "step": step, "loss": 0.5, "lr": 0.1, "tokens": 100, "seconds": 0.5})
    assert log.close() == {"tracker": {"function": f"{ME}:recording", "lost": 2}}
    assert [call[2] for call in calls(path) if call[0] == "log"] == [1, 4]
    assert calls(path)[1][1]["train/tokens_per_s"] == 200 and calls(path)[-1] == ["finish"]
    [warning] = [record["text"] for record in read_log(run, "orm-base") if record["event"] == "tracker"]
    assert "ConnectionError: no answer at step 2 for [$SOME_API_KEY]; the work goes on without it" in warning
    assert "abcdef123456" not in run.read_bytes("logs/orm-base.jsonl").decode()


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "FINISH_S", 0.2)
    tracking = Tracking(Observe(tracker=f"{ME}:hanging"), Run(str(tmp_path)), "orm-base", None, {})
    tracking.log({"train/loss": 1.0}, 1)
    assert tracking.close()["tracker"]["lost"] == 1
    assert tracking.warning is not None and "has not finished" in tracking.warning


def test_the_driver_shows_a_warning_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that comes with the end of the training, after its last step."""
    run, done = Run(str(tmp_path)), threading.Event()
    table = Table(name="t", rows=8, held_out_rows=0, train="", held_out="", dropped={})
    section = Reward(batch_rows=8, epochs=1.0)
    where = config(run).resources.train
    job = Job(
        artefact="models/orm-base", kind="orm", start=Model(model="m"), table=table, section=section, workers=where,
        key="k",
    )  # fmt: skip
    train = {"event": "train", "step": 1, "loss": 0.5, "tokens": 9, "seconds": 0.1}
    lines = [{"event": "start", "step": 0, "pid": 1}, train, {"event": "tracker", "step": 1, "text": "it fails"}]
    run.write_bytes("logs/orm-base.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    watcher = threading.Thread(target=watch, args=(run, [job], done), daemon=True)
    watcher.start()
    done.set()
    watcher.join(60)
    assert capsys.readouterr().out.count("orm-base: it fails\n") == 1


def test_results_go_to_the_tracker_and_its_failure_spoils_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = make_run(tmp_path / "run", [8] * 6), tmp_path / "calls"
    scores(run, "orm-base", 0.3)
    sections = {"evaluate": {"trials": 4, "bootstrap": 100}, "reward": {"verifiers": ["orm-base"]}}
    observe = {"tracker": f"{ME}:recording", "options": {"path": str(path), "bad": [8]}}
    manifest = evaluate(config(run, observe=observe, **sections), run)
    assert manifest.details["tracker"]["lost"] == 1
    assert "evaluate: observe.tracker" in capsys.readouterr().out
    content = json.loads(run.read_bytes("evaluation.json"))
    logged = {call[2]: call[1] for call in calls(path) if call[0] == "log"}
    assert sorted(logged) == [0, 1, 2, 4]
    assert logged[0]["outcome/orm-base/auc"] == content["meta"][0]["auc"]
    for row in content["methods"]:
        if row["n"] < 8:
            assert logged[row["n"]]["/".join(filter(None, (row["method"], row["verifier"])))] == row["accuracy"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no.such.module:function", "observe.tracker: 'no.such.module:function' does not name a function"),
        (f"{ME}:SHIPPED", "observe.tracker = tests.observe.test_tracker:SHIPPED: that is no function"),
        (f"{ME}:recording", "cannot be called so .*path"),
        ("absent", r"observe.tracker = absent: install its library, pip install no_such_library"),
    ],
)
def test_what_is_not_there_stops_the_run_beforehand(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "absent":
        monkeypatch.setitem(trackers.SHIPPED, "absent", "no_such_library")
        with pytest.raises(UserError, match=line):
            trackers.require_library(Observe(tracker=name))
        return
    run = make_run(tmp_path, [4])
    scores(run, "orm-base", 0.3)
    with pytest.raises(UserError, match=line):
        require(config(run, observe={"tracker": name}), run, {"evaluate"})


def test_the_older_key_means_the_same_and_options_hold_no_key() -> None:
    values = {"run": "r", "base": {"model": "m"}}
    assert build({**values, "resources": {"wandb": True}}).tracking.tracker == f"{SHIPPED}:wandb"
    assert build(values).tracking.tracker is None
    found = Observe(options={"project": "sk-learn", "tags": ["basic run", "a@b", {"n": 1}], "uri": "http://host/"})
    assert found.options["project"] == "sk-learn"
    for options in (
        *({"hf_token": "x"}, {"api_key": "x"}, {"server_url": "http://host/?write_token=x"}),
        *({"list": [{"api_key": "x"}]}, {"some_token": ["x"]}, {"uris": ["a", "postgresql://me:secret@host/db"]}),
        *({"a": "hf_" + "a" * 20}, {"a": ["sk-" + "a" * 20]}, {"a": {"b": "Bearer x"}}, {"a": "Basic bWU6c2VjcmV0"}),
    ):
        with pytest.raises(UserError, match=r"options\.[\w.]+ may hold a key"):
            build({**values, "observe": {"tracker": "a:b", "options": options}})


RECORDS = {1: {"train/loss": 0.8125}, 2: {"train/loss": 0.4375, "train/lr": 0.25}}


def sent_twice(name: str, folder: Path, options: dict[str, Any], **environment: str) -> None:
    """As a training that is stopped after its second step and resumed, in a process of its own."""
    code = (
        "import json, sys\nfrom minos_ray.config.resources import Observe\nfrom minos_ray.store.run import Run\n"
        "from minos_ray.observe import trackers\nfrom tests.observe.test_tracker import RECORDS, send\n"
        "trackers.FINISH_S = 200\n"
        "observe = Observe(tracker=sys.argv[1], options=json.loads(sys.argv[2]))\n"
        "for records in (RECORDS, {3: {'train/loss': 0.375}}): print(send(observe, Run('runs/gsm8k'), records))\n"
    )
    folders = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, f"{SHIPPED}:{name}", json.dumps(options)],
        capture_output=True, text=True, timeout=450, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("'lost': 0") == 2, done.stdout + done.stderr


def test_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed (extra wandb)")
    sent_twice("wandb", tmp_path, {"project": "minos"}, WANDB_MODE="offline", WANDB_SILENT="true")
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name and b"minos" in first.read_bytes()
    assert b"train/loss" in first.read_bytes() and b"0.4375" in first.read_bytes()
    assert b"0.375" in second.read_bytes()


def test_wandb_without_a_key_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed (extra wandb)")
    code = (
        "from minos_ray.config.resources import Observe\nfrom minos_ray.store.run import Run\n"
        "from minos_ray.observe import trackers\nfrom minos_ray.observe.trackers import Tracking\n"
        "trackers.FINISH_S = 200\n"
        f"tracking = Tracking(Observe(tracker='{SHIPPED}:wandb'), Run('run'), 'orm-base', None, {{}})\n"
        "tracking.close(); print(tracking.warning)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(Path.cwd()), env.get("PYTHONPATH", "")])}
    terminal, other = os.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, stdin=other, stdout=subprocess.PIPE,
            stderr=other, text=True, timeout=450)  # fmt: skip
    finally:
        os.close(terminal), os.close(other)
    assert "W&B has no key: set WANDB_API_KEY, or WANDB_MODE=offline; the work goes on without it" in done.stdout


def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed (extra trackio)")
    sent_twice("trackio", tmp_path, {}, TRACKIO_DIR=str(tmp_path))
    with sqlite3.connect(tmp_path / "minos_ray.db") as database:
        rows = database.execute("select run_name, run_id, step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)) for *_, step, metrics in rows] == [*RECORDS.items(), (3, {"train/loss": 0.375})]
    assert len({row[:2] for row in rows}) == 1 and rows[0][0].startswith("orm-base-")


def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed (extra mlflow)")
    pytest.importorskip("sqlalchemy", reason="a store on this machine needs the whole of MLflow, not mlflow-skinny")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sent_twice("mlflow", tmp_path, {"tracking_uri": uri})
    client = MlflowClient(uri)
    [made] = client.search_runs([client.get_experiment_by_name("minos_ray").experiment_id])
    assert made.info.status == "FINISHED" and made.data.params == {"lr": "0.001", "lora.rank": "4"}
    history = client.get_metric_history(made.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.8125), (2, 0.4375), (3, 0.375)]
