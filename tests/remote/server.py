"""moto's S3 server on the loopback, in a process of its own, and run directories in it."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs
import pytest

from tests.raylets import free_ports

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOFTHETEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test", "AWS_REGION": "us-east-1"}
START_S = 180.0


class Bucket(NamedTuple):
    """A bucket on a server of this machine."""

    name: str
    port: int

    def uri(self, folder: str, port: int | None = None) -> str:
        """Of a folder in it, over the server or over another port in front of it."""
        return f"s3://{self.name}/{folder}?endpoint_override=http://127.0.0.1:{port or self.port}"


def command() -> str:
    """The server's command; skips where it is not installed."""
    environment = Path(sys.prefix).resolve()
    found = environment.with_name(f"{environment.name}-moto") / "bin/moto_server"
    if not found.is_file():
        pytest.skip(f"no S3 server at {found}: run `make moto`")
    return str(found)


@contextmanager
def bucket(log: Path) -> Iterator[Bucket]:
    """An empty bucket; what the server is asked is in `log`. Its keys are in the environment meanwhile."""
    before = {name: os.environ.get(name) for name in KEYS}
    made = Bucket("minos", *free_ports(1))
    with log.open("wb") as file:
        server = subprocess.Popen([command(), "-H", "127.0.0.1", "-p", str(made.port)], stdout=file, stderr=file)
    os.environ.update(KEYS)
    try:
        wait_for(made.port)
        endpoint = {"endpoint_override": f"http://127.0.0.1:{made.port}", "allow_bucket_creation": True}
        pafs.S3FileSystem(**endpoint).create_dir(made.name)
        yield made
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def wait_for(port: int) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
