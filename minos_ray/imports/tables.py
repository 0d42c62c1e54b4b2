"""Problems from files: GSM8K, MATH, and any table, which may bring candidates along."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from minos_ray.config import Count
from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, files, records
from minos_ray.imports.grouping import OTHER_GOLD, Row, begin_import, candidate, require_rows, write_rows
from minos_ray.problems import loaders
from minos_ray.problems.loaders import text_of
from minos_ray.store.run import Manifest, Run

Split = Literal["train", "test"]
SPLITS = ("train", "test")


def import_gsm8k(
    src: str,
    run: Run,
    *,
    split: Split | None = None,
    limit: Count | None = None,
    seed: int = 0,
    calculations: bool = False,
) -> list[Manifest]:
    """Problems of a GSM8K file (with `split`), or of a folder with a file for each split."""
    rows = loaded(loaders.gsm8k, src, split, limit, seed, calculations=calculations)
    options = {"split": split, "limit": limit, "seed": seed, "calculations": calculations}
    return [write_problems(run, "gsm8k", src, rows, options)]


def import_math(
    src: str, run: Run, *, split: Split | None = None, limit: Count | None = None, seed: int = 0
) -> list[Manifest]:
    """Problems of a MATH file (with `split`), or of a folder with a file for each split."""
    rows = loaded(loaders.math, src, split, limit, seed)
    return [write_problems(run, "math", src, rows, {"split": split, "limit": limit, "seed": seed})]


def loaded(load: Any, src: str, split: str | None, limit: int | None, seed: int, **options: Any) -> Iterator[Row]:
    """What a loader yields for every split there is."""
    for name, path in split_files(src, split).items():
        yield from ({"split": name, **row} for row in load(path, name, limit, seed, **options))


def split_files(src: str, split: str | None) -> dict[str, str]:
    """The file of each split, by name (`test.jsonl`, `train-0-of-1.parquet`); a named split takes all of `src`."""
    if split is not None:
        return {split: src}
    names = {path: path.rpartition("/")[2] for path in files(src)}
    paths_by_split = {name: [path for path, base in names.items() if base.startswith(name)] for name in SPLITS}
    for name, paths in paths_by_split.items():
        if len(paths) > 1:
            raise UserError(f"import: several files for split {name}: {', '.join(paths)}; name one, with split={name}")
    if not any(paths_by_split.values()):
        raise UserError(f"import: no file in '{src}' is named train* or test*; say split=train or split=test")
    return {name: paths[0] for name, paths in paths_by_split.items() if paths}


def write_problems(run: Run, form: str, src: str, rows: Iterator[Row], options: dict[str, Any]) -> Manifest:
    """Completes `problems`, rows that could not be used counted by reason."""
    parts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    dropped: Counter[str] = Counter()
    for row in rows:
        if "error" in row:
            dropped[f"{row['split']}: {row['error']}"] += 1
        else:
            parts[row["split"]].append(row)
    require_rows([row for rows in parts.values() for row in rows], src, dropped)
    return write_rows(begin_import(run, ["problems"], form, src, **options)["problems"], parts, dropped)


def import_jsonl(
    src: str,
    run: Run,
    *,
    split: Split = "test",
    columns: dict[str, str] | None = None,
    dataset: str | None = None,
    categories: tuple[str, ...] = (),
    text: str | None = None,
    model: str = "imported",
) -> list[Manifest]:
    """Problems of any jsonl, json, csv or Parquet file; `columns` and `categories` as in
    `minos_ray.problems.loaders`.

    With `text` (the column of a candidate's text) rows are candidates: those with the same question (or the same id)
    belong to one problem, in file order.
    """
    options = {"split": split, "columns": columns, "dataset": dataset, "text": text, "model": model}
    if categories:  # so that an import without them is what it was to earlier versions
        options["categories"] = list(categories)
    loaders.require_known_fields(columns or {})
    loaders.require_new_columns(categories)
    if text is None:
        rows = loaded(loaders.table, src, split, None, 0, columns=columns, dataset=dataset, categories=categories)
        return [write_problems(run, "jsonl", src, rows, options)]
    convert = partial(loaders.table_row, names=columns or {}, categories=categories)
    problems, candidates, dropped = grouped(src, split, convert, dataset, text, model)
    require_rows(candidates, src, dropped)
    artefacts = begin_import(run, ("problems", "candidates"), "jsonl", src, **options)
    return [
        write_rows(artefacts["problems"], {split: problems}, {}),
        write_rows(artefacts["candidates"], {split: candidates}, dropped),
    ]


def grouped(
    src: str, split: str, convert: Callable[[Row], Row], dataset: str | None, text: str, model: str
) -> tuple[list[Row], list[Row], Counter[str]]:
    """Problems and their candidates from rows of one candidate each, which agree on the problem."""
    dataset = loaders.dataset_name(src, dataset)
    problems: dict[str, Row] = {}
    candidates: list[Row] = []
    dropped: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            fields = convert(record)
            words = text_of(record, text)
            key = fields.get("problem_id", fields["question"])
            default = {"problem_id": f"{dataset}-{split}-{len(problems)}", "dataset": dataset, "split": split}
            problem = problems.get(key, {**default, **fields})
            if fields["question"] != problem["question"]:
                raise BadRow("another question for the same id")
            if fields["answer"] != problem["answer"]:
                raise BadRow(OTHER_GOLD)
        except BadRow as error:
            dropped[str(error)] += 1
            continue
        problems[key] = problem
        candidates.append(candidate(problem["problem_id"], counted[key], words, model))
        counted[key] += 1
    return list(problems.values()), candidates, dropped
