"""What a command says when it is told to stop."""

import subprocess
import sys

import pytest

# Any command that has joined Ray; it stops itself, since nobody outside knows when it has.
JOINED = """
import os, signal, sys, time
from minos_ray import cli
from minos_ray.cluster import connect
from minos_ray.config.resources import Resources

def work(arguments):
    with cli.leaving_ray():
        connect.join(Resources(num_cpus=1))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

cli.COMMANDS["status"] = work
sys.exit(cli.main(["status", "run"]))
"""


@pytest.mark.slow
def test_sigterm_ends_a_command_as_control_c_does() -> None:
    done = subprocess.run([sys.executable, "-c", JOINED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith("minos: interrupted; the same command resumes\n") and "***" not in done.stderr
