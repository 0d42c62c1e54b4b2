"""The miniature's critic: a small OpenAI-compatible server on 127.0.0.1 that knows the gold chain of every problem.

It asks for a key, answers now and then with 429, and like a real critic is sometimes careless (a verdict that
contradicts the labels) or malformed; where it sees neither labels nor a reference, it may misread the problem. Every
answer is a function of the seed and the content of the request alone.
"""

import argparse
import json
import os
import random
import re
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.miniature.critic import write_error_types

MODEL = "miniature-critic-1"
WRITER = "minos_ray.miniature.critic:write_critique"
KEY_ENV = "MINOS_OFFLINE_CRITIC_KEY"
READY_S, END_S = 60.0, 5.0
BUSY, CARELESS, MALFORMED = 0.01, 0.01, 0.005

Writer = Callable[[str, list[str], list[int] | None, random.Random], str]

# A reference that the prompt shows is skipped: who has one, or some label, knows the gold chain.
REFERENCE = r"(?:\n\n\[Reference\]\n.*?)?"
BLOCKS = re.compile(rf"\[Question\]\n(.*?){REFERENCE}\n\n\[Solution\]\n(.*?)\n\n\[Task\]\n", re.DOTALL)
LABEL = re.compile(r" Label: (True|False)$")


def read_prompt(text: str) -> tuple[str, list[str], list[int]]:
    """Question, steps and labels (-1 where none is shown) out of a prompt; ValueError when it is none of ours."""
    blocks = BLOCKS.search(text)
    if not blocks:
        raise ValueError("the prompt holds no [Question] and [Solution]")
    lines = blocks[2].split("\n")
    matches = [LABEL.search(line) for line in lines]
    labels = [-1 if match is None else int(match[1] == "True") for match in matches]
    return blocks[1], [LABEL.sub("", line) for line in lines], labels


def spoil(text: str, rng: random.Random) -> str:
    """A malformed critique: without its verdict, without a step, or with a step that judges nothing."""
    lines = text.split("\n")
    kind = rng.randrange(3)
    if kind == 0:
        return "\n".join(lines[:-1])
    line = rng.randrange(max(1, len(lines) - 2))
    changed = [] if kind == 1 else [re.sub(r" This step is \w+\.$", "", lines[line])]
    return "\n".join(lines[:line] + changed + lines[line + 1 :])


def contradict(text: str, rng: random.Random) -> str:
    """A careless critique: the verdict on one step is turned round."""
    lines = text.split("\n")
    line = rng.randrange(max(1, len(lines) - 2))
    turned = {"correct": "incorrect", "incorrect": "correct"}
    lines[line] = re.sub(r"(?<=This step is )(correct|incorrect)(?=\.$)", lambda found: turned[found[1]], lines[line])
    return "\n".join(lines)


class Teacher:
    """Answers requests; remembers only which ones it has sent away once as too many."""

    def __init__(self, seed: int, writer: Writer, labels_of: Callable[[str, list[str]], tuple[list[int], Any]]) -> None:
        self.seed, self.writer, self.labels_of = seed, writer, labels_of
        self.sent_away: set[str] = set()

    def busy(self, content: str) -> bool:
        """Whether this request gets a 429: some do, the first time."""
        if random.Random(f"{self.seed}/busy/{content}").random() >= BUSY or content in self.sent_away:
            return False
        self.sent_away.add(content)
        return True

    def critique(self, content: str) -> str:
        """The critique of the solution in the prompt."""
        rng = random.Random(f"{self.seed}/text/{content}")
        question, steps, labels = read_prompt(content)
        if "[Types]" in content:
            wrong = [k for k, label in enumerate(labels) if label == 0]
            return write_error_types(wrong, self.labels_of(question, steps)[1], rng, CARELESS)
        blind = "[Reference]" not in content and set(labels) == {-1}
        known_labels = labels if -1 not in labels else self.labels_of(question, steps)[0]
        text = self.writer(question, steps, None if blind else list(known_labels), rng)
        chance = rng.random()
        if chance < CARELESS:
            return contradict(text, rng)
        return spoil(text, rng) if chance < CARELESS + MALFORMED else text


def completion(request: dict[str, Any], text: str) -> dict[str, Any]:
    """The JSON of a chat completion; a token is a word. Cut after `max_tokens`."""
    prompt = " ".join(message["content"] for message in request["messages"])
    words = re.findall(r"\S+\s*", text)
    limit = request.get("max_tokens") or len(words)
    shortened = "".join(words[:limit]) if len(words) > limit else text
    asked, written = len(prompt.split()), min(len(words), limit)
    message = {"role": "assistant", "content": shortened, "refusal": None}
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if len(words) > limit else "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }


class Handler(BaseHTTPRequestHandler):
    """GET /v1/models and POST /v1/chat/completions, with the bearer key of the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"  # ty: ignore[incompatible-mutable-override] it is the server that makes the handler

    def do_GET(self) -> None:
        """The list of models."""
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "minos"}]
        exists = self.path == "/v1/models"
        self._reply_if_allowed(
            200 if exists else 404, {"object": "list", "data": models} if exists else _error("no such path")
        )

    def do_POST(self) -> None:
        """A critique, 429 with Retry-After, or 400 for a request that is not understood."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            return self._reply_if_allowed(404, _error("no such path"))
        try:
            request = json.loads(body)
            content = request["messages"][-1]["content"]
            if self.server.teacher.busy(content):
                return self._reply_if_allowed(
                    429, _error("too many requests"), {"Retry-After": "1", "retry-after-ms": "50"}
                )
            reply = completion(request, self.server.teacher.critique(content))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self._reply_if_allowed(400, _error(f"request not understood: {error}"))
        self._reply_if_allowed(200, reply)

    def _reply_if_allowed(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        if not secrets.compare_digest(self.headers.get("Authorization") or "", f"Bearer {self.server.key}"):
            status, value, headers = 401, _error("wrong API key"), None
        content = json.dumps(value).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} {self.responses[status][0]}", *(f"{k}: {v}" for k, v in head.items())]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


class Server(ThreadingHTTPServer):
    """A loopback server on a free port."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, teacher: Teacher, key: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.teacher, self.key = teacher, key


@contextmanager
def offline_critic(seed: int, writer: str = WRITER) -> Generator[tuple[str, str]]:
    """Runs the server as a process of its own; yields base_url and key. It ends in any case, with this process too."""
    key = secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "minos_ray.miniature.critic_server", "--seed", str(seed), "--writer", writer]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, KEY_ENV: key}
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        line = process.stdout.readline() if ready else ""
        if not line.startswith("ready "):
            raise RuntimeError(f"the offline critic did not start within {READY_S:.0f} s (exit code {process.poll()})")
        yield f"http://127.0.0.1:{int(line.split()[1])}/v1", key
    finally:
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Serves until standard input ends, that is until the process that started it has gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", default=WRITER, help="package.module:function")
    options = parser.parse_args()
    teacher = Teacher(options.seed, resolve(options.writer), resolve("minos_ray.miniature.step_labels:labels_of"))
    server = Server(teacher, os.environ[KEY_ENV])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
