"""The results of trials: a row of each, and what they say together: trend.json of a sweep, study.json of a study.

**Sweep.** All trials have the same problems, so seeds and problems are resampled together; see `evaluation.statistics`.

**Study.** Every seed has data of its own, and its arms share them: differences are taken within a seed. The mean of the
seeds' differences gets Student's t interval (95 %). Problems, candidates, critiques and trainings are all drawn anew
with the seed, so that this interval allows for the chance in each of them. Where a measure is a mean over problems, a
second interval resamples the problems of every seed and keeps the trained verifiers as they are.

**Labels.** How many times the labels of Minos base needs for the same measure: each seed's curves over the logarithm of
the labels are made monotone (isotonic regression), and the distance between them is averaged over the values that both
reach. Curves that share no value count with all that the amounts span, towards the better one: less than the truth.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import isotonic_regression

from minos_ray.config.load import Config
from minos_ray.errors import WorkStopped
from minos_ray.evaluation.comparison import SINGLE, headline_of, outcomes_of, read_outcomes
from minos_ray.evaluation.statistics import Ends, curve, one_more, percentiles, resampled_means, resamples, student
from minos_ray.graph.specs import critic_chosen, critic_name
from minos_ray.store.run import Manifest, Run
from minos_ray.study.grid import Arm, Grid, Trial
from minos_ray.training.results import first_at

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
OVER_PROBLEMS = ("best_of_n", "weighted_vote")
OVER_SEEDS = ("f1", "auc")
MEASURES = ("f1", "auc", "accuracy", "step_f1", "best_of_n", "weighted_vote")
LEVELS = 1000  # at which curves over labels are compared
SHARED = 1e-9  # values that curves over labels share, at least
WITHOUT_VERIFIER = ("one_sample", "self_consistency", "oracle")
Row = Mapping[str, Any]
Numbers = dict[str, Any]


def result_rows(grid: Grid, trial: Trial) -> Iterator[Numbers]:
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


def measures(evaluation: Mapping[str, Any], verifier: str) -> Numbers:
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


@dataclass(frozen=True)
class Results:
    """The rows of the table of results by arm, kind and seed; outcomes by problem are read when they are asked for."""

    grid: Grid
    table: Mapping[tuple[str, str, int], Row]
    outcomes: dict[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, grid: Grid, rows: Sequence[Row]) -> "Results":
        """The rows of all trials; those of a sweep name no arm, for its amount does."""
        names = {arm.critiques: arm.name for arm in grid.amounts}
        return cls(grid, {(row.get("arm") or names[row["critiques"]], row["kind"], row["seed"]): row for row in rows})

    def values(self, arm: Arm, kind: str, measure: str) -> np.ndarray:
        """[seeds]: what the verifiers of an arm reached; NaN where a trial has no such measure."""
        return np.array([self.table[arm.name, kind, seed][measure] for seed in self.grid.seeds], np.float64)

    def over_amounts(self, kind: str, measure: str) -> np.ndarray:
        """[seeds, amounts]."""
        return np.stack([self.values(arm, kind, measure) for arm in self.grid.amounts], axis=1)

    def by_problem(self, trial: Trial, kind: str, measure: str) -> np.ndarray:
        """[problems]: what a method of selection reached on each problem; NaN where candidates are too few."""
        name, verifier = self.grid.name(trial), self.grid.verifiers(trial.arm)[self.grid.kinds.index(kind)]
        if name not in self.outcomes:
            self.outcomes[name] = read_outcomes(self.grid.trial_run(trial))
        return outcomes_of(self.outcomes[name], METHODS[measure], verifier)

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Kinds and measures that every trial of a study has."""
        arms = self.grid.arms
        return [
            (kind, measure)
            for kind, measure in product(self.grid.kinds, MEASURES)
            if not any(np.isnan(self.values(arm, kind, measure)).any() for arm in arms)
        ]

    def minus(self, arm: Arm, other: Arm, kind: str, measure: str) -> Numbers:
        """Mean of one arm minus the other over the seeds, its intervals, and each seed's own; fractions."""
        differences = self.values(arm, kind, measure) - self.values(other, kind, measure)
        numbers = {"mean": float(differences.mean()), **student(differences), "seeds": differences.tolist()}
        if measure not in OVER_PROBLEMS:
            return numbers
        pairs = [
            [self.by_problem(Trial(side, seed), kind, measure) for side in (arm, other)] for seed in self.grid.seeds
        ]
        settings = self.grid.config.evaluate
        ends = over_problems([first - second for first, second in pairs], settings.bootstrap, settings.seed)
        return numbers | {"problems_low": ends["ci_low"], "problems_high": ends["ci_high"]}


