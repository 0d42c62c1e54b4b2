"""The candidate browser of the report in headless Chromium: size, time to load, to open a problem, to sort again.

python benchmarks/browser.py [--problems 100] [--candidates 256] [--rounds 9] [--sentences 2000] [--out FILE.json]

The texts are random words, hence harder to pack than a model's: `--sentences` different ones per problem.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from minos_ray.report.stage import gather, render
from tests.report.browsing import make_browsing_run
from tests.report.synthetic import config

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
# Milliseconds from the click until the new rows are laid out.
SORT = """name => {
  const start = performance.now();
  document.querySelector(`#browser-head [data-by="${name}"]`).click();
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""
OPEN = """place => new Promise(done => {
  const rows = document.getElementById("browser-rows"), list = document.getElementById("browser-problem");
  const start = performance.now();
  new MutationObserver((_, watch) => {
    watch.disconnect();
    document.body.getBoundingClientRect();
    done(performance.now() - start);
  }).observe(rows, { childList: true });
  list.value = place;
  list.dispatchEvent(new Event("change"));
})"""


def written(folder: str, args: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """The report of a made-up run, and what it took to make."""
    run = make_browsing_run(f"{folder}/run", args.problems, args.candidates, args.sentences)
    start = time.perf_counter()
    facts = gather(config(run.path, report={"problems": args.problems}), run)
    path = Path(folder) / "report.html"
    path.write_text(render(facts), encoding="utf-8")
    packed = sum(len(chunk) for chunk in facts.browser.chunks) if facts.browser else 0
    sizes = {"file MB": path.stat().st_size / 1e6, "of that candidates MB": packed / 1e6}
    return path, {**sizes, "seconds to write the report": time.perf_counter() - start}


def measured(page: Page, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Medians in milliseconds, and the most elements that the browser has."""
    loads, opens, sorts, elements = [], [], [], 0
    for _ in range(args.rounds):
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("#browser-rows tr")
        loads.append(1000 * (time.perf_counter() - start))
    for k in range(args.rounds):
        opens.append(page.evaluate(OPEN, str(1 + k * max(1, (args.problems - 2) // args.rounds))))
        sorts += [page.evaluate(SORT, name) for name in ("orm-base", "prm-base", "agreement", "prm-minos")]
        elements = max(elements, page.locator("#browser *").count())
    found = {"ms to load, first problem open": loads, "ms to open a problem": opens, "ms to sort again": sorts}
    return {name: statistics.median(values) for name, values in found.items()} | {"elements in the browser": elements}


def main() -> None:
    """Makes the page, measures it, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("problems", 100), ("candidates", 256), ("rounds", 9), ("sentences", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path, found = written(folder, args)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found |= measured(browser.new_page(viewport={"width": 1300, "height": 900}), path, args)
        print(f"{args.problems} problems x {args.candidates} candidates, Chromium {browser.version}")
        browser.close()
    for name, value in found.items():
        print(f"  {name:34} {value:10,.1f}")
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
