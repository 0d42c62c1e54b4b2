"""What the benchmarks share: alternating runs of rivals in one process, medians and ratios as a table and JSON."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

Contender = Callable[[], object]


def alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; the contenders take turns, so that a noisy machine is noisy for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(title: str, amount: int, unit: str, seconds: dict[str, list[float]], out: Path | None = None) -> None:
    """Prints rate (median) and the ratio of the first contender's rate to each."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = next(iter(medians.values()))
    print(f"{title}: {amount:,} {unit}, medians of {len(next(iter(seconds.values())))} alternating runs")
    for name, median in medians.items():
        print(f"  {name:34} {median:8.2f} s {amount / median:12,.0f} {unit}/s   first is {median / ours:5.2f} x")
    if out is not None:
        out.write_text(json.dumps({"title": title, "amount": amount, "unit": unit, "seconds": seconds}, indent=1))
