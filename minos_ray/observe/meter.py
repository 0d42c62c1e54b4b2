"""The numbers of one piece of work while it runs: a JSONL in the run directory, and Ray metrics."""

import json
import os
import time
from typing import Any

from minos_ray.errors import StorageFailed
from minos_ray.observe.ray_metrics import RayMetrics
from minos_ray.store.run import Run

FOLDER = "logs/metrics"
# A file is written anew at each record, since object stores cannot append: it is kept small by halving.
MOST_RECORDS = 1000
Record = dict[str, Any]


class Meter:
    """Records of one piece of work of this process while it runs and at its end.

    All go to Ray; the file keeps every `stride`-th, which doubles whenever it has grown too long.

    Storage that errors costs no work: what could not be written is counted in `unwritten` and comes with the next.
    """

    def __init__(self, run: Run, stage: str) -> None:
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.run, self.name = run, f"{FOLDER}/{stage.replace(' ', '-')}-{began}-{os.getpid()}.jsonl"
        self.records: list[Record] = []
        self.taken, self.stride, self.unwritten = 0, 1, 0
        self.metrics = RayMetrics(stage, run.root.rstrip("/").rpartition("/")[2])

    def add(self, record: Record) -> None:
        """One more record, with the time of now."""
        self.metrics.send(record)
        self.taken += 1
        if self.taken % self.stride and record["state"] == "running":
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        late = {"unwritten": self.unwritten} if self.unwritten else {}
        self.records.append({"time": now, **record, **late})
        if len(self.records) > MOST_RECORDS:
            self.records = self.records[::2]
            self.stride *= 2
        try:
            self.run.write_bytes(self.name, "".join(json.dumps(r) + "\n" for r in self.records).encode())
        except StorageFailed:
            self.unwritten += 1
