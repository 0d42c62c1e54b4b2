"""Step labels by rollouts against the miniature's exact ones, and how many completions each way of saving saves.

python benchmarks/rollouts.py [--problems 100] [--candidates 4] [--rounds 3]

All completions are drawn once, 8 for each distinct prefix; the rows of the tables replay those draws.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable

from minos_ray.candidates.engine import Request
from minos_ray.config.load import Config, build
from minos_ray.labels.rollouts import ROOT, Completer, Draw, Draws, Plan, decide, forest, make_plan, prefixes
from minos_ray.miniature import draw, row
from minos_ray.miniature.step_labels import label_steps
from minos_ray.steps.split import first_error, lines
from minos_ray.store import columns
from minos_ray.store.run import Run

N = 8
SEED = 11
MODEL = {"model": "package:miniature/model"}
Solution = tuple[list[int], list[int]]


def settings(folder: str) -> Config:
    """The miniature's sampling, with rollouts that are all made."""
    return build(
        {
            "run": folder,
            "seed": SEED,
            "base": MODEL,
            "generator": MODEL,
            "sample": {"temperature": 0.7, "max_tokens": 120},
            "label": {"rollouts": {"completions": N}},
            "resources": {"sample": {"max_model_len": 512, "dtype": "float32", "kv_cache_gb": 0.5}},
        }
    )


def put(run: Run, name: str, rows: list[dict[str, object]]) -> None:
    """Writes a whole artefact."""
    artefact = run.artefact(name)
    artefact.begin({"import": "benchmark"})
    artefact.write_part("0", columns.table(name, rows))
    artefact.complete({})


def problems(count: int) -> list[dict[str, str]]:
    """Train problems."""
    rng = random.Random(SEED)
    return [row(draw(rng), f"p{number:04}", "train") for number in range(count)]


def candidates(worker: Completer, count: int) -> list[dict[str, object]]:
    """So many candidates of each problem, by the model that completes them later."""
    asked = list(worker.problems.values())
    requests = [Request(worker.prompt(problem["question"], worker.tokenizer), count) for problem in asked]
    made = worker.generator.generate(requests, worker.sampling, "candidates")
    return [
        {
            "candidate_id": f"{problem['problem_id']}/{index}",
            "problem_id": problem["problem_id"],
            "index": index,
            "text": text.text,
            "finish_reason": text.reason,
            "num_tokens": text.tokens,
            "model": MODEL["model"],
        }
        for problem, texts in zip(asked, made, strict=True)
        for index, text in enumerate(texts)
    ]


def replay(outcomes: list[list[str]], used: list[int]) -> Draw:
    """The recorded outcomes again, each once; `used` counts them."""
    at = [0] * len(outcomes)

    def again(wanted: list[int], count: int) -> list[list[str]]:
        found = [outcomes[prefix][at[prefix] : at[prefix] + count] for prefix in wanted]
        for prefix in wanted:
            at[prefix] += count
        used[0] += count * len(wanted)
        return found

    return again


def wrong_solutions(run: Run, number: dict[tuple[str, str], int]) -> list[Solution]:
    """Each distinct wrong candidate: the numbers of its prefixes, and the exact labels of its steps."""
    problems = {problem["problem_id"]: problem for problem in run.artefact("problems").read().to_pylist()}
    found: dict[tuple[str, str], Solution] = {}
    for candidate in run.artefact("candidates").read().to_pylist():
        problem_id, text = candidate["problem_id"], candidate["text"]
        steps = lines(text)
        exact = label_steps(problems[problem_id]["question"], None, steps)[0]
        if not exact[-1]:
            found[problem_id, text] = [number[problem_id, cut] for cut in prefixes(text, steps)[0]], exact
    return list(found.values())


