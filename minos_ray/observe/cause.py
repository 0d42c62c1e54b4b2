"""The deepest cause of an exception that came through Ray, in one line."""

import re
from contextlib import suppress
from pkgutil import resolve_name

from minos_ray.errors import UserError, WorkStopped

LONGEST = 400
# In the text of a traceback: the line after a frame that names the exception and what it says.
RAISED = re.compile(r"^[ \t]+\S.*\n(?P<name>[A-Za-z_][\w.]*)(?:: (?P<said>.*))?$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Where Ray's exceptions keep what they were raised for.
HOLDERS = ("cause", "controller_failure", "health_check_failure", "_base_exc")
COLLATERAL = re.compile(r"connection|peer|socket|gloo|nccl", re.IGNORECASE)


def cause(error: BaseException) -> str:
    """`ValueError: unit 5 is bad`; a killed process is said to be killed."""
    origin = deepest(error)
    if isinstance(origin, UserError | WorkStopped):
        line = first_line(str(origin))
    elif isinstance(origin, Remote):
        line = str(origin)
    elif died(origin):
        line = death(origin)
    else:
        line = f"{type(origin).__name__}: {first_line(str(origin))}".removesuffix(": ")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def deepest(error: BaseException) -> BaseException:
    """The exception at the bottom of the chain; a line that was written for users ends it."""
    seen = {id(error)}
    while not written(error):
        below = inner(error)
        if below is None or id(below) in seen:
            break
        error = below
        seen.add(id(error))
    return error


class Remote(Exception):
    """An exception of another process that came here as text alone."""


def written(error: BaseException) -> bool:
    """Whether its text was written for users. Ray's wrapper of such an exception, a traceback, is of its class too."""
    return isinstance(error, UserError | WorkStopped) and getattr(error, "cause", None) is None


def inner(error: BaseException) -> BaseException | None:
    """What an exception was raised for."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return failures[guilty(failures)]
    held = [value for name in HOLDERS if isinstance(value := getattr(error, name, None), BaseException)]
    if held and type(held[0]).__name__ != "UserCodeException":
        return held[0]
    # Ray Data and Ray Tune hand on no more than the text of what happened elsewhere.
    return from_text(str(error)) if "ray::" in str(error) else error.__cause__


def from_text(traceback: str) -> BaseException | None:
    """The first exception in a traceback, or the one that was written for users."""
    raised = [(match["name"], match["said"] or "") for match in RAISED.finditer(COLOURS.sub("", traceback))]
    for kind in (UserError, WorkStopped):
        if message := next((message for name, message in raised if issubclass(own(name), kind)), None):
            return kind(message)
    return Remote(": ".join(filter(None, (raised[0][0].rpartition(".")[2], raised[0][1])))) if raised else None


def own(name: str) -> type:
    """The class of an exception of this package; of any other, `Remote`."""
    if name.startswith("minos_ray."):
        with suppress(ImportError, AttributeError):
            return resolve_name(name)
    return Remote


def guilty(failures: dict[int, BaseException]) -> int:
    """The rank whose failure brought the others down: a lost connection tells of someone else's death."""
    origins = {rank: deepest(failure) for rank, failure in failures.items()}

    def innocence(rank: int) -> tuple[bool, bool, int]:
        collateral = COLLATERAL.search(str(origins[rank])) is not None and not died(origins[rank])
        return not isinstance(origins[rank], UserError), collateral, rank

    return min(origins, key=innocence)


def died(error: BaseException) -> bool:
    """Whether Ray says that a process is gone."""
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"RayActorError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"})


def death(error: BaseException) -> str:
    """How a process of Ray came to its end."""
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
    """The first line that says something."""
    return next((line.strip() for line in COLOURS.sub("", text).splitlines() if line.strip()), "")
