"""Files as others write, cut and mislabel them: rows that are read, rows that are counted, files that are refused."""

import datetime
import decimal
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.files import BadRow, read_parquet, records
from minos_ray.grading.graders import grade_file
from minos_ray.imports import bring
from minos_ray.problems.loaders import table as load
from minos_ray.store.run import Run

HEAD = "question,answer\n"
ROW = b'{"question": "q", "answer": "5"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
MANY = b"".join(b'{"question": "q%d", "answer": "%d"}\n' % (n, n * 7919) for n in range(3000))
HALF_UTF8 = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes((0, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0))),
                                                   pa.py_buffer(b"\xff\xfeok")])  # fmt: skip


def flipped(content: bytes) -> bytes:
    """The content with a byte in the middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes((content[middle] ^ 255,)) + content[middle + 1 :]


# What is read: usable rows, and the others by reason.
COUNTED: dict[str, tuple[bytes, int, dict[str, int]]] = {
    "bom.csv": (b"\xef\xbb\xbf" + f"{HEAD}What?,5\n".encode(), 1, {}),
    "bom.jsonl": (b"\xef\xbb\xbf" + ROW, 1, {}),
    "utf16.json": ('[{"question": "q", "answer": "5"}]'.encode("utf-16"), 1, {}),
    "commas.csv": (
        f"{HEAD}How many, all in all?,5\nshort\nWhat?,6\n".encode(),
        1,
        {"more fields than the header names": 1, "fewer fields than the header names": 1},
    ),
    "long.csv": (f"{HEAD}What?,5\n{'x' * 300_000},6\n".encode(), 2, {}),
    "no-names.csv": (b"question,answer,,\nWhat?,5,,\n,,,\n", 1, {"empty 'question'": 1}),
    "quotes.csv": (f'{HEAD}"a"b,5\nWhat?,6\n"two ""quotes""",7\n'.encode(), 2, {"text behind a closing quote": 1}),
    "latin.csv": (f"{HEAD}Café?,5\nWhat?,6\n".encode("latin-1"), 1, {"not UTF-8": 1}),
    "latin.jsonl": (ROW.replace(b'"q"', b'"\xe9"') + ROW, 1, {"not UTF-8": 1}),
    "surrogates.jsonl": (
        b"".join(ROW.replace(b'"q"', b'"%s"' % text) for text in (b"\\ud83d", b"\xed\xa0\x80", b"\\ud83d\\ude00")),
        1,
        {"half of a surrogate pair": 1, "not UTF-8": 1},
    ),
    "surrogates.json": (b'[{"question": "\\uDC00", "answer": "5"}, ' + ROW + b"]", 1, {"half of a surrogate pair": 1}),
    "deep.jsonl": (b"[" * 200_000 + b"\n" + b'{"a":' * 200_000 + b"\n" + ROW, 1, {"nested too deeply": 2}),
    "others.jsonl": (b"5\nnull\n[1]\n" + ROW + b"{\n", 1, {"not a JSON object": 3, "not valid JSON": 1}),
    "numbers.jsonl": (
        b"".join(ROW.replace(b'"5"', n) for n in (b"NaN", b"null", b"Infinity", b"0", b"1" + b"0" * 400)),
        2,
        {"empty 'answer'": 2, "'answer' is not a finite number": 1},
    ),
    "lists.jsonl": (ROW + ROW.replace(b'"5"', b'["5"]'), 1, {"'answer' is not a text": 1}),
    "good.jsonl.gz": (gzip.compress(MANY), 3000, {}),
    "two-members.jsonl.gz": (gzip.compress(ROW) + gzip.compress(ROW), 2, {}),
}  # fmt: skip
# What is refused, and what the line says.
REFUSED: dict[str, tuple[bytes, str]] = {
    "utf16.csv": (f"{HEAD}What?,5\n".encode("utf-16"), "save it as UTF-8"),
    "utf16-le.csv": (f"{HEAD}What?,5\n".encode("utf-16-le"), "save it as UTF-8"),
    "utf32.jsonl": (ROW.decode().encode("utf-32"), "save it as UTF-8"),
    "latin.json": ('[{"question": "é"}]'.encode("latin-1"), "not valid JSON: 'utf-8'"),
    "deep.json": (b"[" * 200_000, "nested too deeply"),
    "open.csv": (f'{HEAD}What?,5\n"open,6\nb,7\n'.encode(), "unexpected end of data; is a quote missing"),
    "swallowed.csv": (f'{HEAD}"open,6\n{"b,7" * (1 << 25)}'.encode(), "field larger than field limit"),
    "twice.csv": (b"question,answer,answer\nq,5,6\n", "two columns named 'answer'"),
    "torn.csv.gz": (gzip.compress(MANY)[:9000], "end-of-stream marker was reached; is it whole?"),
    "torn.jsonl.gz": (gzip.compress(MANY)[:9000], "end-of-stream marker was reached; is it whole?"),
    "gzipped.jsonl": (gzip.compress(ROW), "is gzipped; let its name end in .jsonl.gz"),
    "gzipped.csv": (gzip.compress(ROW), "is gzipped; let its name end in .csv.gz"),
    "plain.jsonl.gz": (MANY, "Not a gzipped file"),
    "flipped.json.gz": (flipped(gzip.compress(b"[%s]" % MANY.replace(b"\n", b",")[:-1])), "cannot be read as .json"),
    "empty.jsonl.gz": (b"", "is empty: no rows"),
    "header.csv": (HEAD.encode(), "is empty: no rows"),
    "empty.json": (b"", "not valid JSON"),
    "empty.parquet": (b"", "is no Parquet file: "),
    "text.parquet": (ROW * 9, "is no Parquet file: "),
    "text.arrow": (ROW * 9, "is no Arrow stream: "),
    "annex.parquet": (b"/annex/objects/SHA256E-s1--0.parquet\n", "a git-annex pointer, not the data; `git annex get`"),
    **{f"lfs.{s}": (POINTER, "a Git LFS pointer, not the data; `git lfs pull`")
       for s in ("csv", "jsonl", "json", "parquet", "arrow", "csv.gz", "jsonl.gz")},
}  # fmt: skip
# Columns of Parquet: the usable rows, the others by reason, and what `minos grade` says of them as gold.
TYPES: dict[str, tuple[pa.Array, int, dict[str, int], str | None]] = {
    "NaN": (pa.array([5.0, float("nan"), None]), 1, {"empty 'answer'": 2}, None),
    "decimals": (pa.array([decimal.Decimal("5.00"), decimal.Decimal("1E+3")]), 2, {}, None),
    "dictionary": (pa.array(["5", "6", "5"]).dictionary_encode(), 3, {}, None),
    "large texts": (pa.array(["5"], pa.large_string()), 1, {}, None),
    "lists": (pa.array([["5"], ["6"]]), 0, {"'answer' is not a text": 2}, "list<element: string>"),
    "structs": (pa.array([{"x": [5]}]), 0, {"'answer' is not a text": 1}, "struct<x"),
    "maps": (pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())), 0, {"'answer' is not a text": 1}, "map<"),
    "bytes": (pa.array([b"5"]), 0, {"'answer' is not a text": 1}, "binary"),
    "times": (pa.array([datetime.datetime(2020, 1, 1)]), 0, {"'answer' is not a text": 1}, "timestamp[us]"),
    "far times": (pa.array([2**62], pa.timestamp("us")), 0, {"a value that cannot be read": 1}, "timestamp[us]"),
    "nothing": (pa.nulls(2), 0, {"empty 'answer'": 2}, None),
    "half UTF-8": (HALF_UTF8, 1, {"not UTF-8": 1}, "cannot be read as .parquet: 'utf-8'"),
}


