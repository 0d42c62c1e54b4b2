"""The child process of a `Comparer`: reads [gold, answer] lines, writes true or false (or the list that a function of
another kind returns), and is killed by the kernel when one call exceeds its limit: no exception handler and no C code
can outlast that.

Run as `python -m minos_ray.grading.child PACKAGE.MODULE:FUNCTION SECONDS`.
"""

import json
import logging
import resource
import signal
import sys

from minos_ray.config.load import resolve

MEMORY = 4 << 30
WALL_FACTOR = 6


def main(function: str, seconds: float) -> None:
    """Answers until standard input ends; `seconds` is CPU time, so that a busy machine changes no verdict."""
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    same = resolve(function)
    same("1", "\\frac{1}{1}")  # imports and parser tables belong to the start, not to the first comparison
    print("ready", flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        limit(seconds)
        verdict = same(*texts)
        reply = verdict if isinstance(verdict, list) else bool(verdict)
        limit(0)
        print(json.dumps(reply), flush=True)


def limit(seconds: float) -> None:
    """Lets the kernel end this process after `seconds` of CPU time or six times that on the clock; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
