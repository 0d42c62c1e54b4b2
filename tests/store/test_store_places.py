"""Where a run may lie: odd paths, URIs, stores that are no local directory, places that cannot be written."""

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.run import Run
from tests.store.test_store import INPUTS, numbers


def test_paths_with_blanks_and_odd_letters(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "a run #1 % \u00e9"))
    run.write_bytes("logs/x.txt", b"1")
    assert (tmp_path / "a run #1 % \u00e9" / "logs" / "x.txt").read_bytes() == b"1"


def test_a_relative_path_means_the_same_place_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run("runs/x").path == str(tmp_path / "runs" / "x")
    assert Run("~/x").path == os.path.expanduser("~/x")


def test_a_uri_is_a_run_too(tmp_path: Path) -> None:
    artefact = Run(f"file://{tmp_path}/run").artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("a", numbers(1))
    assert Run(str(tmp_path / "run")).artefact("candidates").part_names() == ["a"]
    assert artefact.path == str(tmp_path / "run/candidates"), "what opens local paths can open it"
    with pytest.raises(UserError, match="nonsense://x"):
        Run("nonsense://x")


def test_a_store_that_is_no_local_directory(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.fs, run.root = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket/run"
    artefact = run.artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("a", numbers(1, 2), {"tokens": 3})
    (tmp_path / "bucket/run/candidates/part-b.parquet").write_bytes(b"PAR1")
    assert artefact.part_names() == ["a"]
    artefact.complete({"rows": 2})
    assert artefact.read()["n"].to_pylist() == [1, 2]
    assert artefact.stats() == {"tokens": 3}
    assert not run.local
    artefact.begin({"config": {"x": 2}})
    assert artefact.manifest() is None


def test_what_cannot_be_written_is_said_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody can make a folder there; the error is that of a missing file."""
    from minos_ray.cli import main

    with pytest.raises(StorageFailed, match=r"^/proc/minos/x/a\.json cannot be written: "):
        Run("/proc/minos/x").write_bytes("a.json", b"{}")
    assert main(["problems", "miniature", "run=/proc/minos/x"]) == 2
    told = capfd.readouterr().err.strip()
    assert "run: /proc/minos/x/lock.json cannot be written" in told and "\n" not in told