def accuracy(solutions: list[Solution], label: Callable[[int], int]) -> str:
    """Shares of right labels, as a line of the table; the answer line is not counted among the steps."""
    pairs = [
        (label(prefix), exact)
        for numbers, labels in solutions
        for prefix, exact in zip(numbers, labels[:-1], strict=True)
    ]
    before = [
        (label(prefix), exact)
        for numbers, labels in solutions
        for prefix, exact in zip(numbers, labels[: first_error(labels) + 1], strict=False)
    ]
    errors = [first_error([*map(label, numbers), 0]) == first_error(labels) for numbers, labels in solutions]
    false_wrong = [made == 0 for made, exact in pairs if exact == 1]
    false_right = [made == 1 for made, exact in before if exact == 0]
    shares = [share([made == exact for made, exact in some]) for some in (pairs, before)]
    return " ".join(f"{value:12.3f}" for value in (*shares, share(errors), share(false_wrong), share(false_right)))


def share(hits: list[bool]) -> float:
    """Mean."""
    return sum(hits) / len(hits)


def show_accuracy(made: Plan, outcomes: list[list[str]], solutions: list[Solution]) -> None:
    """The table of label accuracy."""
    parents, proven = forest(made.trees)
    alone, never = [ROOT] * len(parents), [False] * len(parents)
    steps = sum(len(numbers) for numbers, _ in solutions)
    print(f"labels of {len(solutions)} distinct wrong candidates ({steps} steps before the answer lines)")
    head = ("steps", "to 1st error", "first error", "right as 0", "1st err as 1")
    print(f"  {'':44}" + " ".join(f"{name:>12}" for name in head))
    ways = {"own completions": (alone, never), "and of longer prefixes": (parents, never)}
    ways["and right candidates (ours)"] = (parents, proven)
    for name, (chain, known) in ways.items():
        for n in (1, 2, 4, 8):
            decided = decide(chain, known, n, False, replay(outcomes, [0]))
            print(f"  hard, N = {n}, {name:32} {accuracy(solutions, decided.label)}")
    soft = [statuses.count("correct") / len(statuses) for statuses in outcomes]
    for limit in (0.5, 0.25):
        print(f"  soft > {limit:4}, N = 8{'':25} {accuracy(solutions, lambda p, limit=limit: int(soft[p] > limit))}")


def show_cost(made: Plan, outcomes: list[list[str]]) -> None:
    """The table of completions."""
    parents, proven = forest(made.trees)
    alone, never = [ROOT] * len(parents), [False] * len(parents)
    print(f"completions for {made.candidates} candidates, right and wrong, N = {N}")
    whole = made.steps * N
    rows = {"every step of every candidate": whole, "shared prefixes once": made.prefixes * N}
    for name, (chain, known) in {
        "and early stop in rounds 1, 1, 2, 4": (alone, never),
        "and a longer prefix proves a shorter": (parents, never),
        "and a right candidate proves (ours)": (parents, proven),
    }.items():
        used = [0]
        decide(chain, known, N, False, replay(outcomes, used))
        rows[name] = used[0]
    for name, count in rows.items():
        print(f"  {name:44} {count:8,}  {count / whole:6.1%}")


def show_seconds(worker: Completer, made: Plan, rounds: int) -> None:
    """How long the engine takes with all completions made and with early stop, in turns."""
    parents, proven = forest(made.trees)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for soft in seconds:
            start = time.perf_counter()
            decide(parents, proven, N, soft, Draws(worker, made.trees))
            seconds[soft].append(time.perf_counter() - start)
    every, early = (statistics.median(seconds[soft]) for soft in (True, False))
    print(f"seconds, medians of {rounds}: all made (soft) {every:.1f}, early stop {early:.1f} ({early / every:.1%})")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, run = settings(folder), Run(folder)
        put(run, "problems", problems(arguments.problems))
        worker = Completer(folder, config.generator, config.resources.sample, config.sample, config.label, SEED)
        put(run, "candidates", candidates(worker, arguments.candidates))
        made = make_plan(config, run, graded=True)
        draws = Draws(worker, made.trees)
        outcomes = draws(list(range(made.prefixes)), N)
        number = {prefix: place for place, prefix in enumerate(draws.prefixes)}
        show_accuracy(made, outcomes, wrong_solutions(run, number))
        show_cost(made, outcomes)
        show_seconds(worker, made, arguments.rounds)


if __name__ == "__main__":
    main()
