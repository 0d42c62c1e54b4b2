"""The run directory: artefacts made of Parquet parts, complete only when `manifest.json` is there.

Paths are local or anything pyarrow opens (`s3://`, `gs://`). No file is ever seen half written.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import ValidationError

from minos_ray import __version__
from minos_ray.errors import UserError
from minos_ray.store import filesystem, parquet
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.filesystem import open_path
from minos_ray.store.manifest import Manifest, fingerprint
from minos_ray.store.prefetch import ahead

__all__ = ["Artefact", "Manifest", "Run", "fingerprint", "open_path"]

Found = TypeVar("Found")


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

    def said(self, done: str, name: str, size: int | None = None) -> AbstractContextManager[None]:
        """Turns errors of the storage into WorkStopped with a line that names the file; see `storage.said`."""
        return filesystem.said(done, self.at(name), size)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        with self.said("looked for", name):
            return self.fs.get_file_info(f"{self.root}/{name}").type != pafs.FileType.NotFound

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file: aside, then renamed; in an object store at once, which is whole or not there."""
        with self.said("written", name, len(content)):
            filesystem.put(self.fs, f"{self.root}/{name}", content)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        with self.said("read", name), self.fs.open_input_stream(f"{self.root}/{name}") as stream:
            return stream.read()

    def upload(self, folder: str, name: str) -> None:
        """Copies the files of a local folder into one of the run."""
        with self.said("written", name):
            filesystem.copy_folder(folder, f"{self.root}/{name}", self.fs)

    def download(self, name: str, folder: str) -> None:
        """Copies the files of a folder of the run into a local one that is there."""
        with self.said("read", name):
            pafs.copy_files(f"{self.root}/{name}", folder, self.fs, pafs.LocalFileSystem())

    def delete(self, name: str) -> None:
        """Removes a file or folder that may be there, and may be removed by another process meanwhile."""
        with self.said("deleted", name), suppress(FileNotFoundError):
            info = self.fs.get_file_info(f"{self.root}/{name}")
            if info.type == pafs.FileType.Directory:
                self.fs.delete_dir(info.path)
            elif info.type == pafs.FileType.File:
                self.fs.delete_file(info.path)

    def _listed(self, name: str, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(f"{self.root}/{name}".rstrip("/"), allow_not_found=True, recursive=recursive)
        with self.said("listed", name):
            return self.fs.get_file_info(selector)

    def files(self, name: str) -> list[str]:
        """Sorted base names of the files directly in a folder."""
        return sorted(i.base_name for i in self._listed(name) if i.type == pafs.FileType.File)

    def folders(self, name: str) -> list[str]:
        """Sorted base names of the folders directly in a folder."""
        return sorted(i.base_name for i in self._listed(name) if i.type == pafs.FileType.Directory)

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path from there."""
        files = [i for i in self._listed(name, recursive=True) if i.type == pafs.FileType.File]
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
        """The manifest, or None while the artefact is not complete (one torn or of another artefact is none)."""
        try:
            found = Manifest.model_validate_json(self.run.read_bytes(self.manifest_name))
        except (FileNotFoundError, ValidationError):
            return None
        # The last names alone: a model is also read from where its folder was copied to.
        return found if found.artefact.rpartition("/")[2] == self.name.rpartition("/")[2] else None

    def begun(self) -> str | None:
        """The fingerprint that the present parts belong to."""
        try:
            return str(json.loads(self.run.read_bytes(self.begun_name))["fingerprint"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
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
            # In this order: a kill in the middle leaves neither a manifest nor a beginning without all of its parts.
            for name in (self.manifest_name, self.begun_name, self.name):
                self.run.delete(name)
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
            parts=None if self.is_file else len(self._part_files()),
        )
        self.run.write_bytes(self.manifest_name, manifest.model_dump_json(indent=1).encode())
        self._clear_left()
        return manifest

    def _clear_left(self) -> None:
        """Removes what killed writers left; whoever still writes here was given up and is not waited for."""
        if filesystem.atomic(self.run.fs):
            return
        folder, _, start = self.begun_name.removesuffix("begun.json").rpartition("/")
        for file in self.run.files(folder):
            if file.endswith(filesystem.ASIDE) and file.startswith(start):
                self.run.delete(f"{folder}/{file}".lstrip("/"))

    def write_part(
        self, name: str, rows: pa.Table, stats: dict[str, float] | None = None, units: Sequence[str] = ()
    ) -> None:
        """Writes `part-NAME.parquet`; the same name overwrites. `stats` travel inside the part and are summed later.

        So do the ids of the `units` of work that the rows came from.
        """
        self.run.write_bytes(f"{self.name}/part-{name}.parquet", parquet.encoded(rows, stats or {}, units))

    def part_names(self, start: str = "") -> list[str]:
        """Names (that begin with `start`) of whole parts; torn ones are renamed to `.torn` and so asked for again."""
        return [name for name, _ in self.noted(start)]

    def noted(self, start: str = "") -> Iterator[tuple[str, parquet.Notes]]:
        """`part_names`, and what each part says of itself."""
        for file, notes in ahead(self._notes, self._part_files(start)):
            if notes is not None:
                yield parquet.named(file), notes

    def _part_files(self, start: str = "") -> list[str]:
        return [f for f in self.run.files(self.name) if f.startswith(f"part-{start}") and f.endswith(".parquet")]

    def _notes(self, file: str) -> parquet.Notes | None:
        notes = whole(self.run, f"{self.name}/{file}", parquet.notes)
        if notes is None:
            path = f"{self.run.root}/{self.name}/{file}"
            with self.run.said("set aside", f"{self.name}/{file}"):
                self.run.fs.move(path, f"{path}.torn")
        return notes

    def read(self, columns: list[str] | None = None, partial: bool = False) -> pa.Table:
        """All rows, parts in order of their names. Raises UserError unless complete or `partial`."""
        files = [f"part-{name}.parquet" for name in self.part_names()] if partial else self._complete_files()
        tables = [rows for _, rows in ahead(lambda file: self._read_part(file, columns), files)]
        return pa.concat_tables(tables) if tables else self.nothing(columns)

    def parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The parts of an artefact, one at a time. Raises UserError unless it is complete."""
        return (rows for _, rows in self.named_parts(columns))

    def named_parts(self, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """`parts` with their names."""
        for file, rows in ahead(lambda file: self._read_part(file, columns), self._complete_files()):
            yield parquet.named(file), rows

    def sizes_of_parts(self) -> Iterator[tuple[str, int]]:
        """Names of the parts and how many rows they have, without reading them. Raises UserError unless complete."""
        for name, notes in ahead(self.part_notes, map(parquet.named, self._complete_files())):
            yield name, notes.rows

    def _complete_files(self) -> list[str]:
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.path} is not complete; run the stage that makes it first")
        files = self._part_files()
        if manifest.parts not in (None, len(files)):
            raise UserError(
                f"{self.path} has {len(files)} parts where its manifest counts {manifest.parts}; delete "
                f"{self.run.at(self.manifest_name)} and run its stage again, only what is missing is done"
            )
        return files

    def read_where(self, column: str, values: Iterable[str] | None, columns: list[str] | None = None) -> pa.Table:
        """The rows whose `column` is one of `values` (None: all); of parts without one only that column is read.

        Raises UserError unless the artefact is complete.
        """
        if values is None:
            return self.read(columns)
        wanted = pa.array(list(values), pa.string())

        def chosen(file: str) -> pa.Table | None:
            mask = pc.is_in(self._read_part(file, [column])[column], value_set=wanted)
            return self._read_part(file, columns).filter(mask) if pc.any(mask).as_py() else None

        found = [rows for _, rows in ahead(chosen, self._complete_files()) if rows is not None]
        return pa.concat_tables(found) if found else self.nothing(columns)

    def nothing(self, columns: list[str] | None) -> pa.Table:
        """A table without rows."""
        schema = SCHEMAS.get(self.name.partition("/")[0])
        return schema.empty_table().select(columns or schema.names) if schema else pa.table({})

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of one part."""
        return self._read_part(f"part-{name}.parquet", columns)

    def part_notes(self, name: str) -> parquet.Notes:
        """The units of one part, the number of its rows and its stats, without reading them."""
        file = f"part-{name}.parquet"
        return self._sure(file, whole(self.run, f"{self.name}/{file}", parquet.notes))

    def _read_part(self, file: str, columns: list[str] | None) -> pa.Table:
        return self._sure(file, whole(self.run, f"{self.name}/{file}", lambda source: parquet.rows(source, columns)))

    def _sure(self, file: str, found: Found | None) -> Found:
        """What was found in a part; UserError says what to do when it was torn."""
        if found is None:
            path, manifest = self.run.at(f"{self.name}/{file}"), self.run.at(self.manifest_name)
            raise UserError(
                f"{path} is torn; delete {manifest} and it, and run its stage again, only this part is redone"
            )
        return found

    def stats(self) -> dict[str, float]:
        """Sum over the parts of what `write_part` was given as stats."""
        total: dict[str, float] = {}
        for _, notes in self.noted():
            for key, value in notes.stats.items():
                total[key] = total.get(key, 0) + value
        return total


def whole(run: Run, name: str, read: Callable[[pa.NativeFile], Found]) -> Found | None:
    """What `read` gets from a part; None when it is torn.

    Of that one is sure only with all bytes at hand, since a storage that fails and a torn file raise the same errors.
    """
    with run.said("read", name):
        source = run.fs.open_input_file(f"{run.root}/{name}")
    try:
        with source:
            return read(source)
    except parquet.TORN:
        content = run.read_bytes(name)
    try:
        return read(pa.BufferReader(content))
    except parquet.TORN:
        return None
