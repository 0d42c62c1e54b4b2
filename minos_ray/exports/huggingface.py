"""A Hugging Face dataset folder: Parquet shards per artefact and split, and a card that says which files are which."""

import re
from collections import Counter
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from minos_ray import __version__
from minos_ray.errors import UserError
from minos_ray.exports.hub import create_repo, upload_folder
from minos_ray.exports.write import Exported, aside, require_new_folder
from minos_ray.problems.split import read_problems
from minos_ray.store.run import Manifest, Run

ARTEFACTS = ("problems", "candidates", "labels", "critiques", "inserted")
SCORES = "scores"
SPLITS = ("train", "test")
TAGS = ["mathematical-reasoning", "reward-model", "verifier"]


class Config(NamedTuple):
    """One artefact as a configuration of the dataset: its rows by split."""

    name: str
    manifest: Manifest
    tables: dict[str, pa.Table]


def export_huggingface(
    run: Run,
    out: str,
    *,
    split: Literal["train", "test", "all"] = "all",
    shard_rows: int = 100_000,
    license: str | None = None,
    upload: str | None = None,
    private: bool = True,
    update: bool = False,
) -> Exported:
    """Problems, candidates, labels, critiques, inserted errors and scores, as far as the run has them complete.

    A row goes where its problem is; `shard_rows` is the size of a file. `load_dataset(OUT, "labels")` reads it, and
    with `upload=NAMESPACE/NAME` it is a data set of the hub.
    """
    if shard_rows < 1:
        raise UserError(f"export huggingface: shard_rows = {shard_rows} is less than 1")
    require_new_folder("export huggingface", out)
    names, dropped = present(run), Counter[str]()
    problems = read_problems(run, None if split == "all" else split, ["problem_id", "split"])
    configs = [config(run, name, problems, dropped) for name in names]
    configs = [part for part in configs if part.tables]
    if not configs:
        raise UserError(f"export huggingface: '{run.path}' has no rows of split {split}")
    if upload is not None:
        create_repo(upload, "dataset", private, update)
    with aside(out) as (fs, path):
        for part in configs:
            write_shards(fs, f"{path}/{folder(part.name)}", part.tables, shard_rows)
        with fs.open_output_stream(f"{path}/README.md") as stream:
            stream.write(card(configs, license).encode())
    counts = {folder(part.name): sum(map(len, part.tables.values())) for part in configs}
    places = f"{out}, {upload_folder(out, upload, 'dataset')}" if upload else out
    return Exported(places, counts, {reason: rows for reason, rows in dropped.items() if rows})


def present(run: Run) -> list[str]:
    """The row artefacts of a run that are complete; UserError without problems, which say the split of all others."""
    if run.artefact("problems").manifest() is None:
        raise UserError(f"export huggingface: '{run.path}' has no complete problems")
    info = run.fs.get_file_info(pafs.FileSelector(f"{run.root}/{SCORES}", allow_not_found=True))
    names = [*ARTEFACTS, *sorted(f"{SCORES}/{i.base_name}" for i in info if i.type == pafs.FileType.Directory)]
    return [name for name in names if run.artefact(name).manifest() is not None]


def folder(name: str) -> str:
    """The configuration of an artefact: `scores-orm-base`."""
    return re.sub(r"\W+", "-", name)


def config(run: Run, name: str, wanted: pa.Table, dropped: Counter[str]) -> Config:
    """One artefact by split; rows of no wanted problem (`problem_id, split`) are counted."""
    artefact = run.artefact(name)
    table, manifest = artefact.read(), artefact.manifest()
    assert manifest is not None
    of_row = pc.index_in(problem_ids(run, name, table), value_set=wanted["problem_id"].combine_chunks())
    splits = wanted["split"].take(of_row)
    dropped[f"{name}: of no exported problem"] += splits.null_count
    parts = {split: table.filter(pc.fill_null(pc.equal(splits, split), False)) for split in SPLITS}
    return Config(name, manifest, {split: part for split, part in parts.items() if len(part)})


def problem_ids(run: Run, name: str, table: pa.Table) -> pa.ChunkedArray | pa.Array:
    """The problem of each row; a critique has the one of its candidate."""
    if "problem_id" in table.column_names:
        return table["problem_id"]
    labels = run.artefact("labels").read(["candidate_id", "problem_id"])
    label_rows = pc.index_in(table["candidate_id"], value_set=labels["candidate_id"].combine_chunks())
    return labels["problem_id"].take(label_rows)


def write_shards(fs: pafs.FileSystem, path: str, tables: dict[str, pa.Table], shard_rows: int) -> None:
    """`SPLIT-00000-of-00002.parquet`, each with at most that many rows."""
    fs.create_dir(path, recursive=True)
    for split, table in tables.items():
        shards = -(-len(table) // shard_rows)
        for number in range(shards):
            with fs.open_output_stream(f"{path}/{split}-{number:05d}-of-{shards:05d}.parquet") as stream:
                pq.write_table(table.slice(number * shard_rows, shard_rows), stream, compression="zstd")


def card(configs: list[Config], license: str | None = None) -> str:
    """README.md: the head that `load_dataset` reads, then rows, origin and what was left out when they were made."""
    entries = []
    for part in configs:
        name = folder(part.name)
        files = [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in part.tables]
        entries.append({"config_name": name, "data_files": files} | ({"default": True} if name == "problems" else {}))
    terms = {"license": license} if license else {}
    values = {**terms, "tags": TAGS, "configs": entries}
    head = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    table = ["| configuration | rows | made by | left out when it was made |", "|---|---|---|---|"]
    for name, manifest, tables in configs:
        sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in tables.items())
        imported = manifest.inputs.get("import")
        form = imported.get("format") if isinstance(imported, dict) else None  # never the path
        origin = f"import {form}" if form else "minos_ray"
        reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in manifest.dropped.items())
        left_out = reasons.replace("|", "\\|").replace("\n", " ") or "nothing"
        table.append(f"| {folder(name)} | {sizes} | {origin} | {left_out} |")
    text = f"Artefacts of a minos_ray {__version__} run; the columns are described in its docs/run-directory.md."
    return "\n".join([f"---\n{head}---", "# Mathematical verification data", "", text, "", *table, ""])
