"""An object store that is busy or away for a while: every request is tried again, and not for ever."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.errors import UserError, WorkStopped
from minos_ray.store import filesystem
from minos_ray.store.run import Artefact, Run
from tests.remote.proxy import Fault, Proxy, proxy
from tests.remote.server import KEYS, Bucket, bucket

INPUTS = {"config": {"x": 1}}
ROWS = pa.table({"n": list(range(1000))})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket of a real server."""
    with bucket(tmp_path_factory.mktemp("server") / "server.log") as made:
        yield made


@pytest.fixture
def between(store: Bucket) -> Iterator[Proxy]:
    """What the runs of a test talk to."""
    with proxy(store.port) as made:
        yield made


@pytest.fixture
def run(store: Bucket, between: Proxy, request: pytest.FixtureRequest) -> Run:
    return Run(store.uri(request.node.name.replace("[", "-").replace("]", ""), between.port))


def everything(artefact: Artefact, between: Proxy, fault: Fault, requests: int) -> None:
    """Every kind of request that the store makes; what each step asks for first meets so many faults."""
    run = artefact.run

    @contextmanager
    def failing() -> Iterator[None]:
        between.fail(fault, requests)
        yield
        # An answer without a body cannot be cut: its request is not made again.
        assert between.failed == requests or (fault == "cut" and between.failed)

    with failing():
        artefact.begin(INPUTS)
    with failing():
        artefact.write_part("a", ROWS, {"tokens": 2}, ["u"])
    with failing():
        assert artefact.part_names() == ["a"]
    with failing():
        assert artefact.read(partial=True) == ROWS
    with failing():
        assert artefact.part_footer("a") == (["u"], 1000, {"tokens": 2})
    with failing():
        run.write_bytes("large.bin", bytes(12 << 20))
    with failing():
        assert len(run.read_bytes("large.bin")) == 12 << 20
    with failing():
        assert artefact.complete({"rows": 1000}) == artefact.manifest()
    with failing():
        assert run.sizes("candidates")["part-a.parquet"] > 0
    with failing():
        run.delete("candidates")
    with failing():
        assert not run.exists("candidates/part-a.parquet")


@pytest.mark.parametrize("fault", ["busy", "broken", "dropped", "cut"])
def test_requests_that_fail_for_a_while_are_made_again(run: Run, between: Proxy, fault: Fault) -> None:
    everything(run.artefact("candidates"), between, fault, 4)


