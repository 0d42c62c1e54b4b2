"""A node that is drained, then a worker that stops answering: both trainings end as one that nobody disturbed."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from minos_ray.config.resources import Workers
from minos_ray.store.run import Run
from minos_ray.training.data import Job
from minos_ray.training.results import read_log
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.trainer import fit
from tests.raylets import drain, enter, raylet_of, started_raylets
from tests.training.holding import DRAINED, held_until
from tests.training.world import world

AT, LIMIT_S = 5, 60


def start_of(run: Run, job: Job) -> int:
    """The process id of rank 0."""
    return [record["pid"] for record in read_log(run, job.name) if record["event"] == "start"][-1]


def wait_for(path: Path) -> None:
    """Fails when the file does not come within five minutes."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stop_the_other_worker(first: int, raylets: set[int]) -> None:
    """SIGSTOP, as a worker of a node that hangs. Processes that end meanwhile, of other tests too, are passed over."""
    children = [p.info for p in psutil.process_iter(["pid", "ppid", "cmdline"]) if p.info["ppid"] in raylets]
    workers = [child["pid"] for child in children if "RayTrainWorker" in " ".join(child["cmdline"] or ())]
    (other,) = (worker for worker in workers if worker != first)
    os.kill(other, signal.SIGSTOP)


@pytest.mark.slow
def test_drained_and_hung_trainings_end_as_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost to a drain, which is no failure: the next workers' processes are ready when the old ones leave.
    Of failures only the hang is allowed.
    """
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    config, run = world(tmp_path, reward={"batch_rows": 16})
    run.artefact("models/orm-base").begin({"for": "test"})
    like = verifier_jobs(config, run, ["orm-base"])[0]
    workers = Workers(workers=2, zero=2, micro_tokens=512, save_every=4, max_failures=1, collective_timeout_s=LIMIT_S)
    flags = {name: tmp_path / f"{name}-is-held" for name in ("drained", "hung")}
    stopped = tmp_path / "stopped"
    observe = {
        "drained": held_until(DRAINED, AT, flags["drained"]),
        "hung": held_until(str(stopped), AT, flags["hung"]),
    }
    jobs = {}
    for name in ("straight", "drained", "hung"):
        run.artefact(f"models/{name}").begin({"for": "test"})
        values = {"artefact": f"models/{name}", "workers": workers, "key": name}
        jobs[name] = like.model_copy(update=values | ({"observe": observe[name]} if name in observe else {}))

    def disturb() -> None:
        wait_for(flags["drained"])
        drain(raylets.of(start_of(run, jobs["drained"])), seconds=3600)
        wait_for(flags["hung"])
        stop_the_other_worker(start_of(run, jobs["hung"]), set(map(raylet_of, raylets.nodes)))
        stopped.touch()

    with started_raylets() as raylets:
        for last in (3, 4, 5):
            raylets.add(last)
        enter(raylets)
        disturber = threading.Thread(target=disturb, daemon=True)
        disturber.start()
        fit(config, run, "reward", list(jobs.values()))
        disturber.join()
    printed = capsys.readouterr().out
    assert "hung: goes on from step 4: worker 2 of 2 (127.0.0." in printed
    assert f" of step {AT + 1} of hung waited {LIMIT_S} s (resources.train.collective_timeout_s)" in printed
    starts = {name: [r["step"] for r in read_log(run, name) if r["event"] == "start"] for name in jobs}
    assert starts == {"straight": [0], "drained": [0, AT + 1], "hung": [0, 4]}
    # As many as Ray gives a worker of one CPU, also where torch was imported before the process was one.
    assert Path(f"{flags['drained']}.spare").read_text() == "1 threads"
    assert "drained: goes on from step 6: the node of a worker is to go: its last step is saved" in printed
    losses = {name: [r["loss"] for r in read_log(run, name) if "loss" in r] for name in jobs}
    assert len(losses["straight"]) > 2 * AT
    assert losses["drained"] == losses["hung"] == losses["straight"]
    weights = {name: run.read_bytes(f"models/{name}/model.safetensors") for name in jobs}
    assert weights["drained"] == weights["hung"] == weights["straight"]
