"""The run directory: artefacts made of Parquet parts, complete once `manifest.json` exists.

Paths are local or anything pyarrow opens (`s3://`, `gs://`). No file is ever seen half written.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from hashlib import blake2b
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from minos_ray import __version__
from minos_ray.errors import UserError
from minos_ray.store import filesystem
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.filesystem import open_path, prefetch

__all__ = ["Artefact", "Manifest", "Run", "fingerprint", "open_path"]

Stats = dict[str, float]
T = TypeVar("T")


class Manifest(BaseModel):
    """Written last: what went into a complete artefact, how many rows came out, what was dropped and why.

    `parts` is the number of its files of rows (None in manifests of early versions).
    """

    model_config = ConfigDict(extra="forbid")

    artefact: str
    fingerprint: str
    inputs: dict[str, Any]
    version: str
    counts: dict[str, int]
    dropped: dict[str, int]
    details: dict[str, Any]
    created: str
    parts: int | None = None


def fingerprint(inputs: dict[str, Any]) -> str:
    """16 hex digits that name a JSON value."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=8).hexdigest()


class Run:
    """A run directory. `path` is absolute for a local one, so that every process means the same place."""

    def __init__(self, path: str) -> None:
        self.fs, self.root = open_path(path)
        self.path = self.root if self.local else path

    @property
    def local(self) -> bool:
        """Whether the run lies on a local (or mounted) file system."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def artefact(self, name: str) -> "Artefact":
        """The artefact of that name: `candidates`, `models/critic`, `scores/orm-base`, `evaluation.json`."""
        return Artefact(self, name)

    def at(self, name: str) -> str:
        """The path or URI of a file or folder of the run."""
        return filesystem.inside(self.path, name)

    def storage_errors(self, action: str, name: str, size: int | None = None) -> AbstractContextManager[None]:
        """See `filesystem.storage_errors`."""
        return filesystem.storage_errors(action, self.at(name), size)

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""
        with self.storage_errors("looked for", name):
            return self.fs.get_file_info(f"{self.root}/{name}").type != pafs.FileType.NotFound

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file atomically."""
        with self.storage_errors("written", name, len(content)):
            filesystem.write_file(self.fs, f"{self.root}/{name}", content)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        with self.storage_errors("read", name), self.fs.open_input_stream(f"{self.root}/{name}") as stream:
            return stream.read()

    def upload(self, folder: str, name: str) -> None:
        """Copies the files of a local folder into one of the run."""
        with self.storage_errors("written", name):
            filesystem.copy_folder(folder, f"{self.root}/{name}", self.fs)

    def download(self, name: str, folder: str) -> None:
        """Copies the files of a folder of the run into an existing local folder."""
        with self.storage_errors("read", name):
            pafs.copy_files(f"{self.root}/{name}", folder, self.fs, pafs.LocalFileSystem())

    def delete(self, name: str) -> None:
        """Removes a file or folder that may be there, and may be removed by another process meanwhile."""
        with self.storage_errors("deleted", name), suppress(FileNotFoundError):
            info = self.fs.get_file_info(f"{self.root}/{name}")
            if info.type == pafs.FileType.Directory:
                self.fs.delete_dir(info.path)
            elif info.type == pafs.FileType.File:
                self.fs.delete_file(info.path)

    def _list(self, name: str, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(f"{self.root}/{name}".rstrip("/"), allow_not_found=True, recursive=recursive)
        with self.storage_errors("listed", name), suppress(NotADirectoryError):  # an artefact that is one file
            return self.fs.get_file_info(selector)
        return []

    def files(self, name: str) -> list[str]:
        """Sorted base names of the files directly in a folder."""
        return sorted(i.base_name for i in self._list(name) if i.type == pafs.FileType.File)

    def folders(self, name: str) -> list[str]:
        """Sorted base names of the folders directly in a folder."""
        return sorted(i.base_name for i in self._list(name) if i.type == pafs.FileType.Directory)

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path from there."""
        files = [i for i in self._list(name, recursive=True) if i.type == pafs.FileType.File]
        return {i.path.removeprefix(f"{self.root}/{name}/"): i.size for i in files}


class Artefact:
    """One artefact: a folder of parts (or a model), or a single file with its manifest beside it."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.path = run.at(name)
        self.is_file = "." in name.rpartition("/")[2]
        self.manifest_name = f"{name}.manifest.json" if self.is_file else f"{name}/manifest.json"
        self.begun_name = f"{name}.begun.json" if self.is_file else f"{name}/begun.json"

    def manifest(self) -> Manifest | None:
        """The manifest. None if the artefact is incomplete, or if the manifest is corrupt or of another artefact."""
        try:
            manifest = Manifest.model_validate_json(self.run.read_bytes(self.manifest_name))
        except (FileNotFoundError, ValidationError):
            return None
        # The last names alone: a model is also read from where its folder was copied to.
        return manifest if manifest.artefact.rpartition("/")[2] == self.name.rpartition("/")[2] else None

    def begun(self) -> str | None:
        """The fingerprint of the inputs that the present parts are made from; None when nothing was begun."""
        try:
            return str(json.loads(self.run.read_bytes(self.begun_name))["fingerprint"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def begun_inputs(self) -> dict[str, Any] | None:
        """The inputs that the present parts are made from; None when nothing was begun."""
        return json.loads(self.run.read_bytes(self.begun_name))["inputs"] if self.begun() else None

    def adopt(self, inputs: dict[str, Any]) -> None:
        """Keeps the present parts for other inputs; the artefact is then incomplete."""
        self.run.delete(self.manifest_name)
        self._write_begun(inputs)

    def _write_begun(self, inputs: dict[str, Any]) -> None:
        content = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        self.run.write_bytes(self.begun_name, json.dumps(content).encode())

    def begin(self, inputs: dict[str, Any]) -> None:
        """Makes the artefact writable: parts of the same inputs stay, parts of others are deleted."""
        if self.begun() != fingerprint(inputs):
            # In this order, so that a kill in between leaves neither file beside only some of its parts.
            for name in (self.manifest_name, self.begun_name, self.name):
                self.run.delete(name)
            self._write_begun(inputs)
        elif self.manifest() is not None:
            self.run.delete(self.manifest_name)

    def complete(
        self, counts: dict[str, int], dropped: dict[str, int] | None = None, details: dict[str, Any] | None = None
    ) -> Manifest:
        """Writes the manifest, the last file of an artefact."""
        origin = json.loads(self.run.read_bytes(self.begun_name))
        manifest = Manifest(
            artefact=self.name,
            fingerprint=origin["fingerprint"],
            inputs=origin["inputs"],
            version=__version__,
            counts=counts,
            dropped={reason: rows for reason, rows in (dropped or {}).items() if rows},
            details=details or {},
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            parts=None if self.is_file else len(self._names()),
        )
        self.run.write_bytes(self.manifest_name, manifest.model_dump_json(indent=1).encode())
        # Files that killed writers left. A process that still writes here was given up, and may fail.
        folder, _, start = self.begun_name.removesuffix("begun.json").rpartition("/")
        for file in () if filesystem.atomic(self.run.fs) else self.run.files(folder):
            if file.endswith(filesystem.ASIDE) and file.startswith(start):
                self.run.delete(f"{folder}/{file}".lstrip("/"))
        return manifest

    def write_part(
        self, name: str, rows: pa.Table, stats: dict[str, float] | None = None, units: Sequence[str] = ()
    ) -> None:
        """Writes `part-NAME.parquet`; the same name overwrites. The footer holds `stats`, which are summed later, and
        the ids of the `units` of work that the rows came from.
        """
        self.run.write_bytes(self._file(name), filesystem.encode_part(rows, stats or {}, units))

    def part_names(self, start: str = "") -> list[str]:
        """Names (that begin with `start`) of parts. Torn ones are renamed to `.torn`, so their rows are made again."""
        return [name for name, _ in self.part_footers(start)]

    def part_footers(self, start: str = "") -> Iterator[tuple[str, filesystem.PartFooter]]:
        """The names of `part_names` with the footers."""
        for name, footer in prefetch(self._footer_or_set_aside, self._names(start)):
            if footer is not None:
                yield name, footer

    def _file(self, name: str) -> str:
        return f"{self.name}/part-{name}.parquet"

    def _names(self, start: str = "") -> list[str]:
        files = [f for f in self.run.files(self.name) if f.startswith(f"part-{start}") and f.endswith(".parquet")]
        return [file.removeprefix("part-").removesuffix(".parquet") for file in files]

    def _footer_or_set_aside(self, name: str) -> filesystem.PartFooter | None:
        file = self._file(name)
        footer = read_or_none_if_torn(self.run, file, filesystem.read_footer)
        if footer is None:
            with self.run.storage_errors("set aside", file):
                self.run.fs.move(f"{self.run.root}/{file}", f"{self.run.root}/{file}.torn")
        return footer

    def read(self, columns: list[str] | None = None, partial: bool = False) -> pa.Table:
        """All rows, parts in order of their names. Raises UserError unless complete or `partial`."""
        names = self.part_names() if partial else self._complete_names()
        tables = [rows for _, rows in prefetch(lambda name: self.read_part(name, columns), names)]
        return pa.concat_tables(tables) if tables else self.empty_table(columns)

    def parts(self, columns: list[str] | None = None, encoded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The parts of an artefact as `read_part` reads them, one at a time. UserError unless it is complete."""
        return (rows for _, rows in self.named_parts(columns, encoded))

    def named_parts(
        self, columns: list[str] | None = None, encoded: Sequence[str] = ()
    ) -> Iterator[tuple[str, pa.Table]]:
        """`parts` with their names."""
        yield from prefetch(lambda name: self.read_part(name, columns, encoded), self._complete_names())

    def sizes_of_parts(self) -> Iterator[tuple[str, int]]:
        """Names of the parts and how many rows they have, without reading them. Raises UserError unless complete."""
        for name, footer in prefetch(self.part_footer, self._complete_names()):
            yield name, footer.rows

    def _complete_names(self) -> list[str]:
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.path} is not complete; run the stage that makes it first")
        names = self._names()
        if manifest.parts not in (None, len(names)):
            raise UserError(
                f"{self.path} has {len(names)} parts where its manifest counts {manifest.parts}; delete "
                f"{self.run.at(self.manifest_name)} and run its stage again, only what is missing is done"
            )
        return names

    def read_where(self, column: str, values: Iterable[str] | None, columns: list[str] | None = None) -> pa.Table:
        """The rows whose `column` is one of `values` (None: all). Of parts without such a row only that column is read.

        Raises UserError unless the artefact is complete.
        """
        if values is None:
            return self.read(columns)
        value_set = pa.array(list(values), pa.string())

        def matching_rows(name: str) -> pa.Table | None:
            mask = pc.is_in(self.read_part(name, [column])[column], value_set=value_set)
            return self.read_part(name, columns).filter(mask) if pc.any(mask).as_py() else None

        tables = [rows for _, rows in prefetch(matching_rows, self._complete_names()) if rows is not None]
        return pa.concat_tables(tables) if tables else self.empty_table(columns)

    def empty_table(self, columns: list[str] | None) -> pa.Table:
        """A table without rows."""
        schema = SCHEMAS.get(self.name.partition("/")[0])
        return schema.empty_table().select(columns or schema.names) if schema else pa.table({})

    def read_part(self, name: str, columns: list[str] | None = None, encoded: Sequence[str] = ()) -> pa.Table:
        """The rows of one part; columns `encoded` are dictionaries, which takes half the time where values repeat."""
        return self._read_or_raise_torn(name, lambda source: filesystem.read_rows(source, columns, encoded))

    def part_footer(self, name: str) -> filesystem.PartFooter:
        """The footer of one part. Raises UserError when it is torn."""
        return self._read_or_raise_torn(name, filesystem.read_footer)

    def _read_or_raise_torn(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        result = read_or_none_if_torn(self.run, self._file(name), read)
        if result is None:
            path, manifest = self.run.at(self._file(name)), self.run.at(self.manifest_name)
            raise UserError(
                f"{path} is torn; delete {manifest} and it, and run its stage again, only this part is redone"
            )
        return result

    def stats(self) -> Stats:
        """The sum over all parts of the `stats` that `write_part` was given."""
        return sum_stats(footer.stats for _, footer in self.part_footers())


def sum_stats(stats: Iterable[Mapping[str, float]]) -> Stats:
    """The sum of numbers by name."""
    total: Stats = {}
    for numbers in stats:
        for key, value in numbers.items():
            total[key] = total.get(key, 0) + value
    return total


def read_or_none_if_torn(run: Run, name: str, read: Callable[[pa.NativeFile], T]) -> T | None:
    """The result of `read` for a part; None when the part is torn.

    A failing storage and a torn file raise the same errors, so `read` is tried again on the bytes of the whole file
    before it is called torn.
    """
    with run.storage_errors("read", name):
        source = run.fs.open_input_file(f"{run.root}/{name}")
    try:
        with source:
            return read(source)
    except filesystem.TORN:
        content = run.read_bytes(name)
    try:
        return read(pa.BufferReader(content))
    except filesystem.TORN:
        return None
