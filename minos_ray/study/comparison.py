"""What the trials of a study say together: arms against base and against Minos, with intervals, and the trend.

Every seed has data of its own, and its arms share it: differences are taken within a seed. The mean of the seeds'
differences gets Student's t interval (95 %). Problems, candidates, critiques and trainings are all drawn anew with the
seed, so that this interval allows for the chance in each of them. Where a measure is a mean over problems, a second
interval resamples the problems of every seed and keeps the trained verifiers as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from minos_ray.config.load import Config
from minos_ray.errors import WorkStopped
from minos_ray.evaluation import outcomes, trend
from minos_ray.evaluation.statistics import one_more, resampled_means, resamples
from minos_ray.store.run import Run
from minos_ray.study.arms import Arm, Trial, ablations, amounts, arms, trial_run, verifiers
from minos_ray.study.sweep_trial import METHODS

MEASURES = ("f1", "auc", "accuracy", "step_f1", "best_of_n", "weighted_vote")
OVER_PROBLEMS = ("best_of_n", "weighted_vote")
PLAIN = ("one_sample", "self_consistency", "oracle")  # what needs no verifier
DRAWS = 100_000  # for Student's t: the ends of an interval are then known to about 1 % of its length
Row = Mapping[str, Any]
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The results of all trials: rows of the study's table by arm, kind and seed."""

    config: Config
    run: Run
    table: Mapping[tuple[str, str, int], Row]

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Kinds and measures that every trial has."""
        return [pair for pair in product(self.config.study.kinds, MEASURES) if self.known(*pair)]

    def known(self, kind: str, measure: str) -> bool:
        """Whether every trial of this kind has the measure."""
        return all(row[measure] is not None for (_, its, _), row in self.table.items() if its == kind)

    def values(self, arm: Arm, kind: str, measure: str) -> np.ndarray:
        """[seeds]: what the verifiers of an arm reached."""
        return np.array([self.table[arm.name, kind, seed][measure] for seed in self.config.study.seeds], np.float64)

    def minus(self, arm: Arm, other: Arm, kind: str, measure: str) -> Numbers:
        """Mean of one arm minus the other over the seeds, its intervals, and each seed's own; shares."""
        each, settings = self.values(arm, kind, measure) - self.values(other, kind, measure), self.config.evaluate
        found = {"mean": float(each.mean()), **student(each, settings.seed), "seeds": each.tolist()}
        if measure not in OVER_PROBLEMS:
            return found
        pairs = [[self.of_problems(Trial(side, seed), kind, measure) for side in (arm, other)]
                 for seed in self.config.study.seeds]  # fmt: skip
        inner = over_problems([first - second for first, second in pairs], settings.bootstrap, settings.seed)
        return found | {f"problems_{end.removeprefix('ci_')}": value for end, value in inner.items()}

    def of_problems(self, trial: Trial, kind: str, measure: str) -> np.ndarray:
        """[problems]: the outcome of a method of selection on each problem of the trial's seed."""
        verifier = next(name for name in verifiers(self.config, trial.arm) if name.startswith(f"{kind}-"))
        return outcomes.values(outcomes.read(trial_run(self.run, trial)), METHODS[measure], verifier)


def compared(config: Config, run: Run, rows: Sequence[Row]) -> Numbers:
    """The content of study.json; `rows` are those of all trials."""
    found = Found(config, run, {(row["arm"], row["kind"], row["seed"]): row for row in rows})
    base, minos, named = amounts(config)[0], amounts(config)[-1], config.study.primary
    if (named.kind, named.measure) not in found.measured:
        raise WorkStopped(
            f"study.primary: some trial has no {named.measure} of its {named.kind}; see {run.at('study')}"
        )
    return {
        "seeds": list(config.study.seeds),
        "n": max(row["n"] for row in rows),
        "primary": named.model_dump() | found.minus(minos, base, named.kind, named.measure),
        "plain": {name: float(np.mean([row[name] for row in rows])) for name in PLAIN},
        "curves": [curve(found, *pair) for pair in found.measured],
        "arms": [against(found, arm, *pair) for pair in found.measured for arm in arms(config)],
        "stage_1": [stage_1(found, arm) for arm in arms(config)],
        "versus": [paired(found, *pair) for pair in found.measured],
        "reached": [reached(found, arm, kind) for kind in config.study.kinds for arm in arms(config)],
    }


