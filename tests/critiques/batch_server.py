"""A local server with OpenAI's Batch API: files and batches as described, and a count of what is bought."""

import asyncio
import email.parser
import email.policy
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from minos_ray.critiques.batch import FOLDER, Batches, Plan
from minos_ray.critiques.endpoint import Endpoint, headers
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.critiques.stage import critique_status
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Run
from tests.critiques.asking import requests
from tests.critiques.scripted import KEY, MakeConfig, Reply

Script = Callable[[str, int], Reply]


@dataclass
class Fate:
    """What becomes of one batch: how it ends, how much of it is done before that, which errors it shows."""

    status: str = "completed"
    share: float = 1.0
    errors: list[dict[str, Any]] = field(default_factory=list)
    silent: bool = False
    """Requests that were not done are in no file, rather than in the error file."""


class BatchServer(ThreadingHTTPServer):
    """`fate(number of the batch)` and `script(content, how often it was bought before)` say what comes of it.

    Batches end when `open_gate` is set. `hooks[path]` is called before the reply to `METHOD path` is sent, after the
    work was done; it may wait, and the connection is cut when it returns False.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, fate: Callable[[int], Fate] = lambda _: Fate()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.fate = script, fate
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.bought: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[int], int | None]] = {}
        self.hooks: dict[str, Callable[[int], bool]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        self.longest_page = 100
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """Clients that were killed are part of the test."""

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A new batch that is in progress; what it holds is paid for when it is done."""
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines), "custom ids are unique"
        assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
        now = int(time.time())
        batch = {
            **{"id": f"batch_{len(self.batches)}", "object": "batch", "status": "in_progress", "created_at": now},
            **{key: asked[key] for key in ("endpoint", "completion_window", "input_file_id", "metadata")},
            **{"expires_at": now + 86400, "output_file_id": None, "error_file_id": None, "errors": None},
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.batches[batch["id"]] = batch
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, ended if its time has come."""
        if batch["status"] == "in_progress" and self.gate.is_set():
            self.end(batch, self.fate(int(batch["id"].removeprefix("batch_"))))
        return batch

    def end(self, batch: dict[str, Any], fate: Fate) -> None:
        """Does the share of the requests that the fate allows and writes the result files."""
        batch["status"] = fate.status
        if fate.status == "failed":
            batch["errors"] = {"object": "list", "data": fate.errors}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        done = lines[: round(len(lines) * fate.share)]
        rows = [self.row(line) for line in done]
        left = [] if fate.silent else lines[len(done) :]
        code = {"code": f"batch_{fate.status}", "message": "This request could not be executed."}
        failed = [row for row in rows if row["response"]["status_code"] != 200]
        failed += [{"id": "r", "custom_id": line["custom_id"], "response": None, "error": code} for line in left]
        good = [row for row in rows if row["response"]["status_code"] == 200]
        batch["request_counts"] |= {"completed": len(good), "failed": len(failed)}
        # The order of an output file is not that of the input.
        for name, found in (("output", good[::-1]), ("error", failed)):
            if found:
                batch[f"{name}_file_id"] = self.keep(b"".join(json.dumps(row).encode() + b"\n" for row in found))

    def row(self, line: dict[str, Any]) -> dict[str, Any]:
        """The result of one request, bought if it is an answer."""
        content = line["body"]["messages"][-1]["content"]
        reply = self.script(content, self.calls[content])
        self.calls[content] += 1
        self.bought[content] += reply.status == 200
        response = {"status_code": reply.status, "request_id": "x", "body": json.loads(reply.content(content))}
        return {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}

    def keep(self, content: bytes) -> str:
        """The id of a new file."""
        name = f"file_{len(self.files)}"
        self.files[name] = content
        return name


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: BatchServer

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        with self.server.lock:
            allowed = self.headers["Authorization"] == f"Bearer {KEY}"
            status, value = self._get(path.removeprefix("/v1"), query) if allowed else (401, error("wrong key"))
        self._reply("GET", path.removeprefix("/v1"), status, value)

    def _get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts == ["batches"]:
            return 200, self._page(query)
        if parts[0] == "batches" and parts[1] in self.server.batches:
            return 200, self.server.look(self.server.batches[parts[1]])
        if parts[0] == "files" and parts[1] in self.server.files:
            return 200, self.server.files[parts[1]]
        return 404, error("no such thing")

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """The newest first, as many as asked for, after the one that `after` names."""
        names = list(self.server.batches)[::-1]
        if "after" in query:
            names = names[names.index(query["after"][0]) + 1 :]
        limit = min(int(query.get("limit", ["20"])[0]), self.server.longest_page)
        page = [self.server.batches[name] for name in names[:limit]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, **ends, "has_more": len(names) > limit}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.removeprefix("/v1")
        refused = self.server.before.get(f"POST {path}", lambda _: None)(self.server.calls[f"POST {path}"])
        with self.server.lock:
            self.server.calls[f"POST {path}"] += 1
            status, value = (refused, error("scripted")) if refused else self._post(path, body)
        self._reply("POST", path, status, value)

    def _post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/batches":
            return 200, self.server.create(json.loads(body))
        if path != "/files":
            return 404, error("no such path")
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts()
        form = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}
        assert form["purpose"] == b"batch"
        name = self.server.keep(form["file"])
        fixed = {"object": "file", "created_at": 0, "filename": "x.jsonl", "purpose": "batch", "status": "processed"}
        return 200, {"id": name, "bytes": len(form["file"]), **fixed}

    def _reply(self, method: str, path: str, status: int, value: Any) -> None:
        kind = f"{method} {path if method == 'POST' else path.strip('/').rpartition('/')[2]}"
        times = self.server.calls[f"reply {kind}"]
        self.server.calls[f"reply {kind}"] += 1
        if not self.server.hooks.get(kind, lambda _: True)(times):
            self.close_connection = True
            return
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.wfile.write(head.encode() + content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


QUICK = Plan(first_pause_s=0.02, longest_pause_s=0.1)
PRICES = {"usd_per_million_input": 10.0, "usd_per_million_output": 20.0}
COST = (100 * 10 + 50 * 20) / 1e6 / 2
"""What a scripted answer of 100 and 50 tokens costs in a batch."""

ServeBatch = Callable[..., BatchServer]


class AskBatch:
    """Calls of `ask_batch` on one run directory."""

    def __init__(self, path: Path, make_config: MakeConfig) -> None:
        self.run, self.make_config = Run(str(path)), make_config

    def __call__(
        self,
        server: BatchServer,
        rows: int = 4,
        plan: Plan = QUICK,
        key: str = KEY,
        client: dict[str, Any] | None = None,
        **critique: Any,
    ) -> tuple[list[Answer], dict[str, Any]]:
        """Answers in the order of the requests (those that the cache has too), and the details."""
        config = self.make_config(self.run, server.url, client, mode="batch", **critique)
        self.cache = Cache(self.run)
        missing = [request for request in requests(rows) if request.key not in self.cache.answers]
        endpoint = Endpoint(config.critique, config.resources.client, server.url, key, headers(config.critique))
        with Progress("critique", rows, "critiques", rows - len(missing)) as progress:
            batches = Batches(endpoint, self.cache, progress, critique_status, plan=plan)
            answers = self.cache.answers | asyncio.run(batches.ask(missing))
        return [answers[request.key] for request in requests(rows)], batches.details()

    def records(self) -> list[dict[str, Any]]:
        """What is on record of batches."""
        return [json.loads(self.run.read_bytes(f"{FOLDER}/{name}")) for name in self.run.files(FOLDER)]


def question(number: int) -> str:
    """What stands in the prompt of one request and in no other."""
    return f"Question {number}?"
