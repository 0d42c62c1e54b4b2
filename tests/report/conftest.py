"""One complete synthetic run, made once; tests that change it work on a copy."""

import shutil
from pathlib import Path

import pytest

from minos_ray.store import Run
from tests.report.synthetic import make_run


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything, 8 problems of 64; read only."""
    return make_run(str(tmp_path_factory.mktemp("full")), problems=8, n=64, train=30)


@pytest.fixture
def copy(full: Run, tmp_path: Path) -> Run:
    """A copy of the full run that a test may change."""
    shutil.copytree(full.root, tmp_path / "run")
    return Run(str(tmp_path / "run"))
