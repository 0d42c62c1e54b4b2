"""Which vote is never worse than the better of the plain vote and best-of-n? Over the seeds of a finished study.

python benchmarks/robust.py STUDY [--seeds 31 32 33 34 35] [--trials critiques-000000 critiques-001500] [--kind orm]

STUDY is the run of `minos study`. Each trial's verifier scores the candidates of the test problems, and of the train
problems that its training has held out: on these the power of the shrunk vote is chosen, once for all n. So no test
label takes part. A line for each trial and method: the accuracy minus that of the better of vote and best-of-n, in
points, for each n. All methods see the same 50 random orders of each problem's candidates.
"""

import argparse
from collections import defaultdict

import numpy as np

from minos_ray.config.schema import Model, Reward
from minos_ray.evaluation.candidates import LABEL_COLUMNS, Candidates, group_candidates
from minos_ray.evaluation.choices import (
    POWERS,
    ordered,
    pessimistic_votes,
    plain_votes,
    scored,
    shrunk_votes,
    top_votes,
)
from minos_ray.problems.split import problems_by_id, rows_of_problems
from minos_ray.scoring.verifier import Scorer
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run
from minos_ray.training.sft import held_out_problems

ORDERS, FOLDS = 50, 5


def main() -> None:
    """Prints all lines, then how each method does over all trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--seeds", nargs="+", default=["31", "32", "33", "34", "35"])
    parser.add_argument("--trials", nargs="+", default=["critiques-000000", "critiques-001500"])
    parser.add_argument("--kind", default="orm")
    arguments = parser.parse_args()
    gaps = defaultdict(list)
    for seed in arguments.seeds:
        for trial in arguments.trials:
            run = Run(f"{arguments.study}/study/trials/seed-{seed}-{trial}")
            start = "base" if int(trial.rpartition("-")[2]) == 0 else "minos"
            ns, methods, power = compared(run, f"{arguments.kind}-{start}")
            better = np.maximum(methods["vote"], methods["best-of-n"])
            for name, accuracy in methods.items():
                gaps[name].append(100 * (accuracy - better))
                cells = zip(ns, 100 * accuracy, gaps[name][-1], strict=True)
                row = "  ".join(f"n = {n}: {value:5.1f} ({gap:+5.1f})" for n, value, gap in cells)
                print(f"seed {seed} {start:5} {name:28} {row}", flush=True)
            print(f"seed {seed} {start:5} power from train: {power}", flush=True)
    for name, rows in gaps.items():
        table = np.array(rows)
        print(f"{name:28} worst {table.min():+5.1f}, below 0 in {(table < 0).sum()} of {table.size}, "
              f"means {', '.join(f'{value:+.1f}' for value in table.mean(axis=0))}")  # fmt: skip


def compared(run: Run, verifier: str) -> tuple[list[int], dict[str, np.ndarray], float]:
    """The ns, accuracies [ns] by method, and the power that was chosen on train problems (infinity: best-of-n)."""
    manifest = run.artefact(f"models/{verifier}").manifest()
    assert manifest is not None
    reward = Reward(**manifest.inputs["config"]["reward"])
    scorer = Scorer(locate(Model(model=f"run:models/{verifier}"), run))
    train = votes(run, scorer, held_out_problems(run, reward))
    test = votes(run, scorer, set(problems_by_id(run, "test", ["problem_id"])))
    ns = [n for n in test.ns if n > 2]
    use = [test.ns.index(n) for n in ns]
    best = int(train.powers[:, -1].mean(axis=-1).argmax())
    folds, chosen = np.arange(test.powers.shape[-1]) % FOLDS, np.zeros((len(test.ns), test.powers.shape[-1]))
    for k in range(FOLDS):
        others = test.powers[:, :, folds != k].mean(axis=-1).argmax(axis=0)
        for j, power in enumerate(others):
            chosen[j, folds == k] = test.powers[power, j, folds == k]
    rows = {
        "vote": test.plain,
        "best-of-n": test.powers[-1],
        "weighted vote (power 1)": test.powers[POWERS.index(1.0)],
        "shrunk, power 2": test.powers[POWERS.index(2.0)],
        "shrunk, power from train": test.powers[best],
        "shrunk, power of other folds": chosen,
        "pessimistic": test.pessimistic,
    }
    return ns, {name: row[use].mean(axis=-1) for name, row in rows.items()}, [*POWERS, np.inf][best]


class Votes:
    """Outcomes by problem: `plain` and `pessimistic` [ns, problems], `powers` [powers and best-of-n, ns, problems]."""

    def __init__(self, candidates: Candidates, scores: np.ndarray, rng: np.random.Generator) -> None:
        sizes = np.diff(candidates.starts)
        size = int(np.median(sizes))  # problems with fewer lack a candidate, those of others are cut
        problems = np.flatnonzero(sizes >= size)
        rows = np.repeat(candidates.starts[problems], ORDERS)[:, None] + rng.random(
            (ORDERS * len(problems), size)
        ).argsort(axis=1)
        self.ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= size]
        self.ns += [size] if size not in self.ns else []
        order = ordered(candidates.clusters[rows], self.ns)
        weights = scored(order, scores[rows])
        tops = top_votes(order, scores[rows])
        shrunk = np.concatenate([shrunk_votes(order, weights), np.stack([tops[n, 1] for n in self.ns])[None]])
        self.plain, self.pessimistic, self.powers = (
            values.reshape(*values.shape[:-1], len(problems), ORDERS).mean(axis=-1)
            for values in (plain_votes(order), pessimistic_votes(order, weights), shrunk)
        )


def votes(run: Run, scorer: Scorer, problem_ids: set[str]) -> Votes:
    """All votes on the candidates of these problems, which the verifier scores."""
    labels = rows_of_problems(run.artefact("labels"), [*LABEL_COLUMNS, "steps"], problem_ids)
    candidates = group_candidates(labels)
    questions = problems_by_id(run, None, ["problem_id", "question"])
    rows = candidates.rows.select(["problem_id", "steps"]).to_pylist()
    steps, _ = scorer.score([(questions[row["problem_id"]]["question"], row["steps"]) for row in rows])
    scores = np.array([values[-1] if values else np.nan for values in steps])
    return Votes(candidates, scores, np.random.default_rng(0))


if __name__ == "__main__":
    main()
