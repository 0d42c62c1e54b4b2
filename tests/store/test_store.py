"""The run store: what is written comes back, what is torn is asked for again, complete means complete."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.errors import UserError
from minos_ray.store.columns import SCHEMAS, table, validate
from minos_ray.store.run import Artefact, Run, fingerprint

INPUTS = {"config": {"x": 1}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


@pytest.fixture
def artefact(run: Run) -> Artefact:
    begun = run.artefact("candidates")
    begun.begin(INPUTS)
    return begun


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": list(values)})


texts = st.text(st.characters(codec="utf-8"), max_size=20)
label_rows = st.fixed_dictionaries(
    {
        "candidate_id": texts,
        "problem_id": texts,
        "answer": st.none() | texts,
        "correct": st.booleans(),
        "status": texts,
        "steps": st.lists(texts, max_size=3),
        "step_labels": st.lists(st.sampled_from([1, 0, -1]), max_size=3),
        "step_scores": st.none() | st.lists(st.floats(0, 1, width=32), max_size=3),
        "step_source": texts,
        "error_types": st.lists(texts, max_size=3),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("abc123", min_size=1, max_size=6), st.lists(label_rows, max_size=4), max_size=4))
def test_parts_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, parts: dict) -> None:
    artefact = Run(str(tmp_path_factory.mktemp("run"))).artefact("labels")
    artefact.begin(INPUTS)
    for name, rows in parts.items():
        artefact.write_part(name, table("labels", rows))
    artefact.complete({})
    assert artefact.part_names() == sorted(parts)
    read = artefact.read()
    assert read.schema == SCHEMAS["labels"]
    assert read.to_pylist() == [row for name in sorted(parts) for row in parts[name]]
    assert artefact.read(["status"]).column_names == ["status"]


def test_the_same_name_overwrites(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1, 2), {"tokens": 5})
    artefact.write_part("a", numbers(3), {"tokens": 7})
    assert artefact.read(partial=True)["n"].to_pylist() == [3]
    assert artefact.stats() == {"tokens": 7}


def test_stats_are_summed_over_parts(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1), {"tokens": 5, "refused": 1})
    artefact.write_part("b", numbers(2), {"tokens": 6})
    artefact.write_part("c", numbers(3))
    assert artefact.stats() == {"tokens": 11, "refused": 1}


def test_an_incomplete_artefact_is_not_read_unless_asked(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1))
    with pytest.raises(UserError, match="not complete"):
        artefact.read()
    assert artefact.read(partial=True).num_rows == 1


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.99))
def test_a_torn_part_is_set_aside_and_asked_for_again(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    run = Run(str(tmp_path_factory.mktemp("run")))
    artefact = run.artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("whole", numbers(1, 2))
    artefact.write_part("torn", numbers(*range(1000)))
    path = Path(artefact.path) / "part-torn.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert artefact.part_names() == ["whole"]
    assert artefact.read(partial=True)["n"].to_pylist() == [1, 2]
    assert run.files("candidates").count("part-torn.parquet.torn") == 1
    artefact.write_part("torn", numbers(3))
    assert artefact.part_names() == ["torn", "whole"]


def test_a_part_torn_after_completion_is_an_error_that_says_what_to_do(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1))
    artefact.write_part("b", numbers(2))
    artefact.complete({"rows": 2})
    (Path(artefact.path) / "part-a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-a\.parquet is torn; delete .*manifest\.json"):
        artefact.read()
    (Path(artefact.path) / "manifest.json").unlink()
    artefact.begin(INPUTS)
    assert artefact.part_names() == ["b"]


@pytest.mark.parametrize("name", ["candidates", "evaluation.json", "scores/orm-base"])
def test_a_torn_manifest_is_none(run: Run, name: str) -> None:
    artefact = run.artefact(name)
    artefact.begin(INPUTS)
    whole = artefact.complete({"rows": 1}, {"why": 2, "never": 0}, {"seconds": 1.5})
    assert artefact.manifest() == whole
    assert whole.dropped == {"why": 2}
    assert whole.fingerprint == fingerprint(INPUTS)
    path = Path(run.path) / artefact.manifest_name
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert artefact.manifest() is None
    path.write_bytes(b"\xff\xfe")
    assert artefact.manifest() is None


def test_begin_with_the_same_inputs_keeps_parts_and_with_others_clears_them(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1))
    artefact.begin(INPUTS)
    assert artefact.part_names() == ["a"]
    artefact.complete({"rows": 1})
    artefact.begin({"config": {"x": 2}})
    assert artefact.part_names() == []
    assert artefact.manifest() is None
    assert artefact.begun() == fingerprint({"config": {"x": 2}})


def test_begin_clears_parts_of_a_torn_beginning(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1))
    (Path(artefact.path) / "begun.json").write_bytes(b'{"finger')
    artefact.begin(INPUTS)
    assert artefact.part_names() == []


def test_a_file_artefact_is_cleared_without_its_neighbours(run: Run) -> None:
    results, trial = run.artefact("sweep/results.parquet"), run.artefact("sweep/trials/a/models/critic")
    for each in (results, trial):
        each.begin(INPUTS)
    run.write_bytes("sweep/results.parquet", b"1")
    results.complete({})
    results.begin({"config": {"x": 2}})
    assert not run.exists("sweep/results.parquet")
    assert results.manifest() is None
    assert trial.begun() == fingerprint(INPUTS)


def test_fingerprints_ignore_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})


def test_an_artefact_without_rows_has_its_columns(run: Run) -> None:
    for name in ("critiques", "scores/orm-base"):
        artefact = run.artefact(name)
        artefact.begin(INPUTS)
        artefact.complete({"rows": 0})
        assert artefact.read(["candidate_id"]).to_pydict() == {"candidate_id": []}
        assert artefact.read().schema == SCHEMAS[name.partition("/")[0]]


WRITER = """
import sys
import pyarrow as pa
from minos_ray.store.run import Run
artefact = Run(sys.argv[1]).artefact("candidates")
artefact.begin({"config": {"x": 1}})
done = set(artefact.part_names())
for i in range(40):
    if f"{i:02d}" not in done:
        artefact.write_part(f"{i:02d}", pa.table({"n": [i] * 20000}))
        print(i, flush=True)
        sys.stdin.readline()  # which allows the next part
