"""The exceptions that end a command with one clear line and no traceback."""

from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """One clear line for the user (which key, which value, what would do); the command exits with code 2."""


class WorkStopped(RuntimeError):
    """The work stopped for a known reason (a money limit, a dead endpoint); exit code 1, a rerun resumes."""

    tells_all = False  # True where a full log would say no more than the line


class StorageFailed(WorkStopped):
    """The storage of a run gave an error, or no answer for too long."""


def errors_of(check: Callable[..., object], *arguments: Any) -> list[str]:
    """The line of the UserError or StorageFailed that a check raises; none when it passes."""
    try:
        check(*arguments)
    except (UserError, StorageFailed) as error:
        return [str(error)]
    return []
