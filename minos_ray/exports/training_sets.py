"""Training sets for others' trainers: stage 1's pairs in TRL's prompt-completion format; labelled solutions as TRL's
stepwise supervision, Math-Shepherd's and Math-Minos' ORM files. They are written aside, then renamed, so that a file at
OUT is complete.
"""

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.imports.steps import FIRST_STEP, TAG
from minos_ray.problems.split import problems_by_id
from minos_ray.steps.encoding import CRITIQUE, critic_turns, question_text, step_text
from minos_ray.steps.split import without_thinking
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Run, open_path

Split = Literal["train", "test", "all"]
BATCH = 10_000  # rows in memory at a time
STRINGS, BOOLEANS = pa.list_(pa.string()), pa.list_(pa.bool_())
STEPWISE = pa.schema([("prompt", pa.string()), ("completions", STRINGS), ("labels", BOOLEANS)])
SHEPHERD = pa.schema([("input", pa.string()), ("label", pa.string()), ("task", pa.string())])
ORM = pa.schema([("text", pa.string()), ("label", pa.int8())])
NUMBERED = re.compile(r"step \d+:", re.IGNORECASE)
Unlabelled = Literal["cut", "drop"]
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {kind: pa.schema([("prompt", kind), ("completion", kind)]) for kind in (pa.string(), TURNS)}


class Exported(NamedTuple):
    """Where an export lies, its rows (and those changed on the way) by kind, and what was left out by reason."""

    path: str
    counts: dict[str, int]
    dropped: dict[str, int]


def problems_of(run: Run, split: Split) -> dict[str, Row]:
    """Question, data set and split by problem id."""
    splits = None if split == "all" else split
    return problems_by_id(run, splits, ["problem_id", "split", "dataset", "question"])


def solutions(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Labels with the question and data set of their problem; those of the other split are counted."""
    problems = problems_of(run, split)
    columns = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels"]
    for row in batched(run, "labels", columns):
        problem = problems.get(row["problem_id"])
        if problem is None:
            dropped[f"not of split {split}"] += 1
        else:
            yield {**row, "question": problem["question"], "dataset": problem["dataset"]}


def batched(run: Run, artefact: str, columns: list[str]) -> Iterator[Row]:
    """All rows of an artefact."""
    for batch in run.artefact(artefact).read(columns).to_batches(BATCH):
        yield from batch.to_pylist()


def write_file(
    out: str, schema: pa.Schema, rows: Iterable[Row], counts: Mapping[str, int], dropped: Mapping[str, int]
) -> Exported:
    """Writes rows in the form that the suffix of `out` says; UserError when there is none to write."""
    write = next((write for suffix, write in WRITERS.items() if out.endswith(suffix)), None)
    if write is None:
        raise UserError(f"export: '{out}' is of no known kind; accepted are {', '.join(WRITERS)}")
    with aside(out) as (fs, path):
        written = write(fs, path, schema, rows)
        if not written:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in dropped.items()) or "the run has no rows"
            raise UserError(f"export: no row is left for '{out}' ({reasons})")
    return Exported(out, {"rows": written, **counts}, dict(dropped))


def write_jsonl(fs: pafs.FileSystem, path: str, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """One object per line, gzipped when the name says so."""
    written = 0
    with ExitStack() as opened:
        lines: Any = opened.enter_context(fs.open_output_stream(path, compression=None))
        if path.endswith(".gz"):  # without a time stamp, so that the same rows give the same bytes
            lines = opened.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=lines, mtime=0))
        for row in rows:
            lines.write(json.dumps({name: row[name] for name in schema.names}, ensure_ascii=False).encode() + b"\n")
            written += 1
    return written


def write_parquet(fs: pafs.FileSystem, path: str, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Parquet with exactly that schema, a batch in memory at a time."""
    written, source = 0, iter(rows)
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as parquet:
        while batch := list(islice(source, BATCH)):
            parquet.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    return written


WRITERS = {".jsonl": write_jsonl, ".jsonl.gz": write_jsonl, ".parquet": write_parquet}


def require_new_folder(where: str, out: str) -> None:
    """UserError unless `out` is a local folder that does not exist yet."""
    if "://" in out:
        raise UserError(f"{where}: '{out}' is no local folder; a store cannot rename one")
    fs, target = open_path(out.rstrip("/"))
    if fs.get_file_info(target).type != pafs.FileType.NotFound:
        raise UserError(f"{where}: '{out}' exists; remove it or name another folder")


@contextmanager
def aside(out: str) -> Generator[tuple[pafs.FileSystem, str]]:
    """A path beside `out` that is renamed to it in the end, or removed when the work failed."""
    fs, target = open_path(out.rstrip("/"))
    folder, _, name = target.rpartition("/")
    path = f"{folder}/.{time.time_ns()}-{name}"
    fs.create_dir(folder, recursive=True)
    try:
        yield fs, path
        fs.move(path, target)
    finally:
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)


