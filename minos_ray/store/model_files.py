"""Finding a model named in the config: a directory, a hub id, `package:FOLDER` or `run:models/NAME`; and digests of
files.

Digests depend on bytes alone, not on times or places, so that a copy on another machine is the same. None where nothing
can be read (no file, a hub, a storage that does not answer): then nothing counts as changed.
"""

import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.fs as pafs

from minos_ray.config.schema import Model
from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.run import Run, open_path

if TYPE_CHECKING:
    from huggingface_hub.utils import TensorInfo

# transformers turns the tying of weights off for the whole process while it loads a model. Two threads that load at the
# same time would leave it off for good (findings/loading-in-two-threads.sh).
LOADING = threading.RLock()
# So long a process waits at most for another that fetches the same model.
DOWNLOAD_S = 3600
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
AnyModel = TypeVar("AnyModel", bound=Model)
CHUNK = 1 << 20
# Of a larger file so many pieces are read, from its beginning to its end: training changes all weights.
WHOLE, PIECES, PIECE = 64 << 20, 256, 4096
# Of a model: its weights, its config, its tokenizer; what else lies there is not read.
OF_A_MODEL = (
    *("*.safetensors", "pytorch_model*.bin", "config.json", "generation_config.json", "tokenizer*", "*.model"),
    *("vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.py"),
    "adapter_config.json",
)


def locate(model: Model, run: Run) -> str:
    """A local directory that holds the model, its weights and its tokenizer; UserError when there is none.

    A model of a remote run and a hub model are copied to a cache on this machine first.
    """
    kind, sign, name = model.model.partition(":")
    if sign and kind == "package":
        return require_complete(Path(str(files("minos_ray").joinpath(name))), model.model)
    if sign and kind == "run":
        return require_complete(_from_run(name, run), model.model)
    if is_hub_id(model.model):
        return locate_hub(model)
    return require_complete(Path(model.model).expanduser().absolute(), model.model)


def locate_hub(model: Model) -> str:
    """The copy of a hub model in this machine's cache, fetched when it is not there."""
    return require_complete(_from_hub(model), model.model)


def locate_adapter(model: Model) -> str:
    """A local directory with the model's adapter; UserError when there is none, or none that vLLM adds."""
    name = str(model.adapter)
    path = _from_hub(Model(model=name)) if is_hub_id(name) else Path(name).expanduser().absolute()
    if not (path / ADAPTER).is_file() or not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"adapter '{name}': {path} has no {ADAPTER} or no {ADAPTER_WEIGHTS} beside it")
    config = adapter_config(str(path))
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise UserError(f"adapter '{name}': {path / ADAPTER} is no LoRA of peft")
    without = {"bias": "none", "modules_to_save": None, "use_dora": False}
    if others := [key for key, value in without.items() if config.get(key, value) not in (value, [])]:
        raise UserError(f"adapter '{name}': vLLM has no {', '.join(others)}; merge it into its model with peft")
    return str(path)


def adapter_config(path: str) -> dict[str, Any]:
    """The settings of an adapter in a directory; UserError when they cannot be read."""
    try:
        return json.loads((Path(path) / ADAPTER).read_bytes())
    except ValueError as error:
        raise UserError(f"{path}/{ADAPTER} is no JSON: {error}") from error


def absolute(model: AnyModel) -> AnyModel:
    """A directory by its absolute path, for processes that work elsewhere; other names as they are."""
    directory = Path(model.model).expanduser()
    return model.model_copy(update={"model": str(directory.absolute())}) if directory.is_dir() else model


def public_name(model: Model, run: Run) -> str:
    """How others find a model: a hub id or a model of a remote run by its name, else the directory."""
    kind, _, name = model.model.partition(":")
    if kind == "run" and not run.local:
        return run.at(name)
    return model.model if is_hub_id(model.model) else locate(model, run)


def is_hub_id(name: str) -> bool:
    """Whether a name is looked up on the model hub: it has the form of an id and is no directory here."""
    return not Path(name).expanduser().is_dir() and HUB_ID.fullmatch(name) is not None