def trends(grid: Grid, rows: Sequence[Row]) -> Numbers:
    """The content of trend.json; `rows` are those of all trials of the sweep."""
    results = Results.of_rows(grid, rows)
    pairs = (*product(grid.kinds, OVER_PROBLEMS), *product(grid.kinds, OVER_SEEDS))
    return {
        "amounts": [arm.critiques for arm in grid.amounts],
        "seeds": list(grid.seeds),
        "n": max(row["n"] for row in rows),
        "bootstrap": grid.config.evaluate.bootstrap,
        "curves": [sweep_curve(results, *pair) for pair in pairs],
    }


def sweep_curve(results: Results, kind: str, measure: str) -> Numbers:
    """Points and trend of the seeds and problems that every trial has a value for; the others are counted."""
    grid, settings = results.grid, results.grid.config.evaluate
    over_problems = measure in OVER_PROBLEMS
    if over_problems:
        values = np.stack(
            [[results.by_problem(Trial(arm, seed), kind, measure) for arm in grid.amounts] for seed in grid.seeds]
        )
        problems = ~np.isnan(values).any(axis=(0, 1))
    else:
        values, problems = results.over_amounts(kind, measure)[:, :, None], np.ones(1, dtype=bool)
    seeds = ~np.isnan(values[:, :, problems]).any(axis=(1, 2))
    entering, amounts = values[seeds][:, :, problems], [arm.critiques for arm in grid.amounts]
    return {
        "kind": kind,
        "measure": measure,
        "seeds": int(seeds.sum()),
        "problems": int(problems.sum()) if over_problems else None,
        "seeds_left_out": int((~seeds).sum()),
        "problems_left_out": int((~problems).sum()),
        "points": [],
        "trend": None,
        **(curve(entering, amounts, settings.bootstrap, settings.seed) if entering.size else {}),
    }


def compared(grid: Grid, rows: Sequence[Row]) -> Numbers:
    """The content of study.json; `rows` are those of all trials. WorkStopped where the primary measure is missing."""
    results, primary = Results.of_rows(grid, rows), grid.config.study.primary
    base, minos, measured = grid.amounts[0], grid.amounts[-1], results.measured
    if (primary.kind, primary.measure) not in measured:
        raise WorkStopped(
            f"study.primary: some trial has no {primary.measure} of its {primary.kind}; see {grid.run.at('study')}"
        )
    # When each seed's verifier first has the F1 on held-out rows with which its base ends; None: never.
    reached: list[Numbers] = []
    for kind, arm in product(grid.kinds, grid.arms):
        of_seeds = [results.table[arm.name, kind, seed] for seed in grid.seeds]
        last, steps = max(row["steps"] for row in of_seeds), [row["steps_to_base"] for row in of_seeds]
        reached.append({"arm": arm.name, "kind": kind, "steps": steps, "last": last})
    # What stage 1 of each arm was trained on: means over the seeds of its rows, steps and tokens.
    stage_1: list[Numbers] = []
    for arm in grid.arms:
        of_seeds = [results.table[arm.name, grid.kinds[0], seed] for seed in grid.seeds]
        means = {n: float(np.mean([row[f"stage_1_{n}"] for row in of_seeds])) for n in ("rows", "steps", "tokens")}
        stage_1.append({"arm": arm.name} | means)
    # Means and differences over the amounts of critiques, and the trend with seeds as blocks.
    curves: list[Numbers] = []
    for kind, measure in measured:
        values, settings = results.over_amounts(kind, measure)[:, :, None], grid.config.evaluate
        points = curve(values, [arm.critiques for arm in grid.amounts], settings.bootstrap, settings.seed)
        curves.append({"kind": kind, "measure": measure, "seeds": len(values)} | points)
    # Each arm's mean, and what it has more than base and than Minos.
    arms: list[Numbers] = []
    for (kind, measure), arm in product(measured, grid.arms):
        ends = {"minus_base": base, "minus_minos": minos}
        minus = {name: results.minus(arm, end, kind, measure) for name, end in ends.items() if end != arm}
        mean = float(results.values(arm, kind, measure).mean())
        arms.append({"arm": arm.name, "kind": kind, "measure": measure, "mean": mean} | minus)
    # The ablations that are compared with each other.
    versus: list[Numbers] = []
    ablations = {arm.name: arm for arm in grid.ablations}
    for kind, measure in measured:
        pairs = {
            f"{arm} minus {other}": results.minus(ablations[arm], ablations[other], kind, measure)
            for arm, other in grid.config.study.versus.items()
        }
        versus.append({"kind": kind, "measure": measure, "pairs": pairs})
    return {
        "seeds": list(grid.seeds),
        "n": max(row["n"] for row in rows),
        "primary": primary.model_dump() | results.minus(minos, base, primary.kind, primary.measure),
        "plain": {name: float(np.mean([row[name] for row in rows])) for name in WITHOUT_VERIFIER},
        "curves": curves,
        "arms": arms,
        "stage_1": stage_1,
        "versus": versus,
        "reached": reached,
        "labels": [label_efficiency(results, kind, measure) for kind, measure in measured if grid.labels],
        "critics": critics(grid),
    }