def written(path: Path, content: bytes) -> str:
    """The path of a file with that content."""
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("name", COUNTED)
def test_rows_that_cannot_be_used_are_counted(tmp_path: Path, name: str) -> None:
    content, usable, reasons = COUNTED[name]
    path = written(tmp_path / name, content)
    rows = list(load(path, "test", None, 0))
    assert Counter(row["error"] for row in rows if "error" in row) == Counter(reasons)
    assert len([row for row in rows if "error" not in row]) == usable
    (made,) = bring("jsonl", path, Run(str(tmp_path / "run")))
    assert made.counts["rows"] == usable
    if reasons and not {"empty 'answer'", "empty 'question'"} & set(reasons):
        with pytest.raises(UserError, match=rf"file '.*{name}', row \d"):
            grade_file(path, "answer", "question", str(tmp_path / "out.parquet"))
    else:
        counts = grade_file(path, "answer", "question", str(tmp_path / "out.parquet"))
        assert counts["no_answer"] + counts["wrong"] + counts["correct"] >= usable


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = REFUSED[name]
    path = written(tmp_path / name, content)
    for read in (
        lambda: list(load(path, "test", None, 0)),
        lambda: bring("jsonl", path, Run(str(tmp_path / "run"))),
        lambda: bring("processbench", path, Run(str(tmp_path / "run"))),
        lambda: grade_file(path, "answer", "question", str(tmp_path / "out.parquet")),
    ):
        with pytest.raises(UserError) as refused:
            read()
        line = str(refused.value)
        assert name in line and "\n" not in line and words in line
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing was written"


