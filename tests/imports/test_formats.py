"""What all imports share, and imports of problems, from real files and from small ones of the same shape."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.imports import FORMATS, bring
from minos_ray.store import Run
from tests.imports.files import jsonl, stored


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def test_every_format_names_a_function() -> None:
    from minos_ray.config import resolve

    assert all(callable(resolve(function)) for function in FORMATS.values())


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("genrn", {}, "'genrn' is not known; there are genrm, .*; did you mean 'genrm'"),
        ("gsm8k", {"splitt": "test"}, "unknown option 'splitt'; accepted: split, .*; did you mean 'split'"),
        ("gsm8k", {"src": "other"}, "unknown option 'src'"),
        ("gsm8k", {"split": "dev"}, "split = 'dev': Input should be 'train' or 'test'"),
        ("gsm8k", {"limit": "few"}, "limit = 'few': Input should be a valid integer"),
        ("prm800k", {"after_first_error": "masked"}, "Input should be 'keep', 'mask' or 'inherited'"),
    ],
)
def test_requests_that_are_refused(run: Run, tmp_path: Path, form: str, options: dict[str, Any], words: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "#### 2"})
    with pytest.raises(UserError, match=words):
        bring(form, path, run, **options)
    assert not Path(run.root).exists()


@pytest.mark.parametrize("form", ["math-minos", "math-shepherd", "prm800k", "prmbench", "processbench"])
def test_a_wrong_file_gives_one_line_with_its_columns(run: Run, tmp_path: Path, form: str) -> None:
    with pytest.raises(UserError, match=r"no row of '.*' can be used: .* \(2\); columns there: a, b$"):
        bring(form, jsonl(tmp_path / "a.jsonl", {"a": 1}, {"b": 2}), run)
    pointer = jsonl(tmp_path / "b.jsonl", "version https://git-lfs.github.com/spec/v1", "oid sha256:1")
    with pytest.raises(UserError, match="it is a Git LFS pointer"):
        bring(form, pointer, run)
    assert not Path(run.root).exists()


def test_real_gsm8k_by_command(tmp_path: Path, shared_data: Path) -> None:
    command = ["import", "gsm8k", str(shared_data / "gsm8k"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "minos_ray", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "problems: rows 8,792, train 7,473, test 1,319\n"


def test_gsm8k_of_one_file(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "#### 2"}, "torn")
    (manifest,) = bring("gsm8k", path, run, split="test")
    assert manifest.counts == {"rows": 1, "test": 1} and manifest.dropped == {"test: not valid JSON": 1}
    with pytest.raises(UserError, match="say split=train or split=test"):
        bring("gsm8k", path, Run(run.path + "2"))


def test_real_math500(run: Run, shared_data: Path) -> None:
    (manifest,) = bring("math", str(shared_data / "math500"), run)
    assert manifest.counts == {"rows": 500, "test": 500}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_any_table_with_candidates(run: Run, tmp_path: Path, kind: str) -> None:
    rows = [{"q": f"{n // 3}?", "a": n // 3, "out": f"The answer is: {n}"} for n in range(6)]
    rows.append({"q": "0?", "a": 0, "out": ""})
    path = str(tmp_path / f"mine.{kind}")
    if kind == "jsonl":
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    problems, candidates = bring("jsonl", path, run, columns={"question": "q", "answer": "a"}, text="out", model="m")
    assert problems.counts == {"rows": 2, "test": 2}
    assert candidates.counts == {"rows": 6} and candidates.dropped == {"empty 'out'": 1}
    assert [row["candidate_id"] for row in stored(run, "candidates")] == [
        f"mine-test-{n}/{i}" for n in range(2) for i in range(3)
    ]
    for text in ("out", None):
        with pytest.raises(UserError, match=r"rows? .*can be used.*no column 'nobody'"):
            bring("jsonl", path, run, columns={"question": "nobody", "answer": "a"}, text=text)
    assert len(stored(run, "problems")) == 2, "what was there stays"
