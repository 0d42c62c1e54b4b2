"""Waiting for room on a real Ray: what is said, when it ends, and how."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minos_ray.cluster import connect
from minos_ray.config.resources import Actors, Resources
from minos_ray.errors import UserError, WorkStopped

ALL = Actors(actors=2, cpus=1)


class Holder:
    """Takes what it is given."""

    def here(self) -> bool:
        """Whether it has begun."""
        return True


@pytest.fixture
def holder(local_ray: None) -> Iterator[Any]:
    """An actor that holds one of two CPUs until it is killed."""
    import ray

    held = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(held.here.remote())
    yield held
    ray.kill(held)


def test_room_that_is_there_is_not_waited_for(local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    connect.require("grade", ALL, 120)  # what the tests before held
    capsys.readouterr()
    connect.require("grade", ALL, 60)
    assert capsys.readouterr().out == ""


def test_what_is_set_for_a_local_ray_does_not_stay_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    first, second = connect.OF_LOCAL_RAY
    monkeypatch.setenv(first, "1")  # a user's own
    monkeypatch.setenv(second, "9")
    monkeypatch.delenv(second)
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in ("init", "enter", "heed_sigterm", "quiet_data"):
        monkeypatch.setattr(connect, name, lambda *_, **__: None)
    connect.join(Resources())
    assert (os.environ[first], os.environ[second]) == ("1", "0.5")
    connect.join(Resources(address="127.0.0.1:6379"))
    assert os.environ[first] == "1" and second not in os.environ


def test_what_never_fits_is_refused_at_once(local_ray: None) -> None:
    with pytest.raises(UserError, match=r"resources\.sample wants 3 x \(1 CPU\), each on one node: 2 of 3 fit on"):
        connect.require("rollouts", Actors(actors=3), 60)


def test_a_busy_cluster_is_waited_for_and_the_holder_named(
    holder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    go_on = connect.Waiting.go_on

    def release(waiting: connect.Waiting) -> None:
        """After the first line."""
        go_on(waiting)
        ray.kill(holder)

    monkeypatch.setattr(connect, "QUIET_S", 0.0)
    monkeypatch.setattr(connect.Waiting, "go_on", release)
    connect.require("grade", ALL, 60)
    said = capsys.readouterr().out
    assert said.startswith("[grade] waits for 2 x (1 CPU): 1 fit now; the cluster has 2 CPU, free 1 CPU, held by ")
    assert "1 x Holder of this run: 1 CPU" in said and "left of resources.wait_s = 60" in said
    assert said.count("waits for") == 1, "one line in 30 seconds"
    assert ray.cluster_resources()["CPU"] == 2 and not reserved(), "what was asked for is given back"


def reserved() -> list[str]:
    """Placement groups that still have their place."""
    import ray

    return [group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_it_gives_up_with_the_numbers(holder: Any) -> None:
    said = r"waited 0s \(resources\.wait_s\) for 2 x \(1 CPU\): 1 fit now.*1 x Holder of this run: 1 CPU"
    with pytest.raises(WorkStopped, match=said):
        connect.require("grade", ALL, 0.1)
    assert not reserved()


def test_a_cluster_that_nobody_enlarges_in_time_is_too_small(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "joined")
    with pytest.raises(UserError, match=r"resources\.train wants 5 x \(1 CPU\).*lower it or add nodes"):
        connect.require("train", Actors(actors=5), 0.1)


def test_another_job_is_named_by_its_script_alone(local_ray: None, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    code = (
        "import ray, sys, time\n"
        f"ray.init(address='{address}', log_to_driver=False)\n"
        "class Foreign:\n    def here(self): return 1\n"
        "held = ray.remote(num_cpus=2)(Foreign).remote()\n"
        "ray.get(held.here.remote())\nprint('held', flush=True)\ntime.sleep(300)\n"
    )
    (tmp_path / "other.py").write_text(code)
    command = [sys.executable, str(tmp_path / "other.py"), "--key=hidden"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "held" not in other.stdout.readline():
            assert other.poll() is None
        with pytest.raises(WorkStopped, match=r"1 x Foreign of job \d+ \(other\.py\): 2 CPU"):
            connect.require("grade", ALL, 0.1)
    finally:
        other.kill()
        other.wait()
    connect.require("grade", ALL, 120)