def require_complete(path: Path, name: str) -> str:
    """`path` as text when it is a complete model directory; UserError says what is missing."""
    if not path.is_dir():
        raise UserError(f"model '{name}': there is no directory {path}")
    if (path / ADAPTER).is_file():
        raise UserError(
            f"model '{name}': {path} holds an adapter ({ADAPTER}), which would or would not be added to the weights; "
            f"merge it into its model with peft (merge_and_unload) and save that, or take {ADAPTER} away"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"model '{name}': {path} has no config.json")
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        if any(path.glob("*.gguf")):
            raise UserError(
                f"model '{name}': {path} has its weights as GGUF only; make them safetensors with transformers first: "
                "from_pretrained(FOLDER, gguf_file=NAME), then save_pretrained"
            )
        raise UserError(f"model '{name}': {path} has no weights ({' or '.join(WEIGHTS)})")
    if not any((path / file).is_file() for file in TOKENIZERS):
        raise UserError(f"model '{name}': {path} has no tokenizer (tokenizer.json); save it beside the model")
    return str(path)


def safetensors_files(folder: str) -> list[Path]:
    """The files that transformers takes a model's weights from: the single one before those of an index; others may lie
    beside them. None where there is neither; UserError when the index cannot be read."""
    single, index = Path(folder) / SINGLE, Path(folder) / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    try:
        return [Path(folder) / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of safetensors files: {error}") from error


def tensors_of(file: Path) -> "list[TensorInfo]":
    """Types and shapes of the tensors in a safetensors file; UserError unless it is as long as its header says."""
    from huggingface_hub import parse_local_safetensors_file_metadata
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):  # compares the length, which the hub's reader does not
            tensors = [*parse_local_safetensors_file_metadata(file).tensors.values()]
    except (OSError, SafetensorError):
        tensors = []
    if not tensors:
        raise UserError(f"{file} is no safetensors file (a Git LFS pointer, or cut off?)")
    return tensors


def tensors_of_model(model: Model, run: Run) -> "list[TensorInfo]":
    """Those of a complete model that lies on this machine as safetensors; none of any other."""
    if is_hub_id(model.model) or model.model.startswith("run:"):
        return []
    try:
        folder = locate(model, run)
        return [tensor for file in weight_files(folder) for tensor in tensors_of(file)]
    except UserError:  # `graph.models` names what is wrong
        return []


def weight_files(folder: str) -> list[Path]:
    """The safetensors files of a model: those that are loaded, else all that lie there. UserError when their index
    cannot be read."""
    return safetensors_files(folder) or sorted(Path(folder).glob("*.safetensors"))


def parameters(model: Model, run: Run) -> int | None:
    """Parameters of a model that lies on this machine as safetensors; else None."""
    return sum(tensor.parameter_count for tensor in tensors_of_model(model, run)) or None


def engine_bytes(model: Model, run: Run, dtype: str) -> int:
    """Bytes of the weights in vLLM: floats of 32 bits are halved unless they are wanted, others stay as they are.

    0 where they are not known.
    """
    if dtype == "float32":
        return 4 * (parameters(model, run) or 0)
    tensors = tensors_of_model(model, run)
    return sum(
        2 * tensor.parameter_count if tensor.dtype == "F32" else tensor.data_offsets[1] - tensor.data_offsets[0]
        for tensor in tensors
    )


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer in {path} does not load: {_line(error)}") from error


def _from_run(name: str, run: Run) -> Path:
    artefact = run.artefact(name)
    manifest = artefact.manifest()
    if manifest is None:
        raise UserError(f"model 'run:{name}': {artefact.path} is not complete; run the stage that makes it first")
    if run.local:
        return Path(artefact.path)
    key = blake2b(f"{artefact.path} {manifest.fingerprint} {manifest.created}".encode(), digest_size=8).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = caches / "minos_ray" / "models" / key
    if target.is_dir():
        return target
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    # One process of this machine copies it, the others wait for its lock.
    with FileLock(f"{target}.lock", timeout=DOWNLOAD_S):
        if not target.is_dir():
            aside = target.with_name(f"{target.name}.tmp")
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir()
            run.download(name, str(aside))
            aside.rename(target)
    return target


def _from_hub(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(model.model, revision=model.revision, ignore_patterns=["*.pth", "*.gguf"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"model '{model.model}' is neither a directory nor to be had from the model hub: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