def against(found: Found, arm: Arm, kind: str, measure: str) -> Numbers:
    """An arm's mean, and what it has more than base and than Minos."""
    ends = {"base": amounts(found.config)[0], "minos": amounts(found.config)[-1]}
    minus = {f"minus_{name}": found.minus(arm, end, kind, measure) for name, end in ends.items() if end != arm}
    named = {"arm": arm.name, "kind": kind, "measure": measure}
    return named | {"mean": float(found.values(arm, kind, measure).mean())} | minus


def paired(found: Found, kind: str, measure: str) -> Numbers:
    """The ablations that are compared with each other."""
    named = {arm.name: arm for arm in ablations(found.config)}
    pairs = found.config.study.versus.items()
    minus = {f"{arm} minus {other}": found.minus(named[arm], named[other], kind, measure) for arm, other in pairs}
    return {"kind": kind, "measure": measure, "pairs": minus}


def student(found: np.ndarray, seed: int) -> Numbers:
    """Student's t interval for the mean, by the draws that the sweep takes its intervals from; None for one seed."""
    weights = trend.seed_weights(len(found), DRAWS, np.random.default_rng(seed))
    return dict(trend.ends(weights @ found, len(found) > 1))


def over_problems(differences: Sequence[np.ndarray], count: int, seed: int) -> Numbers:
    """Interval for the mean over seeds of the means over their problems, which are resampled within each seed.

    Smoothed as the intervals of the evaluation are; a problem with too few candidates does not enter.
    """
    drawn = np.zeros(count)
    for place, each in enumerate(differences):
        entering = each[~np.isnan(each)][:, None]
        draws = resamples(len(entering), count, seed * 1000 + place)
        means = np.concatenate([resampled_means(weights, entering, None) for weights in draws])[:, 0]
        noise = np.random.default_rng([seed, place, 1]).standard_normal(count)
        drawn += (means + noise * one_more(entering)[0] / len(entering)) / len(differences)
    return dict(trend.ends(drawn))


def curve(found: Found, kind: str, measure: str) -> Numbers:
    """Means and differences over the amounts of critiques, and the trend with seeds as blocks."""
    counts = [arm.critiques for arm in amounts(found.config)]
    values = np.stack([found.values(arm, kind, measure) for arm in amounts(found.config)], axis=1)
    made = trend.curve(values[:, :, None], counts, DRAWS, found.config.evaluate.seed)
    for point, arm in zip(made["points"], amounts(found.config), strict=True):
        minus = found.minus(arm, amounts(found.config)[0], kind, measure)
        point |= {f"difference_{end}": minus[end] for end in ("ci_low", "ci_high")}  # as everywhere in the study
    return {"kind": kind, "measure": measure, "seeds": len(values)} | made


def reached(found: Found, arm: Arm, kind: str) -> Numbers:
    """When each seed's verifier first has the F1 on held-out rows with which its base ends; None: never."""
    rows = [found.table[arm.name, kind, seed] for seed in found.config.study.seeds]
    steps = {"steps": [row["steps_to_base"] for row in rows], "last": max(row["steps"] for row in rows)}
    return {"arm": arm.name, "kind": kind} | steps


def stage_1(found: Found, arm: Arm) -> Numbers:
    """What stage 1 of an arm was trained on: means over the seeds of its rows, steps and tokens."""
    kind = found.config.study.kinds[0]
    rows = [found.table[arm.name, kind, seed] for seed in found.config.study.seeds]
    names = ("rows", "steps", "tokens")
    return {"arm": arm.name} | {name: float(np.mean([row[f"stage_1_{name}"] for row in rows])) for name in names}
