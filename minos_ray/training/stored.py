"""The tensors of a checkpoint on disk, one at a time."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from minos_ray.errors import UserError
from minos_ray.store.model_files import SINGLE, safetensors_files


class Stored:
    """Tensors by name, read from one or several safetensors files when they are asked for.

    As in transformers the files say what they hold; an index says only which files there are.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(path)

    def __enter__(self) -> "Stored":
        files = safetensors_files(str(self.folder)) or [self.folder / SINGLE]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"base.model: {self.folder} has no {file.name}; its weights must be whole and in safetensors files"
                )
        self.stack = ExitStack()
        self.opened = {file.name: self.open(file) for file in files}
        self.files = {tensor: name for name, file in self.opened.items() for tensor in file.keys()}  # noqa: SIM118
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()

    def open(self, file: Path) -> Any:
        """One file; UserError when it is none of safetensors."""
        try:
            return self.stack.enter_context(safe_open(file, "pt"))
        except SafetensorError as error:
            hint = "a Git LFS pointer, or cut off while it was copied?"
            raise UserError(f"base.model: {file} is no file of safetensors ({hint}): {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.opened[self.files[name]].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return tuple(self.opened[self.files[name]].get_slice(name).get_shape())

    def same(self, name: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are equal, so many rows of them read at a time."""
        if self.shape(name) != self.shape(other):
            return False
        one, two = (self.opened[self.files[each]].get_slice(each) for each in (name, other))
        starts = range(0, self.shape(name)[0], rows)
        return all(torch.equal(one[start : start + rows], two[start : start + rows]) for start in starts)
