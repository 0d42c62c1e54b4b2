"""Digests of files that a config or an import names: other content under the same name is another input.

They depend on bytes alone, not on times or places, so that a copy on another machine is the same. None where nothing
can be read (no file, a hub, a storage that does not answer): then nothing counts as changed.
"""

import functools
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pyarrow.fs as pafs

from minos_ray.config.schema import Model
from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.model_files import is_hub_id
from minos_ray.store.run import open_path

CHUNK = 1 << 20
# Of a larger file so many pieces are read, from its beginning to its end: training changes all weights.
WHOLE, PIECES, PIECE = 64 << 20, 256, 4096
# Of a model: its weights, its config, its tokenizer; what else lies there is not read.
OF_A_MODEL = (
    *("*.safetensors", "pytorch_model*.bin", "config.json", "generation_config.json", "tokenizer*", "*.model"),
    *("vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.py"),
    "adapter_config.json",
)


def of_path(path: str) -> str | None:
    """Digest of the bytes of a file, or of the files in a folder and their names there."""
    if path.startswith("hf://"):
        return None
    try:
        fs, root = open_path(path)
        info = fs.get_file_info(root)
        if info.type == pafs.FileType.Directory:
            inside = fs.get_file_info(pafs.FileSelector(root, recursive=True))
            files = [i for i in inside if i.type == pafs.FileType.File and "/." not in i.path.removeprefix(root)]
        else:
            files = [info] if info.type == pafs.FileType.File else []
        digests = [(i.path.removeprefix(root), of_file(path, i.path, i.size, i.mtime_ns)) for i in files]
    except (UserError, StorageFailed, OSError):
        return None
    return together(sorted(digests)) if digests else None


def of_model(model: Model) -> str | None:
    """Digest of a model in a directory here; what a run makes and what a hub or the package holds is known by name."""
    folder = Path(model.model).expanduser()
    if is_hub_id(model.model) or model.model.startswith(("run:", "package:")) or not folder.is_dir():
        return None
    files = sorted({file for pattern in OF_A_MODEL for file in folder.glob(pattern) if file.is_file()})
    try:
        stats = [(file, file.stat()) for file in files]
        digests = [
            (file.name, of_file(str(folder), str(file.absolute()), stat.st_size, stat.st_mtime_ns, WHOLE))
            for file, stat in stats
        ]
    except OSError:
        return None
    return together(digests) if digests else None


@functools.lru_cache(maxsize=1024)
def of_file(within: str, path: str, size: int, changed_ns: int | None, sampled_above: int | None = None) -> str:
    """Digest of a file on the storage of `within`; of one above so many bytes its size and pieces of it.

    Read once in a process while its size and time are the same.
    """
    fs, _ = open_path(within)
    digest = blake2b(str(size).encode(), digest_size=16)
    if sampled_above and size > sampled_above:
        for piece in pieces(fs, path, size):
            digest.update(piece)
        return digest.hexdigest()
    with fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def pieces(fs: pafs.FileSystem, path: str, size: int) -> Iterator[bytes]:
    """`PIECES` pieces of a file, evenly from its beginning to its end; the first is a header of safetensors."""
    with fs.open_input_file(path) as file:
        yield file.read_at(WHOLE >> 6, 0)
        for number in range(PIECES):
            yield file.read_at(PIECE, (size - PIECE) * number // (PIECES - 1))


def together(digests: list[tuple[str, str]]) -> str:
    """One digest of several, and of their names."""
    return blake2b(repr(digests).encode(), digest_size=8).hexdigest()
