"""One trial: the stages of a run in a directory of its own; what is complete and fresh there is not done again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minos_ray.config.load import Config, resolve
from minos_ray.evaluation.headline import headline_of
from minos_ray.graph.specs import FUNCTIONS, Spec, specs
from minos_ray.graph.state import state_of
from minos_ray.observe.failure import reported
from minos_ray.store.run import Manifest, Run
from minos_ray.study.space import Trial, trial_config, trial_run, verifiers

STAGES = ("sft", "reward", "score", "evaluate")
METHODS = {"best_of_n": "best-of-n", "weighted_vote": "weighted-vote", "self_consistency": "self-consistency"}
MEASURES = ("accuracy", "f1", "auc")


def made(config: Config) -> list[Spec]:
    """The artefacts that a trial of this config makes; stage 1 only where a verifier starts from it."""
    return [spec for spec in specs(config) if spec.stage in STAGES]


def is_done(config: Config, run: Run, trial: Trial) -> bool:
    """Whether everything that the trial makes is complete and fresh."""
    own, directory = trial_config(config, run, trial), trial_run(run, trial)
    return all(state_of(own, directory, spec).state == "done" for spec in made(own))


def run_trial(config: Config, run: Run, trial: Trial) -> None:
    """Stage 1 (one critic for all kinds), stage 2, scores, evaluation; the trial's inputs are there already."""
    own, directory = trial_config(config, run, trial), trial_run(run, trial)
    for stage in dict.fromkeys(spec.stage for spec in made(own)):
        with reported(directory, stage):
            resolve(FUNCTIONS[stage])(own, directory)


def result_rows(config: Config, run: Run, trial: Trial) -> list[dict[str, Any]]:
    """Rows of the sweep's table, one per kind; selection is measured at the headline n."""
    own, directory = trial_config(config, run, trial), trial_run(run, trial)
    evaluation = json.loads(directory.read_bytes("evaluation.json"))
    manifests = {spec.artefact: directory.artefact(spec.artefact).manifest() for spec in made(own)}
    return [row(trial, verifier, evaluation, manifests) for verifier in verifiers(config, trial)]


def row(
    trial: Trial, verifier: str, evaluation: Mapping[str, Any], manifests: Mapping[str, Manifest | None]
) -> dict[str, Any]:
    """What one verifier of a trial reached, and the seconds that its critic, itself and its scores took."""
    n = headline_of(evaluation["methods"])
    judged = next(m for m in evaluation["meta"] if (m["verifier"], m["level"]) == (verifier, "outcome"))
    critic = manifests.get("models/critic")
    took = [critic, manifests[f"models/{verifier}"], manifests[f"scores/{verifier}"]]
    return {
        "critiques": trial.critiques,
        "kind": verifier.partition("-")[0],
        "seed": trial.seed,
        "verifier": verifier,
        "trained_critiques": critic.counts["rows"] if critic else 0,
        "n": n,
        "problems": problems_at(evaluation["methods"], n),
        **{k: v for name in METHODS for k, v in selection(evaluation["methods"], name, verifier, n).items()},
        **{measure: judged[measure] for measure in MEASURES},
        "seconds": round(sum(manifest.details["seconds"] for manifest in took if manifest)),
    }


def problems_at(methods: Sequence[Mapping[str, Any]], n: int) -> int:
    """How many problems have n candidates."""
    return next(m["problems"] for m in methods if (m["method"], m["n"]) == (METHODS["self_consistency"], n))


def selection(methods: Sequence[Mapping[str, Any]], column: str, verifier: str, n: int) -> dict[str, float]:
    """Accuracy at n, with its interval, of a method with this verifier, or of one that needs none."""
    wanted = (METHODS[column], n)
    found = next(m for m in methods if (m["method"], m["n"]) == wanted and m["verifier"] in (verifier, ""))
    return {column: found["accuracy"], f"{column}_low": found["ci_low"], f"{column}_high": found["ci_high"]}
