"""`minos grade` on real files and on faithful small ones."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.errors import UserError, WorkStopped
from minos_ray.grading import graders
from minos_ray.grading.graders import SliceGrader, actors, grade_file
from minos_ray.units import file_slices as slices
from minos_ray.units.file_slices import beside

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
    done = subprocess.run([sys.executable, "-m", "minos_ray", *command], capture_output=True, text=True, timeout=300)
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


def many(rows: int) -> list[dict[str, object]]:
    """Rows of every outcome, with an id."""
    texts = ["The answer is: {}", "#### {}", "The answer is: 1{}", "none"]
    return [{"id": n, "gold": str(n), "text": texts[n % 4].format(n)} for n in range(rows)]


@pytest.mark.usefixtures("local_ray")
def test_actors_of_ray_data_give_what_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_ROWS", 16)
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(many(500)), source, row_group_size=150)
    here, there = str(tmp_path / "here.parquet"), str(tmp_path / "there.parquet")
    counts = grade_file(str(source), "gold", "text", here)
    assert grade_file(str(source), "gold", "text", there, ray_rows=1) == counts
    assert pq.read_table(here).equals(pq.read_table(there))
    assert pq.read_table(there)["id"].to_pylist() == list(range(500))
    assert counts["correct"] == 250 and counts["strict_correct"] == 125 == counts["only_here"]


@pytest.mark.parametrize(
    ("slices", "cpus", "grows", "pool"),
    [(50, 8, False, (8, 8)), (3, 8, False, (3, 3)), (50, 1, True, (1, 50)), (3, 8, True, (3, 3)), (1, 0, True, (1, 1))],
)
def test_a_cluster_that_grows_gets_more_actors(slices: int, cpus: int, grows: bool, pool: tuple[int, int]) -> None:
    assert actors(slices, cpus, grows) == pool


@pytest.mark.usefixtures("local_ray")
def test_grading_waits_for_a_cpu_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(graders, "WAIT_S", 0.5)
    path, out = write_jsonl(tmp_path / "in.jsonl", [{"gold": "5", "text": "5"}]), str(tmp_path / "out.parquet")
    held = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(held.ready())
    try:
        with pytest.raises(WorkStopped, match="grade: waited"):
            grade_file(path, "gold", "text", out, ray_rows=1)
    finally:
        ray.util.remove_placement_group(held)


@pytest.mark.usefixtures("local_ray")
def test_actors_kill_what_never_ends(tmp_path: Path) -> None:
    rows = [{"gold": "5", "text": text} for text in ("\\boxed{9^{9^{9^{9^{9}}}}}", "\\boxed{\\frac{10}{2}}")]
    out = str(tmp_path / "out.parquet")
    grade_file(write_jsonl(tmp_path / "in.jsonl", rows), "gold", "text", out, "math", timeout_s=1.0, ray_rows=1)
    assert pq.read_table(out)["status"].to_pylist() == ["timeout", "correct"]


def test_a_folder_of_parts_is_one_file(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    rows = many(30)
    pq.write_table(pa.Table.from_pylist(rows[:10]), parts / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{**row, "more": 1} for row in rows[10:]]), parts / "b.parquet")
    out = str(tmp_path / "out.parquet")
    grade_file(str(parts), "gold", "text", out)
    assert pq.read_table(out)["id"].to_pylist() == list(range(30))
    assert pq.read_table(out)["more"].to_pylist() == [None] * 10 + [1] * 20
    write_jsonl(parts / "c.jsonl", [{"id": 30, "gold": "1", "text": "#### 1"}])
    assert grade_file(str(parts), "gold", "text", out)["correct"] == 17


def test_late_rows_widen_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_ROWS", 2)
    rows = [{"gold": "1", "text": "#### 1", "n": 1, "m": 1, "o": {}, "p": [{"q": {}}]}, {"gold": "1", "text": "#### 1"}]
    rows += [{"gold": "1", "text": "#### 1", "n": 2.5, "m": "x", "late": [1], "o": {}, "big": 2**70}]
    out = str(tmp_path / "out.parquet")
    grade_file(write_jsonl(tmp_path / "in.jsonl", rows), "gold", "text", out)
    table = pq.read_table(out)
    assert table["n"].to_pylist() == [1.0, None, 2.5]
    assert table["m"].to_pylist() == ["1", None, "x"]
    assert table["late"].to_pylist() == [None, None, [1]]
    assert table["p"].to_pylist() == ['[{"q": {}}]', None, None]
    assert table["o"].to_pylist() == ["{}", None, "{}"] and table["big"].to_pylist() == [None, None, str(2**70)]


def test_golds_may_be_whole_solutions(tmp_path: Path) -> None:
    rows = [{"gold": "First 2 + 3 = 5.\n#### 1,005", "text": "#### 1005"}, {"gold": None, "text": "#### 5"}]
    out = str(tmp_path / "out.parquet")
    counts = grade_file(write_jsonl(tmp_path / "in.jsonl", rows), "gold", "text", out)
    assert (counts["correct"], counts["wrong"]) == (1, 1)


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [("in.jsonl", "nowhere/out.parquet", "--out .*nowhere"), ("in.jsonl", "", "is a folder"),
     ("missing.jsonl", "out.parquet", "missing.jsonl' does not exist"), ("empty.parquet", "out.parquet", "no rows"),
     ("torn.parquet", "out.parquet", "no Parquet file"), ("in.txt", "out.parquet", "no known kind"),
     ("wide.csv", "out.parquet", "row 1: more fields"), ("in.jsonl", "in.jsonl", "is the file with the rows itself")],
)  # fmt: skip
def test_requests_that_are_refused_before_any_work(tmp_path: Path, source: str, out: str, words: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    pq.write_table(pa.table({"target": pa.array([], pa.string()), "output": []}), tmp_path / "empty.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "in.txt").write_text("5")
    (tmp_path / "wide.csv").write_text("target,output\n1,2,3\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=words):
        grade_file(str(tmp_path / source), "target", "output", str(tmp_path / out))
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupted_run_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", many(100)), tmp_path / "out.parquet"
    out.write_text("old")
    monkeypatch.setattr(slices, "SLICE_ROWS", 10)
    done: list[object] = []

    def interrupted(grader: SliceGrader, part: object) -> pa.Table:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(part)
        return original(grader, part)

    original = SliceGrader.__call__
    monkeypatch.setattr(SliceGrader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade_file(source, "gold", "text", str(out))
    assert len(done) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]
    assert out.read_text() == "old"


@given(st.lists(st.integers(0, 7), max_size=9), st.lists(st.integers(0, 7), max_size=9))
def test_results_stay_beside_their_rows(sizes: list[int], pieces: list[int]) -> None:
    pieces.append(max(0, sum(sizes) - sum(pieces)))
    blocks = [
        pa.table({"n": pa.array(range(sum(sizes[:i]), sum(sizes[: i + 1])), pa.int64())}) for i in range(len(sizes))
    ]
    results = [
        pa.table({"r": pa.array(range(sum(pieces[:i]), sum(pieces[: i + 1])), pa.int64())}) for i in range(len(pieces))
    ]
    for block in beside(iter(blocks), iter(results), ("r",)):
        assert block["n"].to_pylist() == block["r"].to_pylist()
