"""Blocks of problems on processes and as Ray tasks: one result, to the last byte, and clear ends."""

import dataclasses
import errno
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.config.resources import Resources
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation import blocks, candidates
from minos_ray.evaluation.blocks import Process, block_workers, call_function
from minos_ray.evaluation.candidates import clusters
from minos_ray.evaluation.comparison import OUTCOMES_FILE
from minos_ray.evaluation.kernels import compiled
from minos_ray.evaluation.stage import evaluate
from minos_ray.store import columns
from minos_ray.store.run import Run
from minos_ray.units.lock import born
from tests.runs import config, make_run, put, scores

SIZES = [8] * 20 + [5] * 10 + [96] * 21 + [1, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ragged candidates with and without scores, and wrong answers of equal value in several blocks."""
    made = make_run(tmp_path_factory.mktemp("blocks"), SIZES)
    rows = made.artefact("labels").read().to_pylist()
    for place, row in enumerate(rows):
        if not row["correct"] and row["answer"]:
            row["answer"] = ("2\\sqrt{3}", "\\sqrt{12}", str(50 + place % 37), row["answer"])[place % 4]
    put(made, "labels", rows)
    for name in ("orm-base", "orm-minos", "prm-minos", "critic"):
        scores(made, name, 0.3 if name.endswith("minos") else 0.1, skip=["p3/0", "p40/1"])
    return made


def evaluated(run: Run, **sections: Any) -> tuple[bytes, bytes]:
    """The files that an evaluation writes."""
    run.delete("evaluation.json.manifest.json")
    evaluate(config(run, evaluate={"trials": 10, "bootstrap": 100, "groups": 2}, **sections), run)
    return run.read_bytes("evaluation.json"), run.read_bytes(OUTCOMES_FILE)


@pytest.fixture(scope="module")
def expected(run: Run) -> Iterator[tuple[bytes, bytes]]:
    """The files as one process makes them from one block."""
    yield evaluated(run)


@pytest.mark.parametrize(("rows", "processes"), [(40, 0), (100, 2), (17, 3)])
def test_files_are_equal_for_any_blocks_and_processes(
    run: Run, expected: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, rows: int, processes: int
) -> None:
    monkeypatch.setattr(blocks, "ROWS", rows)
    monkeypatch.setattr(blocks, "FEWEST", 1 if processes else 1000)
    monkeypatch.setattr(blocks, "MOST", processes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    with block_workers(5, Resources()) as workers:
        assert workers.count == processes
    assert evaluated(run) == expected


def test_files_are_equal_as_ray_tasks(
    run: Run, expected: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    monkeypatch.setattr(blocks, "ROWS", 100)
    monkeypatch.setattr(blocks, "FEWEST_REMOTE", 2)
    monkeypatch.setattr(blocks, "Process", None)
    import ray

    address = ray.get_runtime_context().gcs_address
    assert evaluated(run, resources={"address": address}) == expected


def test_a_mistake_in_a_block_is_the_users_in_every_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"candidate_id": f"p30/{i}", "problem_id": "p30", "score": 1.0 + i, "step_scores": []} for i in range(2)]
    whole = run.artefact("scores/orm-base").read().to_pylist()
    put(run, "scores/orm-base", [row for row in whole if row["problem_id"] != "p30"] + rows)
    monkeypatch.setattr(blocks, "ROWS", 50)
    monkeypatch.setattr(blocks, "FEWEST", 1)
    try:
        with pytest.raises(UserError, match=r"scores/orm-base: the score of 'p30/1' is 2\.0"):
            evaluated(run)
    finally:
        put(run, "scores/orm-base", whole)


def test_a_process_that_dies_stops_the_work_with_one_line_and_others_end_with_this_one() -> None:
    with Process() as process:
        assert process(call_function, np.add, 1, 2) == 3
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            process(divmod, 1, 0)
        with pytest.raises(WorkStopped, match=r"ended with -9 \(memory\?\)"):
            process(os.kill, process.child.pid, signal.SIGKILL)
    code = "from minos_ray.evaluation.blocks import Process; import time; p = Process(); print(p.child.pid, flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(100)"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 100
    while born(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not born(child), "a zombie counts as dead: not everywhere is somebody who reaps it"


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Process() as process:
        assert process(divmod, 7, 2) == (3, 1)


IDS = st.sampled_from(
    ["p/0", "p/1", "p/10", "p/2", "p/1000000", "q/3", "q/x", "p/1\0", "p2/0", "q2/1", "q2/01", "odd", "é/1", "p/é"]
)
ANSWER = st.tuples(st.sampled_from([None, "1", "2", "2.0", "x", "\\frac{1}{2}", "0.5"]), st.booleans())


@settings(deadline=None)
@given(st.dictionaries(IDS, ANSWER), st.randoms(use_true_random=False))
def test_candidates_are_sorted_joined_and_clustered_as_one_by_one(
    drawn: dict[str, tuple[str | None, bool]], random: Any
) -> None:
    nothing = {"steps": [], "step_labels": [], "step_scores": None, "step_source": "", "error_types": []}
    rows = [
        {
            "candidate_id": name,
            "problem_id": name.rstrip("\0")[:-2],
            "answer": answer,
            "correct": right,
            "status": "wrong",
            **nothing,
        }
        for name, (answer, right) in drawn.items()
    ]
    found = candidates.group_candidates(columns.table("labels", rows))
    ordered = sorted(rows, key=lambda row: (row["problem_id"], row["candidate_id"]))
    assert found.rows["candidate_id"].to_pylist() == [row["candidate_id"] for row in ordered]
    problems = sorted({row["problem_id"] for row in rows})
    groups = [[row for row in ordered if row["problem_id"] == problem] for problem in problems]
    expected = [clusters([row["answer"] for row in group], [row["correct"] for row in group]) for group in groups]
    assert found.starts.tolist() == [sum(map(len, groups[:end])) for end in range(len(groups) + 1)]
    assert found.clusters.tolist() == [number for group in expected for number in group]
    random.shuffle(rows)
    for some in (rows, rows[: len(rows) // 2]):
        table = columns.table("labels", some)
        present = {row["candidate_id"] for row in some}
        expected_ids = [row["candidate_id"] if row["candidate_id"] in present else None for row in ordered if some]
        assert joined(table, found) == expected_ids
        # By numbers, which blocks of many candidates have in place of ids.
        number_of = {problem: number for number, problem in enumerate(problems)}
        regular = all(
            re.fullmatch(rb"/[^\0]{1,5}", row["candidate_id"].removeprefix(row["problem_id"]).encode()) for row in rows
        )
        if some:
            keys = [candidates.id_keys(rows_of, number_of) for rows_of in (found.rows, table)]
            assert regular == (keys[0] is not None)
        if some and regular:
            numbered, keyed = (
                t.append_column(candidates.KEY, pa.array(k)) for t, k in zip((found.rows, table), keys, strict=True)
            )
            assert joined(keyed, dataclasses.replace(found, rows=numbered)) == expected_ids


def joined(table: pa.Table, found: candidates.Candidates) -> list[str | None]:
    """The ids of a table in the order of candidates."""
    return table["candidate_id"].take(candidates.places(table, found)).to_pylist() if table.num_rows else []


def test_ids_of_any_form_are_sorted_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, [6] * 9)
    scores(run, "orm-base", 0.2)
    for name in ("labels", "candidates", "scores/orm-base"):
        rows = run.artefact(name).read().to_pylist()
        put(run, name, [{**row, "candidate_id": row["candidate_id"].replace("p3/", "p3#")} for row in rows])
    together = evaluated(run)
    monkeypatch.setattr(blocks, "ROWS", 13)
    assert evaluated(run) == together


def test_a_difference_is_resampled_as_its_two_columns_are() -> None:
    from minos_ray.evaluation.statistics import intervals

    values = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(float)
    values[50:, 1:] = np.nan
    pairs = [(2, 1), (0, 0)]
    columns_too = np.column_stack([values, *(values[:, a] - values[:, b] for a, b in pairs)])
    for found, expected in zip(intervals(values, 300, 4, pairs), intervals(columns_too, 300, 4), strict=True):
        assert found == pytest.approx(expected, abs=1e-12)


def test_numbers_of_ids_ascend_as_their_texts_or_there_are_none() -> None:
    forms = [
        "",
        "p",
        "p/",
        "p/\0",
        "p/1",
        "p/1\0",
        "p/1\x002",
        "p/12345",
        "p/123456",
        "p//",
        "p/é",
        "p/ééé",
        "p-1",
        "x/1",
    ]
    regular = set()
    for ids in itertools.permutations(forms, 2):
        keys = candidates.id_keys(pa.table({"problem_id": ["p", "p"], "candidate_id": ids}))
        if keys is not None:
            assert (keys[0] < keys[1]) == (ids[0].encode() < ids[1].encode()) and keys[0] != keys[1], ids
            regular |= {*ids}
    assert regular == {"p/1", "p/12345", "p//", "p/é"}


def test_compiled_code_that_cannot_be_kept_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*overload: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", save)

    @compiled
    def double(value: int) -> int:
        return 2 * value

    assert double(21) == 42 and double.nopython_signatures
