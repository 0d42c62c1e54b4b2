"""Numbers of running work: a JSONL in the run directory, and Ray metrics where Prometheus reads them."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from minos_ray.observe import progress
from minos_ray.observe.progress import Meter, Progress
from minos_ray.store.run import Run


def records(run: Run) -> list[dict]:
    """All records of the one file there is."""
    (name,) = run.files("logs/metrics")
    return [json.loads(line) for line in run.read_bytes(f"logs/metrics/{name}").decode().splitlines()]


def test_records_of_work_that_goes_on_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = Run(str(tmp_path)), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("sample", 100, "candidates", done=20, run=run) as shown:
        for second in (4, 8, 12):
            now[0] = 100.0 + second
            shown.note({"engine_died": 2}, tokens=50 * second, queue=80 - second)
            shown.advance(4)
            shown.beat()
    first, last = records(run)
    assert (first["state"], first["stage"], first["unit"], first["seconds"]) == ("running", "sample", "candidates", 12)
    assert (first["done"], first["before"], first["total"], first["remaining"]) == (12, 20, 100, 68)
    assert (first["rate"], first["tokens"], first["tokens_per_s"], first["queue"]) == (1.0, 600, 50.0, 68)
    assert first["failures"] == {"engine_died": 2}
    assert last == {**first, "state": "done", "time": last["time"]}


def test_work_that_fails_says_so(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    with pytest.raises(KeyError), Progress("sample", 100, run=run):
        raise KeyError
    assert [record["state"] for record in records(run)] == ["failed"]


def test_files_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MAX_RECORDS", 10)
    kept = Meter(Run(str(tmp_path)), "read solutions")
    for number in range(100):
        kept.add({"state": "running", "done": number, "failures": {}})
    kept.add({"state": "done", "done": 100, "failures": {}})
    found = [record["done"] for record in records(kept.run)]
    assert len(found) <= 10 and found[0] == 0 and found[-1] == 100
    assert kept.stride > 10, "records then come more rarely"


def test_storage_that_errors_costs_no_work_and_no_record(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    kept = Meter(Run(str(tmp_path)), "sample")
    kept.add({"state": "running", "done": 1, "failures": {}})
    (tmp_path / "logs").unlink()
    kept.add({"state": "running", "done": 2, "failures": {}})
    assert [(r["done"], r.get("unwritten")) for r in records(kept.run)] == [(1, None), (2, 1)]


def scraped(wanted: str, value: float, seconds: float = 120) -> dict[str, float]:
    """Metrics of ours at the node's Prometheus port, as soon as `wanted` is so much: name{stage,reason} -> value."""
    import ray

    (node,) = ray.nodes()
    deadline, found = time.monotonic() + seconds, {}
    while found.get(wanted) != value and time.monotonic() < deadline:
        time.sleep(1)
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=60) as reply:
            lines = [line for line in reply.read().decode().splitlines() if line.startswith("ray_minos_")]
        for line in lines:
            name, tags = line.partition("{")[::2]
            told = dict(tag.split("=", 1) for tag in tags.partition("}")[0].split(","))
            found[" ".join([name, *(told[k].strip('"') for k in ("stage", "run", "reason") if k in told)])] = float(
                line.rpartition(" ")[2]
            )
    return found


@pytest.mark.slow
def test_prometheus_finds_the_numbers_at_the_node(local_ray: None, tmp_path: Path) -> None:
    with Progress("sample", 100, "candidates", done=20, run=Run(str(tmp_path / "mine"))) as shown:
        shown.note({"engine_died": 2, "refused_too_long": 0}, tokens=600, queue=68, in_flight=5, cost_usd=1.5)
        shown.advance(12)
        shown.last_record -= 60
        shown.beat()
        found = scraped("ray_minos_failures_total sample mine engine_died", 2)
    assert found["ray_minos_done_total sample mine"] == 12
    assert found["ray_minos_tokens_total sample mine"] == 600
    assert found["ray_minos_failures_total sample mine engine_died"] == 2
    assert found["ray_minos_total sample mine"] == 100
    assert found["ray_minos_remaining sample mine"] == 68
    assert found["ray_minos_queue sample mine"] == 68
    assert found["ray_minos_in_flight sample mine"] == 5
    assert found["ray_minos_cost_usd sample mine"] == 1.5
    assert found["ray_minos_rate sample mine"] > 0 < found["ray_minos_tokens_per_s sample mine"]
    after = scraped("ray_minos_queue sample mine", 0)
    assert after["ray_minos_rate sample mine"] == 0 == after["ray_minos_in_flight sample mine"]
    assert after["ray_minos_done_total sample mine"] == 12