def export_stepwise(run: Run, out: str, *, split: Split = "train", unlabelled: Unlabelled = "cut") -> Exported:
    """TRL's `prompt, completions, labels` for its PRMTrainer: the question, the steps, True or False for each.

    TRL has no label for a step that nobody labelled: a solution ends before its first such step (`cut`), or is left
    out with any (`drop`).
    """
    counts, dropped = Counter[str](), Counter[str]()
    rows = labelled(solutions(run, split, dropped), unlabelled, counts, dropped)
    prepared = (
        {"prompt": row["question"], "completions": row["steps"], "labels": [label == 1 for label in row["step_labels"]]}
        for row in rows
    )
    return write_file(out, STEPWISE, prepared, counts, dropped)


def labelled(rows: Iterator[Row], unlabelled: Unlabelled, counts: Counter[str], dropped: Counter[str]) -> Iterator[Row]:
    """Solutions whose steps all have a label, what is cut off and left out counted."""
    for row in rows:
        steps, labels = row["steps"], row["step_labels"]
        labelled_steps = labels.index(-1) if -1 in labels else len(labels)
        reason = None
        if len(steps) != len(labels):
            reason = "labels unlike steps"
        elif not labelled_steps:
            reason = "first step unlabelled" if any(label >= 0 for label in labels) else "no step labels"
        elif labelled_steps < len(labels) and unlabelled == "drop":
            reason = "an unlabelled step"
        if reason:
            dropped[reason] += 1
            continue
        if labelled_steps < len(labels):
            counts["cut at an unlabelled step"] += 1
            counts["steps cut off"] += len(labels) - labelled_steps
        yield {**row, "steps": steps[:labelled_steps], "step_labels": labels[:labelled_steps]}


def export_shepherd(run: Run, out: str, *, split: Split = "train", unlabelled: Unlabelled = "drop") -> Exported:
    """Math-Shepherd's `input, label, task`: each step ends in the tag, and in `label` in + or -.

    Steps without numbers get `Step k: `. Its readers take the last sign for the outcome: where that differs, or the
    solution was cut, the row is counted.
    """
    counts, dropped = Counter[str](), Counter[str]()
    rows = tagged_rows(labelled(solutions(run, split, dropped), unlabelled, counts, dropped), counts, dropped)
    return write_file(out, SHEPHERD, rows, counts, dropped)


def tagged_rows(rows: Iterator[Row], counts: Counter[str], dropped: Counter[str]) -> Iterator[Row]:
    """Rows that can be read back."""
    for row in rows:
        reason = None  # why it would not be read back as it is
        if TAG in row["question"] or any(TAG in step for step in row["steps"]):
            reason = "the step tag is in the text"
        elif FIRST_STEP.search(row["question"]):
            reason = "'Step 1:' is in the question"
        elif not all(step.strip() for step in row["steps"]):
            reason = "an empty step"
        if reason:
            dropped[reason] += 1
            continue
        if not NUMBERED.match(row["steps"][0].strip()):
            counts["steps numbered"] += 1
            row = dict(row, steps=[f"Step {k}: {step.strip()}" for k, step in enumerate(row["steps"], 1)])
        counts["last label is not the outcome"] += bool(row["step_labels"][-1]) != row["correct"]
        signs = ["+" if label else "-" for label in row["step_labels"]]
        yield {
            "input": tagged(row, [TAG] * len(signs)),
            "label": tagged(row, signs),
            "task": str(row["dataset"]).upper(),
        }


