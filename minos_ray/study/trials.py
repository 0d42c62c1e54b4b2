"""Trials on Ray Tune: as many at once as the cluster has room for, each with every worker that it needs.

A trial is the stages of a run in a directory of its own, which skip what is complete and fresh; and its results.
"""

import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minos_ray.cluster.bundles import Bundles, bundles, on_one
from minos_ray.cluster.connect import join, quiet_data, require
from minos_ray.cluster.nodes import alive
from minos_ray.config.load import Config, resolve
from minos_ray.config.resources import Actors, Resources, Workers
from minos_ray.errors import WorkStopped
from minos_ray.evaluation.outcomes import SINGLE, headline_of
from minos_ray.graph.specs import FUNCTIONS, critic_chosen, critic_name
from minos_ray.graph.state import state_of
from minos_ray.observe.failure import cause, reported, without_secrets
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Manifest, Run
from minos_ray.study.grid import TRIAL_STAGES, Grid, Trial, artefacts_of, copy_fitting
from minos_ray.training.log import first_at

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

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
# Drivers of trials take no CPU: else they could fill the cluster while no group of workers fits. They sit on the head,
# or beside the driver of the command where no head is declared: each node declares its address.
HEAD, SLIVER = "node:__internal_head__", 0.001


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
    critics = trained_critics(grid.trial_config(trial), run) if trial.arm.critiques else []
    rows = sum(critic.counts["rows"] for critic in critics)
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
            seconds = sum(manifest.details["seconds"] for manifest in (*critics, *parts) if manifest)
            row |= {"trained_critiques": rows, "seconds": round(seconds)}
        else:
            base = grid.trial_run(Trial(grid.amounts[0], trial.seed))
            curve, goal = learning_curve(run, verifier), learning_curve(base, f"{kind}-base")[-1]["f1"]
            row |= {
                "stage_1_rows": rows,
                "stage_1_steps": sum(critic.details["steps"] for critic in critics),
                "stage_1_tokens": sum(critic.details["tokens"] for critic in critics),
                "steps": curve[-1]["step"],
                "steps_to_base": first_at(curve, goal),
            }
        yield {name: row[name] for name in COLUMNS[grid.command]}


def trained_critics(config: Config, run: Run) -> list[Manifest]:
    """The critic of stage 1, and those of the rounds up to the one that stage 2 starts from."""
    names = ["models/critic"]
    while names[-1] != critic_chosen(config, run):
        names.append(f"models/{critic_name(len(names))}")
    return [manifest for name in names if (manifest := run.artefact(name).manifest())]


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


def run_unfinished(grid: Grid) -> int:
    """Runs every trial that is not complete and fresh, each in a process of its own; how many there were.

    WorkStopped when trials failed; the others are done then. Ray Tune's own state is not needed again.
    """
    todo = {grid.name(trial): trial for trial in grid.trials if not is_done(grid, trial)}
    if todo:
        run_trials(grid, todo)
    grid.run.delete(f"{grid.command}/tune")  # also where the command was killed after the last trial
    return len(todo)


def run_trials(grid: Grid, todo: Mapping[str, Trial]) -> None:
    """The trials, by name; WorkStopped when some failed."""
    join(grid.config.resources)
    resources, command = grid.config.resources, grid.command
    judges = any(grid.trial_config(trial).refine.rounds for trial in todo.values())
    names = ("train", "score", "judge") if judges else ("train", "score")
    for name in names:
        require(name, getattr(resources, name), resources.wait_s)
    pools = [bundles(getattr(resources, name)) for name in names]
    nodes = [functools.reduce(lambda free, pool: pool.offer(free, n.labels), pools, n.resources) for n in alive()]
    at_once = trials_at_once(resources, nodes, len(todo), judges)
    print(f"{command}: {len(todo)} trials, {at_once} at once", flush=True)
    with Progress(command, len(grid.trials), "trials", len(grid.trials) - len(todo), grid.run) as progress:
        results = tuner(grid, todo, at_once, progress).fit()
        errors = {(result.config or {})["trial"]: result.error for result in results if result.error}
        if errors:
            progress.give_up()
    if errors:
        causes = [f"{name}: {without_secrets(cause(error))}" for name, error in errors.items()]
        print("\n".join(f"{command}: {line}" for line in causes), flush=True)
        raise WorkStopped(
            f"{command}: {len(errors)} of {len(todo)} trials failed ({causes[0]}); "
            "finished ones are kept, the same command does the rest"
        ) from next(iter(errors.values()))


def trials_at_once(resources: Resources, nodes: Sequence[Mapping[str, float]], most: int, judges: bool = False) -> int:
    """How many trials fit in whichever phase they are; at least one, which then waits for its room, and `most`.

    A trial holds its group of workers, then its scorers; a critic's rounds hold engines of the judge (`judges`).
    """
    pools = [resources.train, resources.score, *([resources.judge] if judges else [])]

    def fit(pool: Bundles) -> int:
        return sum(on_one(pool, node) for node in nodes) // pool.count if pool.bundle else most

    def needed(pool: Actors | Workers) -> Bundles:
        """An elastic training may take all that it is allowed."""
        need = bundles(pool)
        return need._replace(count=pool.most) if isinstance(pool, Workers) else need

    return max(1, min(most, *(fit(needed(pool)) for pool in pools)))


def tuner(grid: Grid, todo: Mapping[str, Trial], at_once: int, progress: Progress) -> "Tuner":
    """Ray Tune over the trials."""
    os.environ.update({"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one draws boxes
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are printed once, at the end

    def driver(values: dict[str, str]) -> None:
        quiet_data()
        run_trial(grid, todo[values["trial"]])

    cluster = ray.cluster_resources()
    node = HEAD if HEAD in cluster else f"node:{ray.util.get_node_ip_address()}"
    return tune.Tuner(
        tune.with_resources(driver, tune.PlacementGroupFactory([{node: SLIVER}])),
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        param_space={"trial": tune.grid_search(list(todo))},
        run_config=tune.RunConfig(
            name="tune",
            storage_path=f"{grid.run.root}/{grid.command}",
            storage_filesystem=grid.run.fs,
            verbose=0,
            callbacks=[lines(grid.command, progress)],
        ),
    )


def lines(command: str, progress: Progress) -> "Callback":
    """One line where a trial begins and ends, in place of Ray Tune's own tables."""
    from ray.tune.progress_reporter import TrialProgressCallback

    def say(trial: Any, event: str) -> None:
        print(f"{command}: {trial.config['trial']} {event}", flush=True)

    # Ray Tune adds its own reporter unless one of the callbacks is a TrialProgressCallback.
    class Lines(TrialProgressCallback):
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            return None

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            say(trial, "begins")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            progress.advance(1)
            say(trial, f"is done ({progress.done} of {progress.total})")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            progress.note({"trial": progress.failures.get("trial", 0) + 1})
            say(trial, "failed")

    return Lines()
