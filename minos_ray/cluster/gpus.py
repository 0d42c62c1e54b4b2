"""What the GPUs of a machine can hold, asked of nvidia-smi: it answers without a CUDA context."""

import shutil
import subprocess
from pathlib import Path

# Less than a node has to answer the preflight (`preflight.nodes.WITHIN_S`).
SMI_S = 10.0


def memory_gb() -> float | None:
    """GB of the smallest GPU of this machine, None where there is none to ask for or its driver does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S)
    except subprocess.TimeoutExpired:
        return None
    sizes = [int(line) for line in said.stdout.split() if line.isdigit()]
    return min(sizes) * 2**20 / 1e9 if sizes and not said.returncode else None


def count() -> int:
    """GPUs of this machine, as the driver's device files tell."""
    return sum(file.name.removeprefix("nvidia").isdigit() for file in Path("/dev").glob("nvidia*"))