artefact.complete({"rows": 40})
"""


def test_killed_while_writing_and_run_again_is_as_never_killed(run: Run) -> None:
    command = [sys.executable, "-c", WRITER, run.path]
    artefact = run.artefact("candidates")
    redone = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None and process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
            process.stdin.write(b"\n")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert artefact.manifest() is None
    before = len(artefact.part_names())
    assert before >= 15
    redone = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout.count(b"\n")
    assert redone == 40 - before
    assert artefact.manifest() is not None
    assert artefact.read()["n"].to_pylist() == [i for i in range(40) for _ in range(20000)]


def test_what_another_process_deleted_is_deleted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was looked for."""
    run.write_bytes("a/b.json", b"{}")
    seen = run.fs.get_file_info(f"{run.root}/a/b.json"), run.fs.get_file_info(f"{run.root}/a")
    run.delete("a")

    class Late(pafs.SubTreeFileSystem):
        def get_file_info(self, path: str) -> pafs.FileInfo:
            return next(info for info in seen if info.path == path)

    run.fs = Late("/", run.fs)
    for name in ("a/b.json", "a"):
        run.delete(name)
    with pytest.raises(FileNotFoundError):
        run.read_bytes("a/b.json")


def test_files_left_by_a_crash_are_no_parts(artefact: Artefact) -> None:
    artefact.write_part("a", numbers(1))
    (Path(artefact.path) / f"part-b.parquet.{time.time_ns()}.tmp").write_bytes(b"PAR1")
    assert artefact.part_names() == ["a"]
    assert json.loads((Path(artefact.path) / "begun.json").read_text())["inputs"] == INPUTS


PROBLEM = {"problem_id": "a", "dataset": "d", "split": "test", "question": "q", "answer": "1", "solution": None}


def test_rows_of_a_foreign_table_are_cast_and_checked() -> None:
    rows = pa.Table.from_pylist([{**PROBLEM, "extra": 1}, {**PROBLEM, "problem_id": "b"}])
    assert validate("problems", rows).schema == SCHEMAS["problems"]
    with pytest.raises(UserError, match="column 'answer' is missing"):
        validate("problems", rows.drop_columns(["answer"]))
    with pytest.raises(UserError, match="'a' occurs 2 times"):
        validate("problems", pa.concat_tables([rows, rows.slice(0, 1)]))
    with pytest.raises(UserError, match="'question' has 1 empty"):
        validate("problems", pa.Table.from_pylist([{**PROBLEM, "question": None}, PROBLEM]))
    with pytest.raises(UserError, match="wrong type"):
        validate("scores", pa.table({n: ["x"] for n in SCHEMAS["scores"].names}))


def test_rows_of_some_problems_are_read_from_every_part(tmp_path: Path) -> None:
    artefact = Run(str(tmp_path)).artefact("scores/orm-base")
    artefact.begin(INPUTS)
    with pytest.raises(UserError, match="is not complete"):
        artefact.read_where("problem_id", ["a"])
    artefact.complete({})
    assert artefact.read_where("problem_id", ["a"]).schema.names == SCHEMAS["scores"].names
    artefact.begin(INPUTS)
    for part, names in (("0", "ab"), ("1", "c"), ("2", "ca")):
        rows = [{"candidate_id": f"{n}/{part}", "problem_id": n, "score": 0.5, "step_scores": []} for n in names]
        artefact.write_part(part, table("scores", rows))
    artefact.complete({})
    found = artefact.read_where("problem_id", (name for name in "ax"), ["candidate_id"])
    assert found.to_pydict() == {"candidate_id": ["a/0", "a/2"]}
    assert artefact.read_where("problem_id", []).num_rows == 0
    artefact.run.delete(f"{artefact.name}/part-1.parquet")
    with pytest.raises(UserError, match="has 2 parts where its manifest counts 3"):
        artefact.read_where("problem_id", ["a"])


def test_an_artefact_that_is_one_file_has_no_parts(tmp_path: Path) -> None:
    """Its manifest may be deleted to have it made again; what is asked of it then must not end the command."""
    run = Run(str(tmp_path))
    run.write_bytes("evaluation.json", b"{}")
    assert run.files("evaluation.json") == run.artefact("evaluation.json").part_names() == []
