"""Files of the hub, from a server that speaks the hub's protocol on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minos_ray.errors import UserError
from minos_ray.files import download

CONTENT = json.dumps({"question": "1+1?", "answer": "#### 2"}).encode() + b"\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/datasets/org/set/resolve/main/data/train.jsonl"


class Hub(http.server.BaseHTTPRequestHandler):
    """One file of one data set; anything else is not there."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(CONTENT)

    def answer(self, body: bytes) -> None:
        found = self.path.split("?")[0].replace(COMMIT, "main") == FILE
        self.send_response(200 if found else 404)
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Length": str(len(CONTENT))}
        for name, value in (headers if found else {"X-Error-Code": "EntryNotFound", "Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def load(path: str, hub: str, home: Path, offline: str = "0") -> subprocess.CompletedProcess[str]:
    """The rows of a hub file, read in a process of its own (the hub's address is read at import)."""
    code = (
        "from minos_ray.problems.loaders import gsm8k as load\nfrom minos_ray.errors import UserError\n"
        f"try: print([row['answer'] for row in load({path!r}, 'train', None, 0)])\n"
        "except UserError as error: print('refused:', error)"
    )
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)


def test_a_file_is_read_and_then_cached(hub: str, tmp_path: Path) -> None:
    path = "hf://datasets/org/set/data/train.jsonl"
    assert load(path, hub, tmp_path).stdout == "['2']\n"
    assert load(path, "http://127.0.0.1:9", tmp_path, offline="1").stdout == "['2']\n"


def test_what_is_not_there_is_refused_in_one_line(hub: str, tmp_path: Path) -> None:
    done = load("hf://datasets/org/set/data/other.jsonl", hub, tmp_path)
    assert done.stdout.startswith("refused: 'hf://datasets/org/set/data/other.jsonl' cannot be read from the hub")
    assert done.stdout.count("\n") == 1


def test_paths_of_another_form() -> None:
    for path in ("hf://org/set/file.jsonl", "hf://datasets/org", "hf://datasets/org/set"):
        with pytest.raises(UserError, match="is not of the form"):
            download(path)
