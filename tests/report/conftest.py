"""One complete synthetic run, made once; tests that change it work on a copy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Playwright, expect, sync_playwright

from minos_ray.store.run import Run
from tests.report.synthetic import make_run

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything, 8 problems of 64; read only."""
    return make_run(str(tmp_path_factory.mktemp("full")), problems=8, n=64, train=30)


@pytest.fixture
def copy(full: Run, tmp_path: Path) -> Run:
    """A copy of the full run that a test may change."""
    shutil.copytree(full.root, tmp_path / "run")
    return Run(str(tmp_path / "run"))


def launched(playwright: Playwright) -> Browser:
    """The system's Chromium, else Playwright's own."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    try:
        return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    except Error as error:
        if path is None and "Executable doesn't exist" in str(error):
            pytest.skip(f"no Chromium: none of {', '.join(CHROMIUMS)}, and `playwright install chromium` was not run")
        raise


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser, and patience with a busy machine."""
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()
