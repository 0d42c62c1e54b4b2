"""A call in a Python process of its own, which runs while this one does something else.

For what imports torch or transformers to learn a number or two: this process then waits for no import, and holds none.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.errors import UserError


@contextmanager
def beside(function: str, *arguments: Any) -> Generator[Callable[[], Any]]:
    """Begins a call of `package.module:function`; yields what waits for its value. A UserError of it is raised there.

    Arguments and value are pickled. RuntimeError with what it printed when the process fails otherwise.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import answer; answer()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )

    def value() -> Any:
        answer, printed = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{function} in a process of its own: {printed.decode()[-2000:]}")
        value = pickle.loads(answer)
        if isinstance(value, UserError):
            raise value
        return value

    try:
        assert process.stdin is not None
        with process.stdin as call:
            call.write(pickle.dumps((function, arguments)))
        process.stdin = None
        yield value
    finally:
        process.kill()
        process.wait()


def answer() -> None:
    """The other process: one call from standard input, its value or its UserError to standard output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    name, arguments = pickle.load(sys.stdin.buffer)
    try:
        value = resolve(name)(*arguments)
    except UserError as error:
        value = error
    output.write(pickle.dumps(value))
    output.flush()
    os._exit(0)  # Python would clear away the libraries object by object
