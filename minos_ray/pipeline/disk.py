"""Whether the run directory has room for what will be written there."""

from collections.abc import Iterator

from minos_ray.cluster.probe import free
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.graph.state import State
from minos_ray.pipeline.compare import GB
from minos_ray.pipeline.estimate import run_bytes
from minos_ray.store.run import Run


def wanted(config: Config, run: Run, states: list[State]) -> dict[str, float]:
    """Bytes by what they are, less what of them lies there already: it is gone on with, or deleted first."""
    left = [state for state in states if state.state != "done"]
    made = sum(state.artefact.startswith("models/") and state.stage != "pretrain" for state in left)
    sizes = run_bytes(config, run, {state.stage for state in left}, made)
    there = {what: sizes[what] - sum(written(run, name) for name in folders(what, left)) for what in sizes}
    return {what: size for what, size in there.items() if size > 0}


def folders(what: str, left: list[State]) -> list[str]:
    """Where in the run it lies, as far as it is written."""
    begun = [state.artefact for state in left if state.stage != "pretrain"]
    found = {
        "candidates": [name for name in begun if name == "candidates"],
        "models": [name for name in begun if name.startswith("models/")],
        "checkpoints": ["checkpoints"],
    }
    return found[what]


def written(run: Run, name: str) -> int:
    """Bytes of a folder of the run."""
    return sum(run.sizes(name).values())


def stated(config: Config, run: Run, states: list[State]) -> Iterator[str]:
    """One line, when something is to be written whose size is known."""
    if sizes := wanted(config, run, states):
        yield f"run directory: about {told(sizes)} to be written"


def refuse(config: Config, run: Run, states: list[State]) -> None:
    """UserError when a local (or mounted) run directory has less room than is needed."""
    sizes = wanted(config, run, states)
    if not run.local or not sizes:
        return
    if (has := free(run.root)) < sum(sizes.values()):
        raise UserError(f"run = '{run.path}' has {has / GB:.2f} GB free, about {told(sizes)} will be written there")


def told(sizes: dict[str, float]) -> str:
    """`12.30 GB (models 100 MB, checkpoints 12.20 GB)`."""
    parts = ", ".join(f"{what} {amount(size)}" for what, size in sizes.items())
    return f"{amount(sum(sizes.values()))} ({parts})"


def amount(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / 1e6:.0f} MB"
