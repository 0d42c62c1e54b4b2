"""SIGTERM ends a command as Ctrl-C does, also one that ignores Ctrl-C, as background jobs of a shell do."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, time
signal.signal(signal.SIGINT, signal.{handler})
from minos_ray.cluster.connect import heed_sigterm
heed_sigterm()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("handler", ["SIG_IGN", "default_int_handler"])
def test_sigterm_interrupts(handler: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(handler=handler)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=300).stdout == "interrupted\n"
