"""The same numbers as Ray metrics: every node of a Ray serves those of its processes to Prometheus."""

import sys
from collections.abc import Mapping
from typing import Any

TAGS = ("stage", "run")
# Name -> (key of a record, what it is).
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
# What is over with the work.
PASSING = ("rate", "tokens_per_s", "queue", "in_flight")
FAILURES = ("minos_failures", "What failed or was refused, by reason")


class RayMetrics:
    """Sends records of one piece of work; without a Ray nobody would scrape them, and nothing is sent."""

    def __init__(self, stage: str, run: str) -> None:
        self.tags = {"stage": stage, "run": run}
        self.sent: dict[str, float] = {}

    def send(self, record: Mapping[str, Any]) -> None:
        """Counters grow by what is new since the last record, gauges are set; rates and queues are nil at the end."""
        if not connected():
            return
        for name, (key, description) in COUNTERS.items():
            self.grow(name, description, record.get(key) or 0, self.tags)
        for name, (key, description) in GAUGES.items():
            if record.get(key) is not None:
                over = key in PASSING and record["state"] != "running"
                gauge(name, description).set(0.0 if over else float(record[key]), tags=self.tags)
        for reason, number in record["failures"].items():
            self.grow(*FAILURES, number, {**self.tags, "reason": reason})

    def grow(self, name: str, about: str, now: float, tags: dict[str, str]) -> None:
        """Adds what a counter lacks. What was done before this process began is not its work."""
        key = f"{name} {tags.get('reason', '')}"
        growth = now - self.sent.get(key, 0)
        if growth > 0:
            counter(name, about, tuple(tags)).inc(growth, tags=tags)
            self.sent[key] = now


def connected() -> bool:
    """Whether this process belongs to a Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def counter(name: str, about: str, tags: tuple[str, ...]) -> Any:
    """A counter of Ray; those of one name are one."""
    from ray.util.metrics import Counter

    return Counter(name, description=about, tag_keys=tags)


def gauge(name: str, about: str) -> Any:
    """A gauge of Ray; those of one name are one."""
    from ray.util.metrics import Gauge

    return Gauge(name, description=about, tag_keys=TAGS)