def test_it_outlasts_seconds_without_a_server(run: Run, between: Proxy, store: Bucket) -> None:
    """All requests of several threads fail until the store is back; the retries of one do not use up another's."""
    between.fail("dropped", -1)
    threading.Timer(3.0, lambda: between.fail("dropped", 0)).start()
    threads = [
        threading.Thread(target=run.write_bytes, args=(f"many/{number}", str(number).encode())) for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    direct = Run(store.uri(run.root.partition("/")[2]))
    assert {name: direct.read_bytes(f"many/{name}") for name in direct.files("many")} == {
        str(number): str(number).encode() for number in range(16)
    }


def test_a_store_that_stays_away_stops_the_work_within_the_limit(
    store: Bucket, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "S3_ATTEMPTS", 6)
    run = Run(store.uri("away", between.port))
    artefact = run.artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("a", ROWS)
    between.fail("busy", -1)
    for work in (artefact.part_names, artefact.read, lambda: artefact.write_part("b", ROWS), artefact.manifest):
        with pytest.raises(WorkStopped, match=r"s3://minos/away/candidates.* cannot be .*after \d+ s.*rerun"):
            work()
    assert between.failed < 4 * 8


def test_a_part_that_cannot_be_read_for_a_while_is_not_taken_to_be_torn(
    store: Bucket, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "S3_ATTEMPTS", 2)
    artefact = Run(store.uri("torn", between.port)).artefact("candidates")
    artefact.begin(INPUTS)
    artefact.write_part("a", ROWS)
    for fault in ("busy", "cut"):
        between.fail(fault, -1, "GET /minos/torn/candidates/part-a.parquet")
        with pytest.raises(WorkStopped, match=r"part-a\.parquet.* cannot be read"):
            artefact.part_names()
        assert between.failed
    between.fail("busy", 0)
    assert artefact.part_names() == ["a"]


@pytest.mark.parametrize("only", ["?uploads", "partNumber=", "POST"])
def test_a_large_object_that_cannot_be_written_leaves_the_one_that_is_there(
    store: Bucket, between: Proxy, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    """Whichever of its requests fails for good: no empty or half object takes its place."""
    monkeypatch.setattr(filesystem, "S3_ATTEMPTS", 3)
    run = Run(store.uri("large", between.port))
    run.write_bytes("large.bin", b"before")
    between.fail("busy", -1, only)
    with pytest.raises(WorkStopped, match=r"large\.bin.* cannot be written"):
        run.write_bytes("large.bin", bytes(12 << 20))
    assert between.failed
    between.fail("busy", 0)
    assert run.read_bytes("large.bin") == b"before"


def test_what_no_retry_mends_is_said_at_once(store: Bucket, between: Proxy) -> None:
    with pytest.raises(WorkStopped, match=r"s3://nowhere/run/config.yaml.*cannot be written: .*NO_SUCH_BUCKET"):
        Run(store.uri("run", between.port).replace("//minos/", "//nowhere/")).write_bytes("config.yaml", b"x")
    assert len(between.asked) == 1, "not again"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:very/secret@bucket/run",
        "s3://AKIA123:very-secret@bucket/run",
        "s3://AKIA123@bucket/run?region=us-east-1",
        "gs://bucket/run?access_token=very-secret",
        "abfs://:very-secret@account/run",
        "abfs://files@account/run?se=2027&sig=very-secret",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    from minos_ray.cli import main

    with pytest.raises(UserError, match=r"^run: .* holds a key") as refused:
        Run(uri)
    assert not re.search("secret|AKIA123", str(refused.value).replace("AWS_SECRET", ""))
    for key, value in {
        "problems.test.path": uri,
        "problems.test.options.files": json.dumps([uri]),
        "problems.test.options.files.url": json.dumps([{"url": uri}]),
    }.items():
        with pytest.raises(UserError, match=rf"^{re.escape(key)}: .* holds a key"):
            open_elsewhere(tmp_path, f"{key.removesuffix('.url')}={value}")
    assert not (tmp_path / "run/config.yaml").exists()
    assert main(["status", uri]) == 2


def test_an_option_that_actors_would_not_get_is_refused() -> None:
    with pytest.raises(UserError, match=r"'tls_verify_certificates' .* would not reach the actors"):
        Run("s3://bucket/run?endpoint_override=https://minio&tls_verify_certificates=false")


def open_elsewhere(folder: Path, override: str) -> None:
    """Starts a run with an override that names an address."""
    from minos_ray.config.load import load_config
    from minos_ray.pipeline import open_run

    open_run(load_config("gsm8k-mistral-7b", [f"run={folder / 'run'}", override]))


@pytest.mark.parametrize(
    "path",
    [
        "s3://b/run?region=us-east-1",
        "s3://b/at:9@home/run",
        "gs://anonymous@b/run",
        "hdfs://user@host:9000/run",
        "hdfs://host:9000/a@b/run",
        "file:///12:30@home/run",
    ],
)
def test_an_address_without_a_key_is_none_to_refuse(path: str) -> None:
    filesystem.require_no_key("run", path)
    assert filesystem.inside(path, "a/b") == path.replace("/run", "/run/a/b")


def test_an_object_is_put_once_and_there_are_no_folders(run: Run, between: Proxy) -> None:
    """No copy and no marker: a file is one request, and nothing is left aside by a writer that is killed."""
    between.asked.clear()
    run.write_bytes("logs/a/b.json", b"{}")
    assert [request.partition("?")[0] for request in between.asked] == [f"PUT /{run.root}/logs/a/b.json"]


def test_it_stays_patient_in_another_process(run: Run) -> None:
    import pickle

    sent = pickle.loads(pickle.dumps(run.fs))
    assert isinstance(sent, filesystem.PatientS3)
    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(run.fs)
