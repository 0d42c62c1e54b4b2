"""The run directory: artefacts made of Parquet parts, complete only when `manifest.json` is there.

Paths are local or anything pyarrow opens (`s3://`, `gs://`). Every file is written aside and renamed.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from minos_ray import __version__
from minos_ray.errors import UserError
from minos_ray.reading import ahead
from minos_ray.schema import SCHEMAS

STATS = b"minos_stats"
UNITS = b"minos_units"


class Manifest(BaseModel):
    """What a complete artefact is: what went in, how many rows came out, what was dropped and why."""

    model_config = ConfigDict(extra="forbid")

    artefact: str
    fingerprint: str
    inputs: dict[str, Any]
    version: str
    counts: dict[str, int]
    dropped: dict[str, int]
    details: dict[str, Any]
    created: str


def fingerprint(inputs: dict[str, Any]) -> str:
    """16 hex digits that name a JSON value."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def open_path(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path on it of a local path or URI."""
    if "://" in path:
        try:
            return pafs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"run: '{path}' is no path that pyarrow opens: {error}") from error
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))


class Run:
    """A run directory. `path` is absolute for a local one, so that every process means the same place."""

    def __init__(self, path: str) -> None:
        self.fs, self.root = open_path(path)
        self.path = path if "://" in path else self.root

    @property
    def local(self) -> bool:
        """Whether the run lies on a local (or mounted) file system."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def artefact(self, name: str) -> "Artefact":
        """The artefact of that name: `candidates`, `models/critic`, `scores/orm-base`, `evaluation.json`."""
        return Artefact(self, name)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return self.fs.get_file_info(f"{self.root}/{name}").type != pafs.FileType.NotFound

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file aside, then renames it."""
        target = f"{self.root}/{name}"
        self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        aside = f"{target}.{time.time_ns()}.tmp"
        with self.fs.open_output_stream(aside) as stream:
            stream.write(content)
        self.fs.move(aside, target)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        with self.fs.open_input_stream(f"{self.root}/{name}") as stream:
            return stream.read()

    def delete(self, name: str) -> None:
        """Removes a file or folder that may be there."""
        info = self.fs.get_file_info(f"{self.root}/{name}")
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(info.path)

    def files(self, name: str) -> list[str]:
        """Sorted base names of the files directly in a folder."""
        selector = pafs.FileSelector(f"{self.root}/{name}", allow_not_found=True)
        return sorted(i.base_name for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File)

    def folders(self, name: str) -> list[str]:
        """Sorted base names of the folders directly in a folder."""
        selector = pafs.FileSelector(f"{self.root}/{name}", allow_not_found=True)
        return sorted(i.base_name for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.Directory)

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path from there."""
        selector = pafs.FileSelector(f"{self.root}/{name}", recursive=True)
        files = [i for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File]
        return {i.path.removeprefix(f"{self.root}/{name}/"): i.size for i in files}


class Artefact:
    """One artefact: a folder of parts (or a model), or a single file with its manifest beside it."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.path = f"{run.path}/{name}"
        is_file = "." in name.rpartition("/")[2]
        self.manifest_name = f"{name}.manifest.json" if is_file else f"{name}/manifest.json"
        self.begun_name = f"{name}.begun.json" if is_file else f"{name}/begun.json"

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the artefact is not complete (a torn manifest counts as none)."""
        return self._read_model(self.manifest_name)

    def _read_model(self, name: str) -> Manifest | None:
        if not self.run.exists(name):
            return None
        try:
            return Manifest.model_validate_json(self.run.read_bytes(name))
        except ValidationError:
            return None

    def begun(self) -> str | None:
        """The fingerprint that the present parts belong to."""
        if not self.run.exists(self.begun_name):
            return None
        try:
            return str(json.loads(self.run.read_bytes(self.begun_name))["fingerprint"])
        except (ValueError, KeyError, TypeError):
            return None

    def begun_inputs(self) -> dict[str, Any] | None:
        """What the present parts were made from."""
        return json.loads(self.run.read_bytes(self.begun_name))["inputs"] if self.begun() else None

    def adopt(self, inputs: dict[str, Any]) -> None:
        """Keeps the present parts for other inputs; the artefact is not complete any more."""
        self.run.delete(self.manifest_name)
        self._write_begun(inputs)

    def _write_begun(self, inputs: dict[str, Any]) -> None:
        content = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        self.run.write_bytes(self.begun_name, json.dumps(content).encode())

    def begin(self, inputs: dict[str, Any]) -> None:
        """Makes the artefact writable: parts of the same inputs stay, anything else is removed first."""
        if self.begun() != fingerprint(inputs):
            self.run.delete(self.name)
            self.run.delete(self.manifest_name)
            self._write_begun(inputs)
        elif self.manifest() is not None:
            self.run.delete(self.manifest_name)

    def complete(
        self, counts: dict[str, int], dropped: dict[str, int] | None = None, details: dict[str, Any] | None = None
    ) -> Manifest:
        """Writes the manifest, the last file of an artefact."""
        begun = json.loads(self.run.read_bytes(self.begun_name))
        manifest = Manifest(
            artefact=self.name,
            fingerprint=begun["fingerprint"],
            inputs=begun["inputs"],
            version=__version__,
            counts=counts,
            dropped={reason: rows for reason, rows in (dropped or {}).items() if rows},
            details=details or {},
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self.run.write_bytes(self.manifest_name, manifest.model_dump_json(indent=1).encode())
        return manifest

    def write_part(
        self, name: str, rows: pa.Table, stats: dict[str, float] | None = None, units: Sequence[str] = ()
    ) -> None:
        """Writes `part-NAME.parquet`; the same name overwrites. `stats` travel inside the part and are summed later.

        So do the ids of the `units` of work that the rows came from.
        """
        notes = {STATS: json.dumps(stats or {}).encode(), UNITS: json.dumps(list(units)).encode()}
        metadata = {**(rows.schema.metadata or {}), **notes}
        sink = pa.BufferOutputStream()
        pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd")
        self.run.write_bytes(f"{self.name}/part-{name}.parquet", sink.getvalue().to_pybytes())

    def part_names(self, start: str = "") -> list[str]:
        """Names (that begin with `start`) of whole parts; torn ones are renamed to `.torn` and so asked for again."""
        return [name.removeprefix("part-").removesuffix(".parquet") for name in self._whole_files(start)]

    def _part_files(self, start: str = "") -> list[str]:
        return [f for f in self.run.files(self.name) if f.startswith(f"part-{start}") and f.endswith(".parquet")]

    def _whole_files(self, start: str = "") -> list[str]:
        return [f for f, whole in ahead(self._whole, self._part_files(start)) if whole]

    def _whole(self, file: str) -> bool:
        path = f"{self.run.root}/{self.name}/{file}"
        try:
            with self.run.fs.open_input_file(path) as source:
                pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError):
            self.run.fs.move(path, f"{path}.torn")
            return False
        return True

    def read(self, columns: list[str] | None = None, partial: bool = False) -> pa.Table:
        """All rows, parts in order of their names. Raises UserError unless complete or `partial`."""
        if not partial:
            self._refuse_partial()
        tables = [self._read_part(f, columns) for f in (self._whole_files() if partial else self._part_files())]
        return pa.concat_tables(tables) if tables else self.nothing(columns)

    def parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The parts of an artefact, one at a time. Raises UserError unless it is complete."""
        return (rows for _, rows in self.named_parts(columns))

    def named_parts(self, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """`parts` with their names."""
        self._refuse_partial()
        for file, rows in ahead(lambda file: self._read_part(file, columns), self._part_files()):
            yield file.removeprefix("part-").removesuffix(".parquet"), rows

    def _refuse_partial(self) -> None:
        if self.manifest() is None:
            raise UserError(f"{self.path} is not complete; run the stage that makes it first")

    def read_where(self, column: str, values: Iterable[str] | None, columns: list[str] | None = None) -> pa.Table:
        """The rows whose `column` is one of `values` (None: all); of parts without one only that column is read."""
        if values is None:
            return self.read(columns)
        wanted = pa.array(list(values), pa.string())
        found = []
        for file in self._part_files():
            chosen = pc.is_in(self._read_part(file, [column])[column], value_set=wanted)
            if pc.any(chosen).as_py():
                found.append(self._read_part(file, columns).filter(chosen))
        return pa.concat_tables(found) if found else self.nothing(columns)

    def nothing(self, columns: list[str] | None) -> pa.Table:
        """A table without rows."""
        schema = SCHEMAS.get(self.name.partition("/")[0])
        return schema.empty_table().select(columns or schema.names) if schema else pa.table({})

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of one part."""
        return self._read_part(f"part-{name}.parquet", columns)

    def part_rows(self, name: str) -> int:
        """How many rows one part has, without reading them."""
        with self.run.fs.open_input_file(f"{self.run.root}/{self.name}/part-{name}.parquet") as source:
            return pq.ParquetFile(source).metadata.num_rows

    def part_notes(self, name: str) -> tuple[list[str], int, dict[str, float]]:
        """The units of one part, the number of its rows and its stats, without reading them."""
        with self.run.fs.open_input_file(f"{self.run.root}/{self.name}/part-{name}.parquet") as source:
            file = pq.ParquetFile(source)
            notes = file.schema_arrow.metadata or {}
            return json.loads(notes.get(UNITS, b"[]")), file.metadata.num_rows, json.loads(notes.get(STATS, b"{}"))

    def _read_part(self, file: str, columns: list[str] | None) -> pa.Table:
        path = f"{self.run.root}/{self.name}/{file}"
        try:
            with self.run.fs.open_input_file(path) as source:
                return pq.read_table(source, columns=columns).replace_schema_metadata(None)
        except pa.ArrowInvalid as error:
            manifest = f"{self.run.path}/{self.manifest_name}"
            raise UserError(
                f"{path} is torn; delete {manifest} and run its stage again, only this part is redone"
            ) from error

    def stats(self) -> dict[str, float]:
        """Sum over the parts of what `write_part` was given as stats."""
        total: dict[str, float] = {}
        for _, (_, _, stats) in ahead(self.part_notes, self.part_names()):
            for key, value in stats.items():
                total[key] = total.get(key, 0) + value
        return total
