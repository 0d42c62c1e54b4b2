"""A critic served by vLLM's own OpenAI server, inside a Ray actor, until the job that started it ends.

    python jobs/critic_server.py MODEL [options] [-- arguments of vLLM]

Prints the address to set as `critique.base_url` and the name to set as `critique.model`, which tells this model from
others: what it writes is kept under that name. The key is what $MINOS_CRITIC_KEY holds; clients need the same one.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minos_ray.cluster.connect import disconnect, join
from minos_ray.config.resources import Resources
from minos_ray.config.schema import Model
from minos_ray.critiques import door
from minos_ray.critiques.served_name import served_name
from minos_ray.errors import UserError, WorkStopped
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run

KEY_ENV = "MINOS_CRITIC_KEY"
PLAIN = "{% if bos_token %}{{ bos_token }}{% endif %}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The chat template of `--plain`: the text of the messages and nothing else, as a stage-1 critic of ours wants it."""
ROOT = str(Path(__file__).parents[2])
NAME = "--served-model-name"
LOOK_EVERY_S, END_S = 5.0, 30.0
# Ends the server with all its engine processes when it ends, or when standard input does: when the actor is gone.
# Ray kills the children of a dead actor, but not theirs: so it is a grandchild that watches.
GUARD = 'exec 3<&0; (cat <&3 >/dev/null; kill -KILL 0) & "$@" 3<&- </dev/null; kill -KILL 0'


class CriticServer:
    """One vLLM server as a child of the actor; it ends with it, whatever ends the actor."""

    def __init__(self, options: argparse.Namespace, key: str) -> None:
        import ray

        self.options, self.key = options, key
        self.host = ray.util.get_node_ip_address() if options.node else "127.0.0.1"
        self.port = options.port or free_port(self.host)

    def start(self) -> tuple[str, str]:
        """The address and the name of the model, once the server answers.

        Raises with the end of its log when it ends or takes too long.
        """
        self.launch()
        until = time.monotonic() + self.options.wait_s
        while not self.answers():
            code = self.process.poll()
            if code is not None or time.monotonic() > until:
                raise WorkStopped(f"vLLM does not serve; end of its log:\n{self.tail()}")
            time.sleep(0.2)
        return f"http://{self.host}:{self.port}/v1", self.name

    def launch(self) -> None:
        """Starts vLLM; the key goes through the environment, its output into a log."""
        environment = {**os.environ, door.KEY_ENV: self.key, "VLLM_NO_USAGE_STATS": "1"}
        # The door is imported by vLLM's process, wherever that looks for modules.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        if not self.options.gpus:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        asked = command(self.options, self.host, self.port)
        self.name = asked[asked.index(NAME) + 1]
        log, self.log = tempfile.mkstemp(prefix="minos-critic-server-", suffix=".log")
        self.process = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", *asked],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(log)

    def answers(self) -> bool:
        """Whether the server is ready."""
        try:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            head = {"Authorization": f"Bearer {self.key}"}
            request = urllib.request.Request(f"http://{self.host}:{self.port}/health", headers=head)
            with direct.open(request, timeout=2) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def check(self) -> None:
        """Raises with the end of the log when the server has ended."""
        if self.process.poll() is not None:
            raise WorkStopped(f"vLLM ended; end of its log:\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log."""
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-15:])

    def end(self) -> None:
        """Ends the server in order, and whatever is left of it after END_S."""
        until = time.monotonic() + END_S
        self.signal(signal.SIGTERM)
        while self.signal(0) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.1)
        self.signal(signal.SIGKILL)
        self.process.wait()
        os.unlink(self.log)

    def signal(self, number: int) -> bool:
        """Sends a signal to all processes of the server; whether there are any."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


def command(options: argparse.Namespace, host: str, port: int) -> list[str]:
    """vLLM's server by its module, which every build of vLLM has (`vllm serve` is missing from the CPU build)."""
    path = locate(Model(model=options.model), Run("."))
    name = options.name or served_name(options.model, path, options.plain, options.vllm)
    # Loopback and node addresses only; vLLM itself would listen on all of them.
    asked = ["--model", path, NAME, name, "--host", host, "--port", str(port)]
    asked += ["--middleware", f"{door.__name__}.{door.Door.__name__}"]
    asked += ["--chat-template", PLAIN] if options.plain else []
    asked += ["--tensor-parallel-size", str(options.gpus)] if options.gpus > 1 else []
    # The CPU build shares prompts block by block, and 32 is its smallest block.
    asked += [] if options.gpus else ["--block-size", "32"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *asked, *options.vllm]


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; what stands after `--` is vLLM's."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that all nodes see, a hub id, or package:FOLDER")
    parser.add_argument("--name", default="", help="the name to set as critique.model, another one for each model")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of one node, the model is split over them; 0: CPU")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs that Ray sets aside for it")
    parser.add_argument("--node", action="store_true", help="bind to the node's address, for clients on other nodes")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--plain", action="store_true", help="a chat template that adds nothing (prompts:plain)")
    parser.add_argument("--wait-s", type=float, default=1800, help="longest wait for resources and for the model")
    options = parser.parse_args(arguments[:end])
    options.vllm = list(arguments[end + 1 :])
    return options


def serve(options: argparse.Namespace, key: str) -> None:
    """Starts the server, prints its address, and stays until it is told to end or the server has ended."""
    import ray

    needs = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    server: Any = ray.remote(CriticServer).options(**needs).remote(options, key)
    try:
        address, name = ray.get(server.start.remote(), timeout=options.wait_s + LOOK_EVERY_S)
        print(f"critique.base_url={address} critique.model={name} critique.api_key_env={KEY_ENV}", flush=True)
        try:
            while True:
                ray.get(server.check.remote())
                time.sleep(LOOK_EVERY_S)
        finally:
            ray.get(server.end.remote(), timeout=2 * END_S)
    except ray.exceptions.GetTimeoutError as error:
        have = f"the cluster has {ray.cluster_resources().get('GPU', 0):g} GPU"
        raise UserError(
            f"--gpus {options.gpus}: not there, or its model not loaded, within {options.wait_s:g} s; {have}"
        ) from error
    finally:
        ray.kill(server)


def main(arguments: Sequence[str] | None = None) -> int:
    """The job; exit code 0 when it is told to end."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    key = os.environ.get(KEY_ENV, "").strip()
    if not key:
        print(f"minos: set {KEY_ENV} to a key of your own; clients of the critic need the same", file=sys.stderr)
        return 2
    import ray

    try:
        # A bare ray.init() would join the last cluster that was started on this machine, even when that is dead.
        join(Resources())
        serve(options, key)
    except KeyboardInterrupt:
        return 0
    except (UserError, WorkStopped, ray.exceptions.RayTaskError) as error:
        cause = getattr(error, "cause", None) or error
        print(f"minos: {cause}", file=sys.stderr)
        return 2 if isinstance(cause, UserError) else 1
    finally:
        disconnect()
    return 0
