"""A call in a Python process of its own, which runs while this one does something else.

For what imports torch or transformers to learn a number or two: this process then waits for no import, and holds none.
"""

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.observe.failure import Remote, cause, deepest, is_for_users

# `sys.path` comes with the call: in PYTHONPATH a folder may have no colon in its name.
COMMAND = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import minos_ray.units.beside as b; b.answer()"
)


@contextmanager
def beside(function: str, *arguments: Any) -> Generator[Callable[[], Any]]:
    """Begins a call of `package.module:function`; yields what waits for its value. What it raises is raised there.

    Arguments, value and exception are pickled; of an exception that cannot be, only the text arrives (`Remote`).
    RuntimeError with what it printed when the process ends otherwise.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def value() -> Any:
        answer, printed = process.communicate()
        if process.returncode or not answer:
            raise RuntimeError(f"{function} in a process of its own: {printed.decode(errors='replace')[-2000:]}")
        value, error, root = pickle.loads(answer)
        if error is not None:
            raise error from (root if root is not error else None)
        return value

    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as call:  # `value` says why the process has ended
            call.write(pickle.dumps(sys.path) + pickle.dumps((function, arguments)))
        process.stdin = None
        yield value
    finally:
        process.kill()
        process.wait()


def answer() -> None:
    """The other process: one call from standard input; its value, or its exception with the cause, to output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    name, arguments = pickle.load(sys.stdin.buffer)
    try:
        content = pickle.dumps((resolve(name)(*arguments), None, None))
    except Exception as error:
        # Only the text of an exception that cannot be made again from its arguments.
        content, frames = pickle.dumps((None, remote := Remote(cause(error)), remote)), traceback.format_exc()
        if not is_for_users(error):
            error.add_note(frames)
        with suppress(Exception):
            pickle.loads(pickled := pickle.dumps((None, error, deepest(error))))
            content = pickled
    output.write(content)
    output.flush()
    os._exit(0)  # Python would clear away the libraries object by object
