"""Failed work: its cause in one line, and the full log in the run directory, without keys."""

import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minos_ray.errors import StorageFailed, UserError, WorkStopped
from minos_ray.observe.cause import cause, deepest, is_for_users
from minos_ray.store.run import Run

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 6
IN_ADDRESS = re.compile(r"(://)[^/\s:@]*:[^/\s@]+@")
LOOKS_SECRET = re.compile(r"(\bsk-|\bBearer +)[\w.-]{8,}")
# With more failures than this, and than this fraction of all, their common cause has to be dealt with first.
MAX_FAILED, MAX_FAILED_FRACTION = 3, 0.01


def too_many_failed(failed: int, total: int) -> bool:
    """Whether enough of `total` units or requests failed to stop the work."""
    return failed > max(MAX_FAILED, MAX_FAILED_FRACTION * total)


@contextmanager
def reported(run: Run | None, stage: str) -> Generator[None]:
    """Raises what fails in the block as WorkStopped: the cause in one line, and a note of where the full log lies.

    A UserError that was raised in a worker is raised as UserError.
    """
    try:
        yield
    except Exception as error:
        root = deepest(error)
        if isinstance(root, UserError):
            if root is error:
                raise
            raise UserError(str(root)) from error
        if not (isinstance(error, WorkStopped) and is_for_users(error)):
            raise as_work_stopped(run, stage, error) from error
        if not error.tells_all and not getattr(error, "__notes__", None):
            error.add_note(write_log(run, stage, error))
        raise


def as_work_stopped(run: Run | None, stage: str, error: Exception) -> WorkStopped:
    """The cause in one line, with a note of where the full log lies."""
    stopped = WorkStopped(without_secrets(f"{stage}: {cause(error)}"))
    stopped.add_note(write_log(run, stage, error))
    return stopped


def write_log(run: Run | None, stage: str, error: BaseException) -> str:
    """Writes the full log of a failure; returns where it lies, and where Ray keeps the logs of its processes."""
    line = f"full log: {write_traceback(run, stage, error)}"
    folder = ray_logs()
    return f"{line}; logs of Ray's processes: {folder} on each node" if folder else line


def write_traceback(run: Run | None, stage: str, error: BaseException) -> str:
    """Writes the traceback into `logs/` of the run, or else into the folder for temporary files. Returns its path."""
    now = time.gmtime()
    name = f"{stage}-{time.strftime('%Y%m%dT%H%M%SZ', now)}-{os.getpid()}.log"
    lines = [f"{stage} failed: {cause(error)}", time.strftime("%Y-%m-%d %H:%M:%S UTC", now)]
    lines += [f"logs of Ray's processes: {ray_logs() or 'no Ray'}", "", *traceback.format_exception(error)]
    content = without_secrets("\n".join(lines)).encode()
    if run is not None:
        try:
            run.write_bytes(f"logs/{name}", content)
            return run.at(f"logs/{name}")
        except StorageFailed:  # the storage may be what failed
            pass
    path = Path(tempfile.mkdtemp(prefix="minos-")) / name
    path.write_bytes(content)
    return str(path)


def without_secrets(text: str) -> str:
    """The text without the keys of this process, and without terminal colours."""
    return redacted(text, os.environ)


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """The text without colours, values of variables that are named like secrets, and strings that look like keys."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for name, value in sorted(environment.items(), key=lambda item: -len(item[1])):  # a value may begin with another
        if SECRET.search(name) and len(value.strip()) >= SHORTEST_SECRET:
            text = text.replace(value.strip(), f"[${name}]")
    return LOOKS_SECRET.sub(r"\1[...]", IN_ADDRESS.sub(r"\1[...]@", text))


def ray_logs() -> str | None:
    """The folder in which each node of this Ray keeps the logs of its processes; None without a Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    node = ray._private.worker._global_node  # no public name for it in this release
    return node.get_logs_dir_path() if node else None
