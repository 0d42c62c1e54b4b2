"""One command at a time works on a run: a lock file in the run directory names it and is renewed while it lives.

A killed command locks nothing. On its own machine its process is looked for; from elsewhere it counts as dead when it
has not renewed the file for `STALE_S`. Commands that only read do not ask.
"""

import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from minos_ray.errors import StorageFailed, UserError
from minos_ray.observe.progress import duration
from minos_ray.store.run import Run

FILE = "lock.json"
BEAT_S, STALE_S = 20.0, 120.0
# Of two that begin at once the one whose file is still there after so long has the run: on a disk, in an object store.
SETTLE_S, SETTLE_REMOTE_S = 0.1, 1.0


class Holder(NamedTuple):
    """Who holds a run; `place` names the machine, its start and the PID namespace, `born` the start of the process."""

    host: str
    place: str
    pid: int
    born: str
    command: str
    since: float
    beat: float
    word: str


@contextmanager
def locked(run: Run, command: str) -> Generator[None]:
    """Locks the run while the block lasts; UserError when another command does, or the run cannot be written."""
    try:
        created = not run.exists("")
        mine = take(run, command)
    except StorageFailed as error:
        raise UserError(f"run: {error}") from error
    ended = threading.Event()
    beats = threading.Thread(target=renew, args=(run, mine, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join(timeout=BEAT_S)  # a storage that is away is not waited for
        with suppress(StorageFailed):
            if is_mine(run, mine):
                run.delete(FILE)
            if created and run.local and not run.files("") and not run.folders(""):
                run.delete("")


def take(run: Run, command: str) -> Holder:
    """Writes who holds the run, and returns it; UserError when another command does.

    One process of this machine at a time looks and writes.
    """
    now = time.time()
    mine = Holder(
        socket.gethostname(), place(), os.getpid(), born(os.getpid()), command, now, now, secrets.token_hex(8)
    )
    one_at_a_time: AbstractContextManager[Any] = nullcontext()  # in an object store the time to settle must do
    if run.local:
        from filelock import FileLock

        name = blake2b(run.root.encode(), digest_size=8).hexdigest()
        path = Path(tempfile.gettempdir()) / f"minos-{os.getuid()}-{name}.lock"
        one_at_a_time = FileLock(path, timeout=2 * BEAT_S + STALE_S)
    with one_at_a_time:
        require_unlocked(run)
        write(run, mine)
    time.sleep(SETTLE_S if run.local else SETTLE_REMOTE_S)
    if not is_mine(run, mine):
        require_unlocked(run)
        write(run, mine)
    return mine


def require_unlocked(run: Run) -> None:
    """UserError when a command that is alive holds the run."""
    other = holder(run)
    if other is None or not alive(run, other):
        return
    since, heard = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(other.since)), max(time.time() - other.beat, 0)
    raise UserError(
        f"run = '{run.path}' is in use: `{other.command}` (process {other.pid} on {other.host}) works on it since "
        f"{since}, last heard of {duration(heard)} ago; wait for it or end it (if it is gone, delete {run.at(FILE)})"
    )


def alive(run: Run, other: Holder) -> bool:
    """Whether a holder lives: its process, where it is this machine's; else whether it renews the file."""
    if other.place and other.place == place():
        return bool(other.born) and born(other.pid) == other.born
    if time.time() - other.beat <= STALE_S:
        return True
    # Clocks of machines differ: one that lives renews the file meanwhile, whatever its clock says.
    print(f"run: looks whether process {other.pid} on {other.host} is alive, {2 * BEAT_S:.0f} s at most", flush=True)
    deadline = time.monotonic() + 2 * BEAT_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT_S))
        if holder(run) != other:
            return holder(run) is not None
    return False


def renew(run: Run, mine: Holder, ended: threading.Event) -> None:
    """Renews the file until the command has ended, or another one has taken the run."""
    while not ended.wait(BEAT_S):
        with suppress(StorageFailed):
            if not is_mine(run, mine):
                what = "was deleted" if holder(run) is None else "is another command's now"
                print(f"run: {run.at(FILE)} {what}; let no other work on the run", file=sys.stderr, flush=True)
                return
            write(run, mine._replace(beat=time.time()))


def holder(run: Run) -> Holder | None:
    """Who holds the run; None also where the file is no such file."""
    try:
        return TypeAdapter(Holder).validate_json(run.read_bytes(FILE))
    except (FileNotFoundError, ValidationError):
        return None


def is_mine(run: Run, mine: Holder) -> bool:
    """Whether the file is still the one that this command wrote."""
    other = holder(run)
    return other is not None and other.word == mine.word


def write(run: Run, mine: Holder) -> None:
    """Makes `mine` the holder."""
    run.write_bytes(FILE, TypeAdapter(Holder).dump_json(mine))


def place() -> str:
    """The machine since its start, as processes of the same PID namespace see it; empty where /proc does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty when it is gone (a zombie is)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
