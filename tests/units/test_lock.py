"""One command at a time on a run: who holds it, who is dead, and what a second command gets."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from minos_ray.cli import main
from minos_ray.errors import UserError
from minos_ray.store.run import Run
from minos_ray.units import lock
from minos_ray.units.lock import FILE, Holder, born, holder, locked, place, take

ELSEWHERE = "another.host 1 pid:[7]"


@pytest.fixture(params=["disk", "objects"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on this disk, and one on a file system in memory that is as little local as an object store."""
    monkeypatch.setattr(lock, "SETTLE_REMOTE_S", 0.2)
    made = Run(str(tmp_path / "run"))
    if request.param == "objects":
        made.fs, made.root, made.path = pafs._MockFileSystem(), "run", "mock://run"
    return made


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of this machine."""
    with subprocess.Popen(["sleep", "60"]) as other:
        yield other
        other.kill()


def of(pid: int, **changed: object) -> Holder:
    """What a command of that process would have written."""
    now = time.time()
    return Holder("h", place(), pid, born(pid), "minos sample x.yaml", now, now, "w")._replace(**changed)


def test_a_run_is_held_while_the_block_lasts_and_nothing_is_left(run: Run) -> None:
    with locked(run, "minos sample x.yaml"):
        mine = holder(run)
        assert mine is not None and (mine.pid, mine.command) == (os.getpid(), "minos sample x.yaml")
        with (
            pytest.raises(UserError, match=r"is in use: `minos sample x.yaml` \(process \d+ on .*since"),
            locked(run, "b"),
        ):
            pass
        assert holder(run) == mine
    assert not run.exists(FILE)
    with pytest.raises(KeyError), locked(run, "minos run"):
        raise KeyError
    assert not run.exists(FILE)
    assert not (run.local and run.exists("")), "nor an empty folder"


def test_a_killed_command_holds_nothing(run: Run, process: "subprocess.Popen[bytes]") -> None:
    lock.write(run, of(process.pid))
    with pytest.raises(UserError, match=f"process {process.pid} on h"):
        take(run, "minos label")
    process.kill()
    while process.poll() is None and born(process.pid):  # a zombie counts as dead
        time.sleep(0.01)
    with locked(run, "minos label"):
        pass
    lock.write(run, of(os.getpid(), born="1"))  # its number was given to another process
    with locked(run, "minos label"):
        pass


def test_one_of_another_machine_is_dead_when_it_does_not_renew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 1.0)
    elsewhere = of(1, place=ELSEWHERE, beat=time.time() + 20)
    lock.write(run, elsewhere)
    with pytest.raises(UserError, match="last heard of 0s ago"):
        take(run, "minos label")
    late = elsewhere._replace(beat=time.time() - 1000)  # or its clock is behind
    lock.write(run, late)
    over = threading.Event()
    beats = threading.Thread(target=lock.renew, args=(run, late, over))
    beats.start()
    with pytest.raises(UserError, match="is in use"):
        take(run, "minos label")
    over.set()
    beats.join()
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    lock.write(run, late)
    with locked(run, "minos label"):
        pass


def test_of_many_that_begin_at_once_one_has_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_REMOTE_S", 1.0)
    outcomes: list[str] = []

    def begin() -> None:
        try:
            outcomes.append(take(run, "minos run").word)
        except UserError:
            outcomes.append("")

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mine = holder(run)
    assert mine is not None and [word for word in outcomes if word] == [mine.word]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_command_that_lost_the_run_says_so_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], deleted: bool
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    mine = take(run, "minos sample x.yaml")
    run.delete(FILE) if deleted else lock.write(run, of(os.getpid()))
    lock.renew(run, mine, threading.Event())
    assert f"{FILE} {'was deleted' if deleted else 'is another command'}" in capsys.readouterr().err


def test_a_torn_file_holds_nothing(run: Run) -> None:
    run.write_bytes(FILE, b'{"host": "h", "pi')
    with locked(run, "minos run"):
        assert holder(run) is not None


def test_a_second_command_is_refused_and_one_that_reads_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["miniature", f"run={tmp_path}/run", "problems.train.limit=4", "problems.test.limit=4"]
    assert main(["problems", *config]) == 0
    before = (tmp_path / "run/config.yaml").read_bytes()
    with locked(Run(f"{tmp_path}/run"), "minos sample my.yaml"):
        capsys.readouterr()
        for command in (["problems", *config, "seed=1"], ["run", *config], ["import", "jsonl", "x", f"{tmp_path}/run"]):
            assert main(command) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert "is in use: `minos sample my.yaml` (process" in line and f"delete {tmp_path}/run/lock.json" in line
        assert (tmp_path / "run/config.yaml").read_bytes() == before
        assert main(["status", f"{tmp_path}/run"]) == 0
        assert main(["check", *config]) == 0
    assert main(["problems", *config, "seed=1"]) == 0
