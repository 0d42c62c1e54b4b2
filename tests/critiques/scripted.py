"""An OpenAI-compatible server on a free port that behaves as a script says."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from minos_ray.config.load import Config
from minos_ray.miniature.critic_server import read_prompt
from minos_ray.store.run import Run

KEY = "sk-test-4f1d9c0b7a"


def faithful(content: str) -> str:
    """A critique that says what the labels in the prompt say."""
    _, steps, labels = read_prompt(content)
    verdicts = ["This step is correct." if label else "This step is incorrect." for label in labels]
    lines = [f"Step {k}: because of {step}. {v}" for k, (step, v) in enumerate(zip(steps, verdicts, strict=True), 1)]
    return "\n".join([*lines[:-1], f"The final answer is {bool(labels[-1])}."])


def completion(content: Any, usage: Any = None) -> dict[str, Any]:
    """A chat completion of this content, whatever that is."""
    usage = usage or {"prompt_tokens": 100, "completion_tokens": 50}
    return {
        "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": usage,
    }


@dataclass
class Reply:
    """What the server does with one request: cut the connection, or wait, then send this."""

    status: int = 200
    text: str | None = None
    finish: str = "stop"
    refusal: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    cut: bool = False
    usage: bool = True

    def content(self, prompt: str) -> bytes:
        """The body of the reply."""
        if self.body is not None:
            return self.body
        if self.status != 200:
            return b'{"error": {"message": "scripted", "code": null}}'
        text = faithful(prompt) if self.text is None else self.text
        message = {"role": "assistant", "content": text, "refusal": self.refusal}
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150} if self.usage else None
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        fixed = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        return json.dumps({**fixed, "choices": [choice], "usage": usage}).encode()


def refusal(status: int, message: str, **error: Any) -> Reply:
    """An error as endpoints send it; `error` are further fields such as `param` and `code`."""
    return Reply(status=status, body=json.dumps({"error": {"message": message, **error}}).encode())


Script = Callable[[str, int], Reply]
Serve = Callable[[Script], "ScriptedServer"]
MakeRun = Callable[..., Run]
MakeConfig = Callable[..., Config]


class ScriptedServer(ThreadingHTTPServer):
    """Answers as `script(content, how often it came before)` says; remembers what came when."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.script = script
        self.seen: list[tuple[float, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.sent: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.models = 200
        """The status of the list of models."""
        self.path = "/v1"
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def times(self) -> Counter[str]:
        """How often each content was asked for."""
        return Counter(content for _, content in self.seen)

    def answered(self) -> int:
        """How many answers went out, once none is on its way any more."""
        until = time.monotonic() + 60
        while self.in_flight:
            assert time.monotonic() < until, f"{self.in_flight} requests are still in flight"
            time.sleep(0.01)
        return self.sent[200]

    def handle_error(self, *_: object) -> None:
        """Clients that were killed or gave up are part of the script."""


class ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ScriptedServer

    def do_GET(self) -> None:
        status = self.server.models if self.path.partition("?")[0] == f"{self.server.path}/models" else 404
        self._send(self._allowed(status), b'{"object": "list", "data": []}', {})

    def do_POST(self) -> None:
        """Like every endpoint it sees to the key first, then to the path, then to what is asked."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = 200 if self.path.partition("?")[0] == f"{self.server.path}/chat/completions" else 404
        status = self._allowed(found if body["messages"] or found == 404 else 400)
        if status != 200:
            return self._send(status, b'{"error": {"message": "scripted", "code": null}}', {})
        content, server = body["messages"][-1]["content"], self.server
        with server.lock:
            before = server.times()[content]
            server.seen.append((time.monotonic(), content))
            server.bodies.append(body)
            server.paths.append(self.path)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            reply = server.script(content, before)
            time.sleep(reply.delay)
            if reply.cut:
                self.close_connection = True
                return
            status = self._allowed(reply.status)
            self._send(status, reply.content(content), reply.headers)
            with server.lock:
                server.sent[status] += 1
        finally:
            with server.lock:
                server.in_flight -= 1

    def _allowed(self, status: int) -> int:
        return status if self.headers["Authorization"] == f"Bearer {KEY}" else 401

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        head = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        lines = [f"HTTP/1.1 {status} X", *(f"{key}: {value}" for key, value in head.items()), "", ""]
        self.wfile.write("\r\n".join(lines).encode() + content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def scripted_servers() -> Iterator[Callable[[Script], "ScriptedServer"]]:
    """Gives a function that starts a server with a script; all are ended with the block."""
    servers: list[ScriptedServer] = []

    def start(script: Script) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
