"""Failed work: the deepest cause of an exception that came through Ray, in one line, and the full log in the run
directory, without keys."""

import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pkgutil import resolve_name

from minos_ray.errors import StorageFailed, UserError, WorkStopped
from minos_ray.store.run import Run

LONGEST = 400
# In the text of a traceback: the line after a frame, with the name of the exception and its message.
RAISED = re.compile(r"^[ \t]+\S.*\n(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Attributes in which Ray's exceptions keep their cause.
CAUSES = ("cause", "controller_failure", "health_check_failure", "_base_exc")
COLLATERAL = re.compile(r"connection|peer|socket|gloo|nccl", re.IGNORECASE)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 6
IN_ADDRESS = re.compile(r"(://)[^/\s:@]*:[^/\s@]+@")
LOOKS_SECRET = re.compile(r"(\bsk-|\bBearer +)[\w.-]{8,}")
# With more failures than this, and than this fraction of all, their common cause has to be dealt with first.
MAX_FAILED, MAX_FAILED_FRACTION = 3, 0.01


def cause(error: BaseException) -> str:
    """`ValueError: unit 5 is bad`, or how a process ended. At most `LONGEST` characters."""
    root = deepest(error)
    if isinstance(root, UserError | WorkStopped):
        line = first_line(str(root))
    elif isinstance(root, Remote):
        line = str(root)
    elif is_death(root):
        line = describe_death(root)
    else:
        line = f"{type(root).__name__}: {first_line(str(root))}".removesuffix(": ")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def deepest(error: BaseException) -> BaseException:
    """The exception at the bottom of the chain of causes, or the first whose message was written for users."""
    seen = {id(error)}
    while not is_for_users(error):
        below = inner(error)
        if below is None or id(below) in seen:
            break
        error = below
        seen.add(id(error))
    return error


class Remote(Exception):
    """An exception of another process of which only the text arrived."""


def is_for_users(error: BaseException) -> bool:
    """Whether its message was written for users. Ray's wrapper of such an exception has its class, but a traceback."""
    return isinstance(error, UserError | WorkStopped) and getattr(error, "cause", None) is None


def inner(error: BaseException) -> BaseException | None:
    """The cause of an exception, one link down."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return failures[first_to_fail(failures)]
    values = (getattr(error, name, None) for name in CAUSES)
    held = next((value for value in values if isinstance(value, BaseException)), None)
    if held is not None and type(held).__name__ != "UserCodeException":
        return held
    # Ray Data and Ray Tune pass on only the text of what happened elsewhere.
    return from_text(str(error)) if "ray::" in str(error) else error.__cause__


def from_text(traceback: str) -> BaseException | None:
    """The first exception in the text of a traceback, or the one that was written for users."""
    raised = [(match["name"], match["message"] or "") for match in RAISED.finditer(COLOURS.sub("", traceback))]
    for kind in (UserError, WorkStopped):
        for name, message in raised:
            with suppress(ImportError, AttributeError):
                if message and name.startswith("minos_ray.") and issubclass(resolve_name(name), kind):
                    return kind(message)
    return Remote(": ".join(filter(None, (raised[0][0].rpartition(".")[2], raised[0][1])))) if raised else None


def first_to_fail(failures: dict[int, BaseException]) -> int:
    """The rank whose failure made the others fail: a lost connection is the consequence of another rank's death."""
    causes = {rank: deepest(failure) for rank, failure in failures.items()}

    def order(rank: int) -> tuple[bool, bool, int]:
        is_consequence = COLLATERAL.search(str(causes[rank])) is not None and not is_death(causes[rank])
        return not isinstance(causes[rank], UserError), is_consequence, rank

    return min(causes, key=order)


def is_death(error: BaseException) -> bool:
    """Whether Ray reports the end of a process."""
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"RayActorError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"})


def describe_death(error: BaseException) -> str:
    """How a process of Ray ended, from the text of Ray's exception."""
    text = COLOURS.sub("", str(error)).strip()
    if "creation task" in text or "error raised in its" in text:
        return text.splitlines()[-1].strip()
    if type(error).__name__ == "OutOfMemoryError" or "running low on memory" in text:
        return "its process was ended by Ray, for its node ran low on memory"
    if "node" in text and re.search(r"node (has )?(died|was lost|is dead|failed)|node .*marked dead", text):
        return "its node was lost"
    pid, ip = (re.search(rf"{key}: ?(\S+)", text) for key in ("pid", "ip"))
    who = ", ".join(f"{key} {match[1]}" for key, match in (("process", pid), ("node", ip)) if match)
    return f"its process was killed, by a signal or by the kernel for want of memory{f' ({who})' if who else ''}"


def first_line(text: str) -> str:
    """The first line that is not blank."""
    return next((line.strip() for line in COLOURS.sub("", text).splitlines() if line.strip()), "")


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
    """Writes the full log of a failure into `logs/` of the run, or else into the folder for temporary files.

    Returns where it lies, and where Ray keeps the logs of its processes.
    """
    now, folder = time.gmtime(), ray_logs()
    elsewhere = f"; logs of Ray's processes: {folder} on each node" if folder else ""
    name = f"{stage}-{time.strftime('%Y%m%dT%H%M%SZ', now)}-{os.getpid()}.log"
    lines = [f"{stage} failed: {cause(error)}", time.strftime("%Y-%m-%d %H:%M:%S UTC", now)]
    lines += [f"logs of Ray's processes: {folder or 'no Ray'}", "", *traceback.format_exception(error)]
    content = without_secrets("\n".join(lines)).encode()
    if run is not None:
        try:
            run.write_bytes(f"logs/{name}", content)
            return f"full log: {run.at(f'logs/{name}')}{elsewhere}"
        except StorageFailed:  # the storage may be what failed
            pass
    path = Path(tempfile.mkdtemp(prefix="minos-")) / name
    path.write_bytes(content)
    return f"full log: {path}{elsewhere}"


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without colours, values of variables that are named like secrets, and strings that look like keys."""
    text = COLOURS.sub("", text)
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
