"""`make gpu-check` in its dry mode: every stage takes its steps on a CPU and finds what it compares equal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check

ROWS = [
    *("models", "vllm: causal, 4 at once", "varlen attention", *(f"train: {name}" for name in gpu_check.LAYOUTS)),
    *("checkpointing, resumed", "forest: 8 x 64", "vllm: orm", "vllm: prm"),
]


@pytest.mark.slow
def test_every_stage_runs_and_passes_its_checks(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry", "--out", str(out)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=1800)
    rows = json.loads(out.read_text())
    assert [row["stage"] for row in rows] == ROWS, done.stderr[-4000:]
    assert not [row for row in rows if row["wrong"] or not row["passed"]]
    assert all(row["floor"] is None and row["tokens_per_s"] > 0 for row in rows[1:]), "floors are for GPUs"
    assert done.returncode == 0 and f"{len(ROWS)} of {len(ROWS)} rows passed" in done.stdout


def test_a_stage_that_fails_is_a_row_and_a_floor_that_is_not_reached_is_named(tmp_path: Path) -> None:
    [failed] = gpu_check.rows_of("forest", str(tmp_path), dry=True)  # no model was made
    assert "prm" in failed.wrong and not failed.passed()
    row = gpu_check.Row("x", 1000.0, 0.2, 3.0, 0.25)
    assert not row.passed() and row._replace(floor=0.1).passed()
    assert gpu_check.line(row) == "| x | 1,000 | 0.200 | 3.00 | 0.250 | FAIL: below the floor |  |"
