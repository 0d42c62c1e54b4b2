"""One trial of a study: the stages of a run in a directory of its own; what is complete and fresh is not done again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from minos_ray.config.load import Config, resolve
from minos_ray.evaluation.headline import SINGLE, headline_of
from minos_ray.graph.specs import FUNCTIONS
from minos_ray.graph.state import state_of
from minos_ray.observe.failure import reported
from minos_ray.store.run import Run
from minos_ray.study.arms import Trial, amounts, trial_config, trial_run, verifiers
from minos_ray.study.data import give, is_given, made
from minos_ray.study.sweep_trial import METHODS, problems_at, selection
from minos_ray.training.log import first_at

Curve = list[dict[str, Any]]


def is_done(config: Config, run: Run, trial: Trial) -> bool:
    """Whether the trial has the data of its seed, and everything that it makes of them is complete and fresh."""
    own, directory = trial_config(config, run, trial), trial_run(run, trial)
    fresh = all(state_of(own, directory, spec).state == "done" for spec in made(own))
    return fresh and is_given(config, run, trial)


def run_trial(config: Config, run: Run, trial: Trial) -> None:
    """Takes the data of its seed, then does stage 1 (one critic for all kinds), stage 2, scores and evaluation."""
    give(config, run, trial)
    own, directory = trial_config(config, run, trial), trial_run(run, trial)
    for stage in dict.fromkeys(spec.stage for spec in made(own)):  # each skips what is fresh by then
        with reported(directory, stage):
            resolve(FUNCTIONS[stage])(own, directory)


def result_rows(config: Config, run: Run, trial: Trial) -> Iterator[dict[str, Any]]:
    """Rows of the study's table, one per kind; selection is measured at the headline n."""
    directory = trial_run(run, trial)
    evaluation = json.loads(directory.read_bytes("evaluation.json"))
    n = headline_of(evaluation["methods"])
    critic = directory.artefact("models/critic").manifest() if trial.arm.critiques else None
    base = trial_run(run, Trial(amounts(config)[0], trial.seed))
    for kind, verifier in zip(config.study.kinds, verifiers(config, trial.arm), strict=True):
        curve, goal = learning_curve(directory, verifier), learning_curve(base, f"{kind}-base")[-1]["f1"]
        yield {
            "arm": trial.arm.name,
            "critiques": trial.arm.critiques,
            "kind": kind,
            "seed": trial.seed,
            "verifier": verifier,
            "stage_1_rows": critic.counts["rows"] if critic else 0,
            "stage_1_steps": critic.details["steps"] if critic else 0,
            "stage_1_tokens": critic.details["tokens"] if critic else 0,
            "n": n,
            "problems": problems_at(evaluation["methods"], n),
            **judged(evaluation["meta"], verifier),
            **{k: v for name in METHODS for k, v in selection(evaluation["methods"], name, verifier, n).items()},
            "one_sample": alone(evaluation["methods"], SINGLE, 1),
            "oracle": alone(evaluation["methods"], "pass@n", n),
            "steps": curve[-1]["step"],
            "steps_to_base": first_at(curve, goal),
        }


def learning_curve(run: Run, verifier: str) -> Curve:
    """What was measured on held-out rows while a verifier was trained."""
    return run.artefact(f"models/{verifier}").manifest().details["curve"]


def judged(meta: list[Mapping[str, Any]], verifier: str) -> dict[str, float | None]:
    """Outcome measures, and the first-error F1 of steps where there are step scores."""
    by_level = {row["level"]: row for row in meta if row["verifier"] == verifier}
    outcome = {measure: by_level["outcome"][measure] for measure in ("accuracy", "f1", "auc")}
    return outcome | {"step_f1": by_level["step"]["first_error_f1"] if "step" in by_level else None}


def alone(methods: list[Mapping[str, Any]], name: str, n: int) -> float:
    """Accuracy at n of a method that needs no verifier."""
    return next(m["accuracy"] for m in methods if (m["method"], m["n"]) == (name, n))
