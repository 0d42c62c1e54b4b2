"""Calls in a process of their own: values, errors, what they print, and their end."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from minos_ray.errors import StorageFailed, UserError
from minos_ray.observe.failure import cause
from minos_ray.units import beside as module
from minos_ray.units.beside import beside


class Picky(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def add(a: int, b: int) -> tuple[int, int]:
    """The sum and the process; says more than it should."""
    os.write(1, b"not an answer")
    return a + b, os.getpid()


def mistake(key: str) -> None:
    raise UserError(f"{key} is wrong")


def fail(kind: str) -> Any:
    if kind == "chained":
        try:
            return {}["question"]
        except KeyError as error:
            raise ValueError("no prompt") from error
    if kind == "picky":
        raise Picky("a", "b")
    if kind == "storage":
        raise StorageFailed("no answer")
    os.write(2, b"\xff dies")
    os._exit(3)


def sleep() -> None:
    time.sleep(600)


def test_a_call_beside_runs_in_another_process() -> None:
    with beside(f"{__name__}:add", 1, 2) as value:
        total, process = value()
    assert total == 3 and process != os.getpid()


def raised(kind: str) -> Exception:
    """What a call of `fail` beside raises."""
    with beside(f"{__name__}:fail", kind) as value, pytest.raises(Exception) as caught:
        value()
    return caught.value


def test_what_a_call_raises_is_raised_here_with_its_cause_or_else_its_text() -> None:
    with beside(f"{__name__}:mistake", "a.b") as value, pytest.raises(UserError, match=r"^a\.b is wrong$"):
        value()
    error = raised("chained")
    assert isinstance(error, ValueError) and cause(error) == "KeyError: 'question'"
    assert "in fail" in "".join(error.__notes__), "the frames of the other process"
    assert cause(raised("picky")) == "Picky: ab"
    assert type(error := raised("storage")) is StorageFailed and not hasattr(error, "__notes__")


def test_a_process_that_dies_leaves_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised("dies")
    assert isinstance(error, RuntimeError) and "test_beside:fail" in str(error) and "\ufffd dies" in str(error)
    monkeypatch.setattr(module, "COMMAND", "raise SystemExit('no room')")  # before it reads what is more than a pipe
    with beside(f"{__name__}:add", "a" * 2**20, "b") as value, pytest.raises(RuntimeError, match="no room"):
        value()


def test_modules_are_found_beside_whatever_their_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "of_a_user.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    (removed := tmp_path / "removed").mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    monkeypatch.syspath_prepend("")
    with beside("of_a_user:double", 2) as value:
        assert value() == 4


def test_a_process_whose_value_nobody_waits_for_ends() -> None:
    before = set(psutil.Process().children())
    with beside(f"{__name__}:sleep"):
        (child,) = set(psutil.Process().children()) - before
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