def tagged(row: Row, tags: list[str]) -> str:
    """Question and steps, each step with its tag behind it."""
    ended = [f"{step.strip()} {tag}" for step, tag in zip(row["steps"], tags, strict=True)]
    return f"{row['question'].strip()} " + "\n".join(ended)


def export_orm(run: Run, out: str, *, split: Split = "train") -> Exported:
    """Math-Minos' ORM set: `text` is `Human: question`, `Assistant: solution`, and `label` 1 or 0 for the outcome."""
    dropped = Counter[str]()
    return write_file(out, ORM, outcomes(solutions(run, split, dropped), dropped), Counter(), dropped)


def outcomes(rows: Iterator[Row], dropped: Counter[str]) -> Iterator[Row]:
    """Solutions with a sure outcome, as stage 2 takes them."""
    for row in rows:
        if row["status"] in GRADED:
            text = f"Human: {row['question']}\nAssistant: " + "\n".join(row["steps"])
            yield {"text": text, "label": int(row["correct"])}
        else:
            dropped[f"label_{row['status']}"] += 1


def export_prompt_completion(
    run: Run,
    out: str,
    *,
    split: Split = "train",
    source: Literal["critiques", "inserted"] = "critiques",
    form: Literal["text", "chat"] = "text",
) -> Exported:
    """`prompt` is what our critic reads (question, steps, `Critique:`), `completion` what it is trained to write.

    Whole critiques that agree with the label, as stage 1 takes, but also those of problems that stage 2 would hold out
    (`reward.eval_rows`); `source=inserted` takes the notes on inserted errors instead. `form=chat` writes the turns of
    a critic whose encoding is `chat`, without a system turn.
    """
    dropped = Counter[str]()
    rows = critiques(run, split, dropped) if source == "critiques" else notes(run, split, dropped)
    if form == "chat":
        turns = (
            {
                "prompt": critic_turns(row["question"], row["solution"]),
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        )
        return write_file(out, COLUMNS[TURNS], turns, Counter(), dropped)
    texts = ({**row, "prompt": question_text(row["question"]) + row["solution"] + CRITIQUE} for row in rows)
    return write_file(out, COLUMNS[pa.string()], texts, Counter(), dropped)


def critiques(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs of critiques that stage 1 trains on, in the order of the artefact."""
    from minos_ray.training.sft import critique_unusable  # which takes torch along

    asked = {name: problem["question"] for name, problem in problems_of(run, split).items()}
    solutions = {row["candidate_id"]: row for row in batched(run, "labels", ["candidate_id", "problem_id", "steps"])}
    for critique in batched(run, "critiques", ["candidate_id", "text", "agrees", "status"]):
        solution = solutions.get(critique["candidate_id"])
        elsewhere = solution is not None and solution["problem_id"] not in asked
        reason = f"not of split {split}" if elsewhere else critique_unusable(critique, solution, asked, agreeing=True)
        if reason:
            dropped[reason] += 1
        else:
            assert solution is not None  # that would be a reason
            yield pair(asked[solution["problem_id"]], solution["steps"], without_thinking(critique["text"]))


def notes(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs of inserted errors and right solutions with the notes that came with them."""
    problems = problems_of(run, split)
    for row in batched(run, "inserted", ["problem_id", "steps", "text"]):
        if row["problem_id"] in problems:
            yield pair(problems[row["problem_id"]]["question"], row["steps"], row["text"])
        else:
            dropped[f"not of split {split}"] += 1


def pair(question: str, steps: list[str], critique: str) -> Row:
    """One training pair."""
    return {"question": question, "solution": "".join(map(step_text, steps)), "completion": critique}
