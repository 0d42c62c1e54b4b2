"""The numbers of one piece of work while it runs, as a JSONL file in the run directory and as Ray metrics."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from minos_ray.errors import StorageFailed
from minos_ray.store.run import Run

FOLDER = "logs/metrics"
# The file is written anew at each record, since object stores cannot append. Halving keeps it small.
MAX_RECORDS = 1000
Record = dict[str, Any]
TAGS = ("stage", "run")
# Name -> (key of a record, description).
COUNTERS = {
    "minos_done": ("done", "Units of work that were finished"),
    "minos_tokens": ("tokens", "Tokens that were made, read or trained on"),
}
GAUGES = {
    "minos_total": ("total", "Units of work in all"),
    "minos_remaining": ("remaining", "Units of work that are still to be done"),
    "minos_rate": ("rate", "Units of work per second"),
    "minos_tokens_per_s": ("tokens_per_s", "Tokens per second"),
    "minos_queue": ("queue", "What waits to be begun"),
    "minos_in_flight": ("in_flight", "Requests that the critic's endpoint is working on"),
    "minos_cost_usd": ("cost_usd", "What the critic has cost"),
}
# Gauges that are 0 when the work is over.
ZERO_AT_END = ("rate", "tokens_per_s", "queue", "in_flight")
FAILURES = ("minos_failures", "What failed or was refused, by reason")


class Meter:
    """Writes the records of one piece of work of this process.

    All go to Ray. The file keeps every `stride`-th; the stride doubles whenever the file has grown too long.

    A failing storage stops no work: failed writes are counted in `unwritten`, and the next write has their records.
    """

    def __init__(self, run: Run, stage: str) -> None:
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.run, self.name = run, f"{FOLDER}/{stage.replace(' ', '-')}-{began}-{os.getpid()}.jsonl"
        self.records: list[Record] = []
        self.taken, self.stride, self.unwritten = 0, 1, 0
        self.metrics = RayMetrics(stage, run.root.rstrip("/").rpartition("/")[2])

    def add(self, record: Record) -> None:
        """Adds a record with the present time."""
        self.metrics.send(record)
        self.taken += 1
        if self.taken % self.stride and record["state"] == "running":
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        late = {"unwritten": self.unwritten} if self.unwritten else {}
        self.records.append({"time": now, **record, **late})
        if len(self.records) > MAX_RECORDS:
            self.records = self.records[::2]
            self.stride *= 2
        try:
            self.run.write_bytes(self.name, "".join(json.dumps(r) + "\n" for r in self.records).encode())
        except StorageFailed:
            self.unwritten += 1


class RayMetrics:
    """Sends records of one piece of work as Ray metrics, which each node serves to Prometheus.

    Without a Ray nothing is sent.
    """

    def __init__(self, stage: str, run: str) -> None:
        self.tags = {"stage": stage, "run": run}
        self.sent: dict[str, float] = {}

    def send(self, record: Mapping[str, Any]) -> None:
        """Increases counters by what is new since the last record and sets gauges; some are 0 at the end."""
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            return
        from ray.util.metrics import Gauge

        for name, (key, description) in COUNTERS.items():
            self.increase(name, description, record.get(key) or 0, self.tags)
        for name, (key, description) in GAUGES.items():
            if record.get(key) is not None:
                is_over = key in ZERO_AT_END and record["state"] != "running"
                gauge = Gauge(name, description=description, tag_keys=TAGS)
                gauge.set(0.0 if is_over else float(record[key]), tags=self.tags)
        for reason, number in record["failures"].items():
            self.increase(*FAILURES, number, {**self.tags, "reason": reason})

    def increase(self, name: str, description: str, total: float, tags: dict[str, str]) -> None:
        """Increases a counter to `total`. Ray adds up counters of one name in a process."""
        from ray.util.metrics import Counter

        key = f"{name} {tags.get('reason', '')}"
        difference = total - self.sent.get(key, 0)
        if difference > 0:
            Counter(name, description=description, tag_keys=tuple(tags)).inc(difference, tags=tags)
            self.sent[key] = total
