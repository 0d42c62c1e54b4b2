"""The stage that writes RUN/report.html."""

import time

from minos_ray.config.load import Config
from minos_ray.graph.specs import begin, fresh
from minos_ray.report.gather import gather
from minos_ray.report.page import render
from minos_ray.store.run import Manifest, Run

NAME = "report.html"


def report(config: Config, run: Run) -> Manifest:
    """Writes the report; skipped while what it shows (`optional`, too) and the section `report` are the same."""
    if done := fresh(config, run, NAME):
        return done
    target = begin(config, run, NAME)
    start = time.monotonic()
    facts = gather(config, run)
    page = render(facts).encode()
    run.write_bytes(NAME, page)
    counts = {
        "bytes": len(page),
        "candidates": len(facts.gallery.samples),
        "browser_problems": len(facts.browser.chunks) if facts.browser else 0,
        "trials": len(facts.trials),
    }
    return target.complete(counts, {}, {"seconds": round(time.monotonic() - start, 2)})
