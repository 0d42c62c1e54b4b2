"""A disk that is full: the stage ends with one line that names it, and goes on when there is room."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.errors import WorkStopped
from minos_ray.labels.stage import label
from minos_ray.pipeline import run_stage
from minos_ray.store.run import Run
from tests import runs
from tests.training.world import candidate

SIZE = 2 << 20
PROBLEMS = 400


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes in memory; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def candidates(run: Run) -> None:
    """Problems and candidates in eight parts, so that labels have several parts too."""
    from minos_ray.store.columns import table

    runs.put(run, "problems", [runs.problem(number) for number in range(PROBLEMS)])
    artefact = run.artefact("candidates")
    artefact.begin({"import": "candidates"})
    for part in range(8):
        rows = [
            runs.candidate({**candidate(number, index), "problem_id": f"p{number}"}, index)
            for number in range(part, PROBLEMS, 8)
            for index in range(4)
        ]
        artefact.write_part(str(part), table("candidates", rows))
    artefact.complete({"rows": PROBLEMS * 4})


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    state = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left)))
    return ballast


def rows(run: Run) -> list[dict[str, object]]:
    return run.artefact("labels").read().sort_by("candidate_id").to_pylist()


def test_a_stage_on_a_full_disk_stops_and_goes_on_when_there_is_room(
    local_ray: None, disk: Path, tmp_path: Path
) -> None:
    whole, run = Run(str(tmp_path / "whole")), Run(str(disk / "run"))
    for each in (whole, run):
        candidates(each)
    run_stage(runs.config(whole), whole, "label")
    ballast = fill(disk, 24 << 10)
    with pytest.raises(Exception) as stopped:  # not by `run_stage`, which looks for room before it begins
        label(runs.config(run), run)
    line = next(line for line in str(stopped.value).splitlines() if "no space left" in line)
    assert f"no space left on the disk at {disk}" in line and f"of {SIZE:,} bytes are free" in line
    labels = run.artefact("labels")
    assert labels.manifest() is None
    assert not [file for file in run.files("labels") if file.endswith(".tmp")]
    kept = labels.part_names()
    assert len(kept) < 8, "the disk was full"
    ballast.unlink()
    manifest = run_stage(runs.config(run), run, "label")
    assert rows(run) == rows(whole)
    assert manifest.counts == whole.artefact("labels").manifest().counts
    assert set(kept) <= set(labels.part_names())


def test_the_line_names_the_disk_and_the_bytes(disk: Path) -> None:
    artefact = Run(str(disk / "run")).artefact("candidates")
    artefact.begin({"config": {}})
    artefact.write_part("a", pa.table({"n": [1, 2]}))
    fill(disk, 4096)
    content = os.urandom(100_000)
    with pytest.raises(WorkStopped) as stopped:
        artefact.write_part("b", pa.table({"text": [content]}))
    assert f"{disk}/run/candidates/part-b.parquet cannot be written: no space left on the disk at {disk}" in str(
        stopped.value
    )
    assert artefact.part_names() == ["a"]
    assert artefact.run.files("candidates") == ["begun.json", "part-a.parquet"]


def test_of_a_folder_that_did_not_fit_nothing_is_left(disk: Path, tmp_path: Path) -> None:
    run, folder = Run(str(disk / "run")), tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(os.urandom(SIZE // 2))
    run.write_bytes("models/m/before", b"x")
    with pytest.raises(WorkStopped, match="no space left"):
        run.upload(str(folder), "models/m")
    assert run.files("models/m") == ["before"]


def test_the_command_ends_with_one_line_and_exit_code_1(disk: Path) -> None:
    """A stage of the driver alone, as a user runs it."""
    fill(disk, 64 << 10)
    command = [sys.executable, "-m", "minos_ray", "problems", "miniature", f"run={disk / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("minos: ")]
    assert f"no space left on the disk at {disk}" in said[0]
    assert "Traceback" not in done.stderr
    assert Run(str(disk / "run")).artefact("problems").manifest() is None
