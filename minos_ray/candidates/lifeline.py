"""An engine of vLLM in a process of its own, as on GPUs, and its actor: neither is left when the other is killed.

vLLM 0.32 notices that its engine is gone, but whoever waits for the engine's output at that moment waits for ever:
the thread that would say so is ended in the clearing up. An engine whose actor is killed lives on with its GPU memory;
Ray's raylet ends it, unless it was the raylet that died.
"""

import subprocess
import threading
import time
from typing import Any

POLL_S = 1.0
# Kills a process (told from a later one of the same number by its start) when standard input ends.
GUARD = (
    'born() { cut -d" " -f22 "/proc/$1/stat" 2> /dev/null; }; at=$(born "$1"); cat > /dev/null; '
    '[ "$at" = "$(born "$1")" ] && kill -KILL "$1"'
)


def tied(llm: Any) -> list["subprocess.Popen[bytes]"]:
    """Ties the engines of an `LLM` to this process, which must keep what is returned: they are killed with it."""
    core = llm.llm_engine.engine_core
    manager = getattr(getattr(core, "resources", None), "engine_manager", None)
    if manager is None:  # the engine is in this process
        return []
    threading.Thread(target=raise_when_dead, args=(core,), daemon=True).start()
    return [guard(process.pid) for process in manager.processes]


def shut_down(llm: Any, guards: list["subprocess.Popen[bytes]"]) -> None:
    """Ends the engines of an `LLM` and waits for them; then their guards have nobody left to look after."""
    llm.llm_engine.engine_core.shutdown()
    for process in guards:
        process.communicate()


def raise_when_dead(core: Any) -> None:
    """Gives whoever waits for output of the engine an exception when there will be none."""
    from vllm.v1.engine.exceptions import EngineDeadError

    while not core.resources.engine_dead:
        time.sleep(POLL_S)
    core.outputs_queue.put_nowait(EngineDeadError())


def guard(pid: int) -> "subprocess.Popen[bytes]":
    """A process that ends with this one, however that ends, and takes another along."""
    command = ["sh", "-c", GUARD, "sh", str(pid)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
