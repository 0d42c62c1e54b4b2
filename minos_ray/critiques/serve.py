"""A critic served by vLLM's own OpenAI server, inside a Ray actor, until the job that started it ends.

    python jobs/critic_server.py MODEL [options] [-- arguments of vLLM]

Prints the address to set as `critique.base_url` and the name to set as `critique.model`, which tells this model from
others: what it writes is kept under that name. The key is what $MINOS_CRITIC_KEY holds; clients need the same one.
"""

import argparse
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from minos_ray.cluster.connect import disconnect, join
from minos_ray.config.resources import Resources
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, WorkStopped
from minos_ray.graph.specs import FOR_SPEED
from minos_ray.store.model_files import is_hub_id, locate, of_model
from minos_ray.store.run import Run

KEY_ENV, VLLM_KEY_ENV = "MINOS_CRITIC_KEY", "VLLM_API_KEY"
PLAIN = "{% if bos_token %}{{ bos_token }}{% endif %}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The chat template of `--plain`: the text of the messages and nothing else, as a stage-1 critic of ours wants it."""
ROOT = str(Path(__file__).parents[2])
NAME = "--served-model-name"
POLL_S, END_S = 5.0, 30.0
# Ends the server with all its engine processes when it ends, or when standard input does: when the actor is gone.
# Ray kills the children of a dead actor, but not theirs: so it is a grandchild that watches.
GUARD = 'exec 3<&0; (cat <&3 >/dev/null; kill -KILL 0) & "$@" 3<&- </dev/null; kill -KILL 0'
UNAUTHORIZED = b'{"error": {"message": "wrong API key", "type": "authentication_error", "code": 401}}'

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class KeyOnEveryRoute:
    """ASGI middleware around the whole of vLLM's app; the key is what $VLLM_API_KEY holds when the server starts.

    vLLM's own check covers some paths only: 0.32 lets anybody in at `/invocations` (chat), `/tokenize` or `/metrics`.
    """

    def __init__(self, app: App) -> None:
        if not os.environ.get(VLLM_KEY_ENV):
            raise ValueError(f"{VLLM_KEY_ENV} is not set: nobody would be kept out")
        self.app, self.key = app, hashlib.sha256(os.environ[VLLM_KEY_ENV].encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through with the key; anything but the server's own start and end needs one."""
        values = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        # The time that this takes tells nothing of the key; digests have equal lengths.
        has_key = secrets.compare_digest(hashlib.sha256(key).digest(), self.key) and scheme.lower() == b"bearer"
        if scope["type"] == "lifespan" or has_key:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(UNAUTHORIZED)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": head})
        await send({"type": "http.response.body", "body": UNAUTHORIZED})


class CriticServer:
    """One vLLM server as a child of the actor; it ends with it, whatever ends the actor."""

    def __init__(self, options: argparse.Namespace, key: str) -> None:
        import ray

        self.options, self.key = options, key
        self.host = ray.util.get_node_ip_address() if options.node else "127.0.0.1"
        self.port = options.port
        if not self.port:
            with socket.socket() as probe:
                probe.bind((self.host, 0))
                self.port = int(probe.getsockname()[1])

    def start(self) -> tuple[str, str]:
        """The address and the name of the model, once the server answers.

        Raises WorkStopped with the end of its log when it ends or takes too long.
        """
        arguments = command(self.options, self.host, self.port)
        # The key goes through the environment; the middleware is imported by vLLM, wherever that looks for modules.
        paths = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, VLLM_KEY_ENV: self.key, "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": paths}
        if not self.options.gpus:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        log, self.log = tempfile.mkstemp(prefix="minos-critic-server-", suffix=".log")
        guarded = ["sh", "-c", GUARD, "sh", *arguments]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(guarded, env=environment, start_new_session=True, **streams)
        os.close(log)
        until = time.monotonic() + self.options.wait_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise WorkStopped(f"vLLM does not serve; end of its log:\n{self.end_of_log()}")
            time.sleep(0.2)
        return f"http://{self.host}:{self.port}/v1", arguments[arguments.index(NAME) + 1]

    def answers(self) -> bool:
        """Whether the server is ready."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url, head = f"http://{self.host}:{self.port}/health", {"Authorization": f"Bearer {self.key}"}
        try:
            with direct.open(urllib.request.Request(url, headers=head), timeout=2) as reply:
                return reply.status == 200
        except OSError:  # urllib's own errors are among these
            return False

    def check(self) -> None:
        """WorkStopped with the end of the log when the server has ended."""
        if self.process.poll() is not None:
            raise WorkStopped(f"vLLM ended; end of its log:\n{self.end_of_log()}")

    def end_of_log(self) -> str:
        """Its last lines."""
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-15:])

    def end(self) -> None:
        """Ends the server in order, and whatever of it still runs after END_S."""
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
    arguments = ["--model", path, NAME, name, "--host", host, "--port", str(port)]
    arguments += ["--middleware", f"{__name__}.{KeyOnEveryRoute.__name__}"]
    arguments += ["--chat-template", PLAIN] if options.plain else []
    arguments += ["--tensor-parallel-size", str(options.gpus)] if options.gpus > 1 else []
    # The CPU build shares prompts block by block, and 32 is its smallest block.
    arguments += [] if options.gpus else ["--block-size", "32"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, *options.vllm]


def served_name(model: str, path: str, plain: bool, options: Sequence[str]) -> str:
    """A hub id as it is; a directory by its name and a digest of its files, so that a model trained again is another.

    The template and the options of vLLM that may change the texts are in the digest too: all that are not known to
    change its speed alone.
    """
    changes = ["plain"] if plain else []
    changes_text = True
    for option in options:  # the values of an option follow it
        if option.startswith("--"):
            changes_text = option[2:].partition("=")[0].replace("-", "_") not in FOR_SPEED
        changes += [option] if changes_text else []
    content = "" if is_hub_id(model) else of_model(Model(model=path)) or path
    if not content and not changes:
        return model
    changed = blake2b(repr([content, changes]).encode(), digest_size=5).hexdigest()
    return f"{model if is_hub_id(model) else Path(path).name}@{changed}"


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
    from ray.exceptions import GetTimeoutError

    needs = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    server: Any = ray.remote(CriticServer).options(**needs).remote(options, key)
    try:
        address, name = ray.get(server.start.remote(), timeout=options.wait_s + POLL_S)
        print(f"critique.base_url={address} critique.model={name} critique.api_key_env={KEY_ENV}", flush=True)
        try:
            while True:
                ray.get(server.check.remote())
                time.sleep(POLL_S)
        finally:
            ray.get(server.end.remote(), timeout=2 * END_S)
    except GetTimeoutError as error:
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
    from ray.exceptions import RayTaskError

    try:
        # A bare ray.init() would join the last cluster that was started on this machine, even when that is dead.
        join(Resources())
        serve(options, key)
    except KeyboardInterrupt:
        return 0
    except (UserError, WorkStopped, RayTaskError) as error:
        cause = getattr(error, "cause", None) or error
        print(f"minos: {cause}", file=sys.stderr)
        return 2 if isinstance(cause, UserError) else 1
    finally:
        disconnect()
    return 0
