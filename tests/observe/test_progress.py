"""Progress in a log: a line per half minute with rate and time left; on a terminal a bar."""

import os
import pty
import subprocess
import sys
import threading

import pytest

from minos_ray.observe import progress
from minos_ray.observe.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_per_half_minute_with_rate_and_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sample", 1000) as shown:
        for _ in range(8):
            clock[0] += 10
            shown.advance(50, loss="0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "sample: 150/1,000 5.0 rows/s, 2m50s left, loss 0.5",
        "sample: 300/1,000 5.0 rows/s, 2m20s left, loss 0.5",
        "sample: 400 rows in 1m20s (5.0 rows/s, loss 0.5)",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("sample", 1000, "candidates", done=900) as shown:
        clock[0] += 40
        shown.advance(20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sample: 900 of 1,000 candidates were done before"
    assert lines[1] == "sample: 920/1,000 0.5 candidates/s, 2m40s left"


def test_slow_work_is_shown_by_the_unit_and_its_time_left_falls(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("critic", 10, "steps") as shown:
        for _ in range(2):
            for _ in range(3):
                clock[0] += 30
                shown.advance(0)
            clock[0] += 10
            shown.advance(1)
        for _ in range(5):
            clock[0] += 30
            shown.advance(0)
    lines = [line.partition(" left")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[3:-1] == [
        "critic: 1/10 100.0 s/step, 14m30s",
        "critic: 1/10 100.0 s/step, 14m00s",
        "critic: 1/10 100.0 s/step, 13m30s",
        "critic: 2/10 100.0 s/step, 12m50s",
        "critic: 2/10 100.0 s/step, 12m20s",
        "critic: 2/10 100.0 s/step, 11m50s",
        "critic: 2/10 100.0 s/step, 11m40s",
        "critic: 2/10 100.0 s/step, 11m40s",
    ]


def test_failed_work_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Progress("sample", 10):
        raise KeyError
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (75, "1m15s"), (3600, "1h00m"), (7384, "2h03m")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


BAR = """
import time
time.monotonic = lambda: 100.0
from minos_ray.observe.progress import Progress
with Progress("sample", 40) as shown:
    for _ in range(4):
        shown.advance(10)
"""


def test_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    written: list[bytes] = []

    def drain() -> None:
        try:
            while content := os.read(master, 4096):
                written.append(content)
        except OSError:
            return

    reader = threading.Thread(target=drain)
    reader.start()
    out = subprocess.run([sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=slave, check=True, text=True)
    os.close(slave)
    reader.join(60)
    os.close(master)
    assert b"40/40" in b"".join(written)
    assert out.stdout.startswith("sample: 40 rows in 0s")
