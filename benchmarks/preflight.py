"""Seeded mistakes on a cluster of loopback raylets: what `minos check` says, in how many seconds, and of which CPU.

    PYTHONPATH=. python benchmarks/preflight.py        (needs `unshare`; --full prints all that is said)

Each is the whole command in a process of its own, Python's start and all imports included.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests import conftest  # noqa: F401  Ray's environment
from tests.cluster import world
from tests.cluster.world import Seeded

LIMIT_S = 30.0


Result = tuple[float, float, int, str, str]


def asked(folder: Path, *arguments: str, **env: str) -> Result:
    """Seconds, CPU seconds, exit code, stdout and stderr of `minos check` with overrides."""
    modules = ":".join(f"{folder}/modules/{name}" for name in ("here", "partly"))
    command = [sys.executable, "-m", "minos_ray", "check", f"{folder}/right.yaml", *arguments]
    environment = {**os.environ, world.KEY: "good", "PYTHONPATH": f"{os.getcwd()}:{modules}", **env}
    start, before = time.monotonic(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - start, cpu, done.returncode, done.stdout, done.stderr


def show(name: str, words: tuple[str, ...], result: Result) -> bool:
    """Prints one row; whether the mistake was named in time."""
    seconds, cpu, code, out, said = result
    if "--full" in sys.argv:
        print(f"\n$ minos check    # {name}\n{out}{said}")
    lines = [line.removeprefix("minos:").strip() for line in said.splitlines()]
    line = next((line for line in lines if all(word in line for word in words)), "NOT NAMED")
    found = code == 2 and line != "NOT NAMED" and seconds < LIMIT_S
    print(f"{'found' if found else 'FAILED':7} {seconds:5.1f} s {cpu:5.1f} s  {name:38} {line}", flush=True)
    return found


def rows(folder: Path, address: str) -> Iterator[bool]:
    """Asks about every mistake in turn."""
    three = ("run={}/frozen/run", "generator.model={}/partly/model", "resources.grade.actors=9")
    more = {
        "unknown key": Seeded(("sample.temprature=1",), ("sample.temprature", "did you mean")),
        "three at once": Seeded(tuple(text.format(folder) for text in three), ("3 things would stop this run",)),
    }
    for name, case in (world.SEEDED | more).items():
        overrides = [override.format(folder=folder) for override in case.overrides]
        yield show(name, case.words, asked(folder, *overrides, **case.env))
    with world.frozen(world.ODD):
        yield show("a node that hangs", (world.ODD, "does not answer"), asked(folder))
    with world.other_node(folder, address):
        result = asked(folder)
        yield show("another version on a node", (world.OTHER, "transformers 4.1.0"), result)
        yield show("full disk on a node", (world.OTHER, "GB free"), result)


def main() -> int:
    """Exit code 1 when any is not found in time."""
    folder = Path(tempfile.mkdtemp(prefix="preflight"))
    world.prepare(folder)
    with world.critic() as url, world.cluster(folder) as cluster:
        (folder / "right.yaml").write_text(yaml.safe_dump(world.right(folder, cluster.address, url)))
        seconds, cpu, code, out, said = asked(folder)
        outcome = "FAILED" if code else "right"
        print(f"{outcome:7} {seconds:5.1f} s {cpu:5.1f} s  {'nothing is wrong':38} {said if code else last(out)}")
        found = list(rows(folder, cluster.address))
    print(f"{sum(found)} of {len(found)} found in under {LIMIT_S:.0f} s")
    return 0 if code == 0 and all(found) else 1


def last(text: str) -> str:
    """Its last line."""
    return text.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
