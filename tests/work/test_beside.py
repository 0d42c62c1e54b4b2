"""Calls in a process of their own: values, errors, what they print, and their end."""

import os
import time

import psutil
import pytest

from minos_ray.errors import UserError
from minos_ray.work.beside import beside


def add(a: int, b: int) -> tuple[int, int]:
    """The sum and the process; says more than it should."""
    os.write(1, b"not an answer")
    return a + b, os.getpid()


def mistake(key: str) -> None:
    raise UserError(f"{key} is wrong")


def fail() -> None:
    raise ValueError("broken")


def sleep() -> None:
    time.sleep(600)


def test_a_call_beside_runs_in_another_process() -> None:
    with beside(f"{__name__}:add", 1, 2) as value:
        total, process = value()
    assert total == 3 and process != os.getpid()


def test_errors_of_the_user_are_raised_as_such_and_others_with_what_was_printed() -> None:
    with beside(f"{__name__}:mistake", "a.b") as value, pytest.raises(UserError, match=r"^a\.b is wrong$"):
        value()
    with (
        beside(f"{__name__}:fail") as value,
        pytest.raises(RuntimeError, match=r"(?s)test_beside:fail.*ValueError: broken"),
    ):
        value()


def test_a_process_whose_value_nobody_waits_for_ends() -> None:
    before = set(psutil.Process().children())
    with beside(f"{__name__}:sleep"):
        (child,) = set(psutil.Process().children()) - before
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
