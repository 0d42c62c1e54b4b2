"""One trial: the stages of a run in a directory of its own, which skip what is complete and fresh; and its results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minos_ray.config.load import Config, resolve
from minos_ray.evaluation.outcomes import SINGLE, headline_of
from minos_ray.graph.specs import FUNCTIONS
from minos_ray.graph.state import state_of
from minos_ray.observe.failure import reported
from minos_ray.store.run import Run
from minos_ray.study.data import TRIAL_STAGES, artefacts_of, copy_fitting
from minos_ray.study.grid import Grid, Trial
from minos_ray.training.log import first_at

METHODS = {"best_of_n": "best-of-n", "weighted_vote": "weighted-vote", "self_consistency": "self-consistency"}
SELECTION = [f"{name}{end}" for name in METHODS for end in ("", "_low", "_high")]
# The tables of results, a row per trial and kind.
COLUMNS = {
    "sweep": [
        *("critiques", "kind", "seed", "verifier", "trained_critiques", "n", "problems", *SELECTION),
        *("accuracy", "f1", "auc", "seconds"),
    ],
    "study": [
        *("arm", "critiques", "kind", "seed", "verifier", "stage_1_rows", "stage_1_steps", "stage_1_tokens"),
        *("n", "problems", "accuracy", "f1", "auc", "step_f1", *SELECTION),
        *("one_sample", "oracle", "steps", "steps_to_base"),
    ],
}
Curve = list[dict[str, Any]]
Row = dict[str, Any]


def is_done(grid: Grid, trial: Trial) -> bool:
    """Whether everything that the trial makes is complete and fresh."""
    config, run = grid.trial_config(trial), grid.trial_run(trial)
    return are_done(config, run, TRIAL_STAGES)


def are_done(config: Config, run: Run, stages: Sequence[str]) -> bool:
    """Whether the artefacts of these stages are complete and fresh."""
    return all(state_of(config, run, spec).state == "done" for spec in artefacts_of(config, stages))


def run_trial(grid: Grid, trial: Trial) -> None:
    """Stage 1 (one critic for all kinds), its rounds, stage 2, scores, evaluation; the trial has its data already.

    A critic that is Minos' own is taken from there, where that trial has come as far; one that the trial has trained
    itself stays, or what was made from it would be made again.
    """
    config, run = grid.trial_config(trial), grid.trial_run(trial)
    if trial.arm.critiques and trial.arm != grid.amounts[-1] and not are_done(config, run, ("sft",)):
        copy_fitting(config, grid.trial_run(Trial(grid.amounts[-1], trial.seed)), run, ("sft",))
    for stage in dict.fromkeys(spec.stage for spec in artefacts_of(config, TRIAL_STAGES)):
        with reported(run, stage):
            resolve(FUNCTIONS[stage])(config, run)


def result_rows(grid: Grid, trial: Trial) -> Iterator[Row]:
    """The trial's rows of the table of results, one per kind; selection is measured at the headline n."""
    run = grid.trial_run(trial)
    evaluation = json.loads(run.read_bytes("evaluation.json"))
    critic = run.artefact("models/critic").manifest() if trial.arm.critiques else None
    rows = critic.counts["rows"] if critic else 0
    for kind, verifier in zip(grid.kinds, grid.verifiers(trial.arm), strict=True):
        row = {
            "arm": trial.arm.name,
            "critiques": trial.arm.critiques,
            "kind": kind,
            "seed": trial.seed,
            "verifier": verifier,
            **measures(evaluation, verifier),
        }
        if grid.command == "sweep":
            parts = [run.artefact(f"{part}/{verifier}").manifest() for part in ("models", "scores")]
            seconds = sum(manifest.details["seconds"] for manifest in (critic, *parts) if manifest)
            row |= {"trained_critiques": rows, "seconds": round(seconds)}
        else:
            base = grid.trial_run(Trial(grid.amounts[0], trial.seed))
            curve, goal = learning_curve(run, verifier), learning_curve(base, f"{kind}-base")[-1]["f1"]
            row |= {
                "stage_1_rows": rows,
                "stage_1_steps": critic.details["steps"] if critic else 0,
                "stage_1_tokens": critic.details["tokens"] if critic else 0,
                "steps": curve[-1]["step"],
                "steps_to_base": first_at(curve, goal),
            }
        yield {name: row[name] for name in COLUMNS[grid.command]}


def measures(evaluation: Mapping[str, Any], verifier: str) -> Row:
    """What evaluation.json says of one verifier, and of what needs none; None for what it does not have."""
    methods, n = evaluation["methods"], headline_of(evaluation["methods"])
    levels = {entry["level"]: entry for entry in evaluation["meta"] if entry["verifier"] == verifier}
    row = {"n": n, "problems": method_at(methods, METHODS["self_consistency"], n)["problems"]}
    for column, method in METHODS.items():
        entry = method_at(methods, method, n, verifier)
        row |= {column: entry["accuracy"], f"{column}_low": entry["ci_low"], f"{column}_high": entry["ci_high"]}
    row |= {measure: levels["outcome"][measure] for measure in ("accuracy", "f1", "auc")}
    row["step_f1"] = levels["step"]["first_error_f1"] if "step" in levels else None
    return row | {
        "one_sample": method_at(methods, SINGLE, 1)["accuracy"],
        "oracle": method_at(methods, "pass@n", n)["accuracy"],
    }


def method_at(methods: Sequence[Mapping[str, Any]], name: str, n: int, verifier: str = "") -> Mapping[str, Any]:
    """The entry of a method at n, with this verifier or with none."""
    return next(m for m in methods if (m["method"], m["n"]) == (name, n) and m["verifier"] in (verifier, ""))


def learning_curve(run: Run, verifier: str) -> Curve:
    """What was measured on held-out rows while a verifier was trained."""
    manifest = run.artefact(f"models/{verifier}").manifest()
    assert manifest is not None
    return manifest.details["curve"]
