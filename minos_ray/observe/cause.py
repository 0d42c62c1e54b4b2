"""The deepest cause of an exception that came through Ray, in one line."""

import re
from contextlib import suppress
from pkgutil import resolve_name

from minos_ray.errors import UserError, WorkStopped

LONGEST = 400
# In the text of a traceback: the line after a frame, with the name of the exception and its message.
RAISED = re.compile(r"^[ \t]+\S.*\n(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Attributes in which Ray's exceptions keep their cause.
CAUSES = ("cause", "controller_failure", "health_check_failure", "_base_exc")
COLLATERAL = re.compile(r"connection|peer|socket|gloo|nccl", re.IGNORECASE)


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
        if message := next((message for name, message in raised if issubclass(class_of(name), kind)), None):
            return kind(message)
    return Remote(": ".join(filter(None, (raised[0][0].rpartition(".")[2], raised[0][1])))) if raised else None


def class_of(name: str) -> type:
    """The class of an exception of this package, and `Remote` for any other."""
    if name.startswith("minos_ray."):
        with suppress(ImportError, AttributeError):
            return resolve_name(name)
    return Remote


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