def label_efficiency(results: Results, kind: str, measure: str) -> Numbers:
    """Base and Minos over the amounts of labels, and the ratios of labels, and of steps, at equal measure.

    Minos' steps are those of both stages.
    """
    grid = results.grid
    amounts, *sides = zip(*grid.labels, strict=True)
    values = [np.stack([results.values(arm, kind, measure) for arm in arms], axis=1) for arms in sides]
    points = [[{"mean": float(column.mean()), **student(column)} for column in side.T] for side in values]
    tables = [[[results.table[arm.name, kind, seed] for arm in arms] for seed in grid.seeds] for arms in sides]
    steps = [np.array([[row["steps"] + row["stage_1_steps"] for row in rows] for rows in side]) for side in tables]
    entry: Numbers = {"kind": kind, "measure": measure, "amounts": list(amounts)}
    entry |= {"base": points[0], "minos": points[1]}
    for name, (base, minos) in {"ratio": [np.tile(amounts, (len(grid.seeds), 1))] * 2, "steps_ratio": steps}.items():
        of_seeds = [log_ratio(*curves) for curves in zip(base, values[0], minos, values[1], strict=True)]
        logs = np.array([log for log, _ in of_seeds])
        ends = {key: None if end is None else math.exp(end) for key, end in student(logs).items()}
        bounded = sum(not shared for _, shared in of_seeds)
        entry[name] = {"mean": math.exp(logs.mean()), **ends, "seeds": np.exp(logs).tolist(), "bounded": bounded}
    return entry


def log_ratio(base_x: np.ndarray, base: np.ndarray, minos_x: np.ndarray, minos: np.ndarray) -> tuple[float, bool]:
    """The logarithm of how many times Minos' amount base needs for the same value, and whether the curves share any.

    Amounts ascend; all arguments are [amounts].
    """
    base, minos = (isotonic_regression(values).x for values in (base, minos))
    low, high = max(base[0], minos[0]), min(base[-1], minos[-1])
    if high - low < SHARED:
        better = minos.mean() - base.mean()
        ends = (base_x[-1], minos_x[0]) if better > 0 else (base_x[0], minos_x[-1])
        return (math.log(ends[0] / ends[1]) if better else 0.0), False
    levels = low + (high - low) * (np.arange(LEVELS) + 0.5) / LEVELS
    curves = ((base, base_x), (minos, minos_x))
    needed = [np.interp(levels, values, np.log(amounts)) for values, amounts in curves]
    return float(np.mean(needed[0] - needed[1])), True


def critics(grid: Grid) -> list[Numbers]:
    """For each arm with rounds of the critic: AUC on held-out candidates of the bought critic and of the one that
    stage 2 starts from, and their difference."""
    compared_critics: list[Numbers] = []
    for arm in grid.arms:
        section = grid.trial_config(Trial(arm, grid.seeds[0])).refine
        if not (arm.critiques and section.rounds):
            continue
        aucs = np.zeros((len(grid.seeds), 2))
        for place, seed in enumerate(grid.seeds):
            answer = json.loads(grid.trial_run(Trial(arm, seed)).read_bytes("refine.json"))
            number = answer["chosen"] if section.start_round is None else section.start_round
            aucs[place] = [answer["rounds"][0]["auc"], answer["rounds"][number]["auc"]]
        differences = aucs[:, 1] - aucs[:, 0]
        minus = {"mean": float(differences.mean()), **student(differences), "seeds": differences.tolist()}
        bought, refined = aucs.mean(axis=0).tolist()
        compared_critics.append({"arm": arm.name, "bought": bought, "refined": refined, "refined_minus_bought": minus})
    return compared_critics


def over_problems(differences: Sequence[np.ndarray], count: int, seed: int) -> Ends:
    """Interval for the mean over seeds of the means over their problems, which are resampled within each seed.

    `differences` [seeds][problems], NaN where a problem has too few candidates; `count` resamples. Smoothed as the
    intervals of the evaluation are.
    """
    means = np.zeros(count)
    for place, values in enumerate(differences):
        entering = values[~np.isnan(values)][:, None]
        draws = resamples(len(entering), count, seed * 1000 + place)
        resampled = np.concatenate([resampled_means(weights, entering, None) for weights in draws])[:, 0]
        noise = np.random.default_rng([seed, place, 1]).standard_normal(count)
        means += (resampled + noise * one_more(entering)[0] / len(entering)) / len(differences)
    return percentiles(means)
