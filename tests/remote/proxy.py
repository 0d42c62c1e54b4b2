"""A proxy in front of an HTTP server that fails when it is told to: it answers 503, drops connections, cuts answers."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["busy", "broken", "dropped", "cut"]
ANSWERS = {"busy": (503, "SlowDown"), "broken": (500, "InternalError")}
HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Proxy:
    """The next `failing` requests that have `only` in their line meet `fault` (-1: all of them).

    `asked` lists all requests, `failed` counts those that met a fault.
    """

    def __init__(self, port: int, behind: int) -> None:
        self.port, self.behind = port, behind
        self.fault: Fault = "busy"
        self.only = ""
        self.failing = self.failed = 0
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def fail(self, fault: Fault, requests: int, only: str = "") -> None:
        """The next requests of a kind fail."""
        with self.lock:
            self.fault, self.failing, self.failed, self.only = fault, requests, 0, only

    def next_fault(self, request: str) -> Fault | None:
        """What the request meets."""
        with self.lock:
            self.asked.append(request)
            if not self.failing or self.only not in request:
                return None
            self.failing -= 1
            self.failed += 1
            return self.fault


def handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    """Of the requests of a proxy."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            # The body is read first: an answer before that would be an error of another kind.
            body = self.body()
            fault = proxy.next_fault(f"{self.command} {self.path}")
            if fault == "dropped":
                self.close_connection = True
            elif fault in ANSWERS:
                status, code = ANSWERS[fault]
                self.reply(status, {}, f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode())
            else:
                self.pass_on(body, cut=fault == "cut")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def pass_on(self, body: bytes, cut: bool) -> None:
            behind = http.client.HTTPConnection("127.0.0.1", proxy.behind, timeout=120)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.reply(answer.status, kept, answer.read(), cut, length)
            behind.close()

        def reply(
            self, status: int, headers: dict[str, str], body: bytes, cut: bool = False, length: str | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": length or str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    return Handler


@contextmanager
def proxy(behind: int) -> Iterator[Proxy]:
    """In a thread of this process, in front of a port."""
    made = Proxy(0, behind)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    server.daemon_threads = True
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
