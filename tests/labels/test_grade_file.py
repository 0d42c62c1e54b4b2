"""`minos grade` on real files and on faithful small ones."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.labels.grade_file import grade_file

ROWS = [
    {"target": "5", "output": "The answer is: 5.0", "n": 1},
    {"target": "5", "output": "The answer is: 6", "n": 2},
    {"target": "5", "output": None, "n": 3},
    {"target": 5, "output": "#### 5", "n": 4},
]


STATED = {"correct": 2, "wrong": 1, "no_answer": 1, "timeout": 0} | {
    "strict_correct": 1,
    "only_here": 1,
    "only_strict": 0,
}


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_stay_in_order_with_their_columns(tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")
    counts = grade_file(write_jsonl(tmp_path / "in.jsonl", ROWS), "target", "output", out)
    assert counts == STATED
    rows = pq.read_table(out).to_pylist()
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    assert [row["status"] for row in rows] == ["correct", "wrong", "no_answer", "correct"]
    assert [row["answer"] for row in rows] == ["5", "6", None, "5"]
    assert [row["correct"] for row in rows] == [True, False, False, True]
    grade_file(out, "target", "output", out)
    assert pq.read_table(out).to_pylist() == rows


def test_command_on_csv_in_mathematics_style(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('gold,text\n\\frac{1}{2},"so \\boxed{0.5}"\n2,\\boxed{9^{9^{9^{9^{9}}}}}\n')
    out = str(tmp_path / "out.parquet")
    command = ["grade", str(tmp_path / "in.csv"), "--gold", "gold", "--text", "text", "--out", out, "--style", "math"]
    done = subprocess.run([sys.executable, "-m", "minos_ray", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(out)["status"].to_pylist() == ["correct", "timeout"]
    assert "timeout 1" in done.stdout


def test_gzipped_jsonl(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert grade_file(str(path), "target", "output", str(tmp_path / "out.parquet"))["correct"] == 2


@pytest.mark.parametrize(
    ("gold", "text", "style", "words"),
    [("gold", "output", "gsm8k", "--gold 'gold'.*target, output, n"), ("target", "text", "gsm8k", "--text 'text'"),
     ("target", "output", "latex", "--style 'latex'")],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, gold: str, text: str, style: str, words: str) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(UserError, match=words):
        grade_file(write_jsonl(tmp_path / "in.jsonl", ROWS), gold, text, str(out), style)
    assert not out.exists()


def test_a_torn_row_is_refused_since_no_row_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_jsonl(path, ROWS)
    path.write_text(path.read_text() + '{"target": ')
    with pytest.raises(UserError, match="row 5: not valid JSON"):
        grade_file(str(path), "target", "output", str(tmp_path / "out.parquet"))


def test_real_solutions(tmp_path: Path, shared_data: Path) -> None:
    part = pq.read_table(shared_data / "gsm8k_gemini" / "part-3.parquet").slice(0, 3000)
    pq.write_table(part, tmp_path / "in.parquet")
    out = str(tmp_path / "out.parquet")
    grade_file(str(tmp_path / "in.parquet"), "target", "solution", out)
    graded = pq.read_table(out)
    assert graded["candidate_id"] == part["candidate_id"]
    assert pa.compute.sum(graded["correct"]).as_py() < 0.02 * 3000  # that part holds wrong solutions only