@pytest.mark.parametrize("kind", TYPES)
def test_columns_of_any_type(tmp_path: Path, kind: str) -> None:
    column, usable, reasons, refused = TYPES[kind]
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"question": ["q"] * len(column), "answer": column}), path)
    if usable:
        rows = list(load(path, "test", None, 0))
        assert Counter(row["error"] for row in rows if "error" in row) == Counter(reasons)
        assert len(rows) == len(column)
    else:
        with pytest.raises(UserError, match=f"can be used: {next(iter(reasons))}"):
            list(load(path, "test", None, 0))
    if refused:
        with pytest.raises(UserError) as line:
            grade_file(path, "answer", "question", str(tmp_path / "out.parquet"))
        assert refused in str(line.value) and "a.parquet" in str(line.value)
    else:
        grade_file(path, "answer", "question", str(tmp_path / "out.parquet"))


def test_decimals_are_written_without_an_exponent(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"question": ["q", "r"], "answer": TYPES["decimals"][0]}), path)
    assert [row["answer"] for row in load(path, "test", None, 0)] == ["5.00", "1000.00"]


@pytest.mark.parametrize("place", ["pages", "footer"])
def test_torn_parquet_is_refused_wherever_it_is_read(tmp_path: Path, place: str) -> None:
    path = tmp_path / "torn.parquet"
    rows = {"question": [f"question {n} {n * n}" for n in range(50_000)], "answer": [str(n) for n in range(50_000)]}
    pq.write_table(pa.table(rows), path, compression="zstd")
    content = path.read_bytes()
    path.write_bytes(content[:-100] if place == "footer" else content[:2000] + bytes(4000) + content[6000:])
    for read in (
        lambda: list(records(str(path))),
        lambda: grade_file(str(path), "answer", "question", str(tmp_path / "out.parquet")),
        lambda: bring("genrm", str(path), Run(str(tmp_path / "run"))),
    ):
        with pytest.raises(UserError, match=r"torn\.parquet"):
            read()


def test_repeated_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    values = [pa.array(["q"]), pa.array(["5"]), pa.array(["6"])]
    pq.write_table(pa.Table.from_arrays(values, ["question", "answer", "answer"]), path)
    with pytest.raises(UserError, match="two columns named 'answer'"):
        list(records(path))
    with pytest.raises(UserError, match="duplicate field names"):
        grade_file(path, "answer", "question", str(tmp_path / "out.parquet"))


def test_some_columns_are_read_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [1, 2], "b": HALF_UTF8}), path)
    assert list(read_parquet(path, ["a"])) == [{"a": 1}, {"a": 2}]
    first, second = read_parquet(path)
    assert isinstance(first, BadRow) and second == {"a": 2, "b": "ok"}


CHAT = [{"role": "assistant", "content": "The answer is 3"}]


@pytest.mark.parametrize("gold, text", [(["\\pi", "2\\pi"], "2\\pi"), ("5", ["2", "3"]), ("3", CHAT), ({"a": 1}, "1")])
def test_lists_in_the_columns_of_grade_are_refused(tmp_path: Path, gold: Any, text: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"g": "5", "t": "5"}, {"g": gold, "t": text})))
    with pytest.raises(UserError, match=r"a\.jsonl', row 2: '[gt]' is no text but a (list|dict); write one text"):
        grade_file(str(path), "g", "t", str(tmp_path / "out.parquet"))


def test_empty_numbers_are_no_gold(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"g": NaN, "t": "The answer is nan"}\n{"g": 5, "t": "The answer is 5"}\n{"g": "x"}\n'
    )
    assert grade_file(str(tmp_path / "a.jsonl"), "g", "t", str(tmp_path / "out.parquet"))["correct"] == 1
    assert pq.read_table(tmp_path / "out.parquet")["g"].to_pylist() == [None, "5", "x"]
