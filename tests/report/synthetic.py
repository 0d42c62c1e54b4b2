"""A made-up but complete run directory: what every stage would leave behind, without running any."""

import json
import math
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.config.load import Config
from minos_ray.evaluation.stage import evaluate
from minos_ray.store import columns
from minos_ray.store.run import Run

VERIFIERS = ("orm-base", "orm-minos", "prm-base", "prm-minos")
SHARPNESS = {"orm-base": 0.35, "orm-minos": 0.65, "prm-base": 0.5, "prm-minos": 0.9}
CALIBRATED = "prm-minos"
ERRORS = ("unrelated", "accumulation", "calculation", "logical", "other")
GOLD = 42
HOSTILE = "<script>alert('x')</script> & <img src=http://evil.example/x.png>"


def config(path: str, **sections: Any) -> Config:
    """A config whose run lies in `path`."""
    values: dict[str, Any] = {"run": path, "seed": 7, "base": {"model": "package:assets/tiny"}, **sections}
    values.setdefault("generator", {"model": "package:assets/tiny"})
    return Config(**values)


def make_run(path: str, problems: int = 60, n: int = 256, train: int = 40) -> Run:
    """Every artefact: `problems` test problems of n candidates, `train` problems of 15 with critiques."""
    run, rng = Run(path), random.Random(0)
    rows = [problem(i, "test") for i in range(problems)] + [problem(i, "train") for i in range(train)]
    put(run, "problems", rows)
    candidates, labels = [], []
    for row in rows:
        ease = rng.betavariate(1.1, 0.9)
        for index in range(n if row["split"] == "test" else 15):
            candidate, label = solution(row, index, rng, ease)
            candidates.append(candidate)
            labels.append(label)
    put(run, "candidates", candidates, {"no answer line": 12}, {"seconds": 93.4, "tokens": 812345})
    put(run, "labels", labels, {"timeout": 3, "no answer": 41}, {"seconds": 2.2, "strict_correct": 1234})
    train_labels = [label for label in labels if label["problem_id"].startswith("train")]
    put(
        run,
        "critiques",
        [critique(label) for label in train_labels[:300]],
        {"disagrees with the labels": 14},
        COST | AGREEMENT,
    )
    put_models(run)
    test_labels = [label for label in labels if label["problem_id"].startswith("test")]
    for name in (*VERIFIERS, "critic"):
        put(run, f"scores/{name}", [scored(name, label, rng) for label in test_labels], {}, {"seconds": 6.5})
    evaluate(config(path), run)
    put_sweep(run)
    return run


COST = {"seconds": 12.0, "prompt_tokens": 90210, "completion_tokens": 41999, "cost_usd": 1.25}
AGREEMENT = {"agreement": {"prompt": "blind", "kept": 0.613, "published": 0.78}}


def problem(i: int, split: str) -> dict[str, Any]:
    """One problem whose answer is GOLD + i."""
    question = f"A baker packs {i + 3} boxes of 6 rolls and sells 4 of the rolls. How many rolls are left?"
    return {
        "problem_id": f"{split}-{i}",
        "dataset": "synthetic",
        "split": split,
        "question": f"{question} {HOSTILE}" if i % 20 == 0 else question,
        "answer": str(GOLD + i),
        "solution": None,
        "level": str(1 + i % 3),
        "subject": ("Algebra", "Counting & Probability")[i % 2],
    }


def solution(row: dict[str, Any], index: int, rng: random.Random, ease: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A candidate and its label; a share `ease` is right, wrong ones are wrong from some step on."""
    identity = f"{row['problem_id']}/{index}"
    correct = rng.random() < ease
    first_wrong = 4 if correct else rng.randrange(3)
    answer = row["answer"] if correct else str(int(row["answer"]) + rng.choice((1, 1, 1, 2, 3, 4)))
    steps = ["Step 1: There are 8 * 6 = 48 rolls in all.", "Step 2: 4 are sold.", "Step 3: 48 - 4 = 44 are left."]
    steps.append(f"The answer is: {answer} {HOSTILE if index == 5 else ''}".strip())
    kinds = ["" if k < first_wrong else rng.choice(ERRORS) if k == first_wrong else "accumulation" for k in range(4)]
    candidate = {
        "candidate_id": identity,
        "problem_id": row["problem_id"],
        "index": index,
        "text": "\n".join(steps),
        "finish_reason": "stop",
        "num_tokens": 44,
        "model": "tiny",
    }
    label = {
        "candidate_id": identity,
        "problem_id": row["problem_id"],
        "answer": answer,
        "correct": correct,
        "status": "correct" if correct else "wrong",
        "steps": steps,
        "step_labels": [int(k < first_wrong) for k in range(4)],
        "step_scores": None,
        "step_source": "gold",
        "error_types": kinds,
    }
    return candidate, label


def critique(label: dict[str, Any]) -> dict[str, Any]:
    """A critique that agrees with the label, but for every twentieth."""
    verdict = {1: "correct", 0: "incorrect"}
    lines = [f"Step {k + 1}: Checking it. This step is {verdict[v]}." for k, v in enumerate(label["step_labels"])]
    agrees = not label["candidate_id"].endswith("/7")
    return {
        "candidate_id": label["candidate_id"],
        "critic": "offline",
        "prompt_version": "1",
        "text": "\n".join([*lines, f"The final answer is {label['correct'] == agrees}."]),
        "step_verdicts": label["step_labels"],
        "final_verdict": label["correct"] == agrees,
        "agrees": agrees,
        "status": "ok",
        "prompt_tokens": 210,
        "completion_tokens": 90,
        "cost_usd": 0.004,
    }


def scored(name: str, label: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Scores that tell right from wrong as well as the verifier's sharpness allows; some answers please them all."""
    sharp = SHARPNESS.get(name, 0.6)
    liking = random.Random(f"{label['problem_id']} {label['answer']}").gauss(0, 1.2)
    logits = [liking + rng.gauss(sharp if v else -sharp, 0.6) for v in label["step_labels"]]
    steps = [1 / (1 + math.exp(-logit)) for logit in logits]
    score = min(steps) if name.startswith("prm") else steps[-1]
    if name == "critic":
        score, steps = float(score > 0.5), [float(step > 0.5) for step in steps]
    row = {"candidate_id": label["candidate_id"], "problem_id": label["problem_id"], "score": score}
    return row | {"step_scores": steps if name.startswith("prm") else []}


def put(run: Run, name: str, rows: list[dict], dropped: dict | None = None, details: dict | None = None) -> None:
    """Writes one row artefact with its manifest."""
    artefact = run.artefact(name)
    artefact.begin({"synthetic": True})
    artefact.write_part("0", columns.table(name.partition("/")[0], rows))
    artefact.complete({"rows": len(rows)}, dropped, {"seconds": 1.0, **(details or {})})


def put_models(run: Run) -> None:
    """Manifests of the five models, with convergence curves for the verifiers; one was calibrated."""
    for name in (*VERIFIERS, "critic"):
        artefact = run.artefact(f"models/{name}")
        artefact.begin({"synthetic": True})
        details: dict[str, Any] = {"seconds": 61.0, "tokens": 2_400_000}
        if name in VERIFIERS:
            details["curve"] = curve(SHARPNESS[name])
        if name == CALIBRATED:
            details["calibration"] = {"method": "platt", "scale": 1.5, "shift": -0.4}
        artefact.complete({"rows": 6000}, {"longer than max_length": 17}, details)


def curve(sharp: float) -> list[dict[str, float]]:
    """Evaluations every 20 steps that rise to a plateau set by `sharp`."""
    top = 0.74 + 0.1 * sharp
    points = []
    for step in range(20, 301, 20):
        f1 = top - 0.22 * math.exp(-step * (sharp + 0.4) / 60) + 0.006 * math.sin(step)
        points.append({"step": step, "accuracy": f1 - 0.01, "f1": f1, "auc": f1 + 0.05, "loss": 1.2 - f1})
    return points


def ns_up_to(n: int) -> list[int]:
    """Powers of two up to n."""
    return [2**k for k in range(n.bit_length()) if 2**k <= n]


def evaluation(n: int, problems: int) -> dict[str, Any]:
    """An evaluation.json of invented numbers, for what needs only those."""
    methods = []
    for k in ns_up_to(n):
        growth = math.log2(k) / 8
        methods.append(point("pass@n", "", k, 0.52 + 0.46 * (1 - math.exp(-3 * growth)), problems))
        methods.append(point("self-consistency", "", k, 0.52 + 0.113 * growth**0.6, problems))
        methods.append(point("critic-filtered-vote", "critic", k, 0.54 + 0.12 * growth, problems))
        for name in VERIFIERS:
            sharp = SHARPNESS[name]
            methods.append(point("best-of-n", name, k, 0.52 + 0.17 * sharp * growth - 0.03 * growth**2, problems))
            methods.append(point("weighted-vote", name, k, 0.52 + 0.2 * sharp * growth**0.8, problems))
    methods.append(point("pass@1", "", 1, 0.52, problems))
    paired = []
    for method in ("best-of-n", "weighted-vote"):
        for kind in ("orm", "prm"):
            gap = 0.1 * (SHARPNESS[f"{kind}-minos"] - SHARPNESS[f"{kind}-base"])
            paired.append(pair(f"{method}:{kind}-minos", f"{method}:{kind}-base", n, gap))
            for name in (f"{kind}-base", f"{kind}-minos"):
                gap = accuracy(methods, method, name, n) - accuracy(methods, "self-consistency", "", n)
                paired.append(pair(f"{method}:{name}", "self-consistency:", n, gap))
    return {"methods": methods, "paired": paired, "meta": [], "errors": {}, "counts": {"problems": problems}}


def point(method: str, verifier: str, n: int, value: float, problems: int) -> dict[str, Any]:
    """One entry of `methods`, with a binomial interval."""
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / problems)
    ends = {"ci_low": max(0.0, value - half), "ci_high": min(1.0, value + half)}
    return {"method": method, "verifier": verifier, "n": n, "accuracy": value, **ends, "problems": problems}


def pair(a: str, b: str, n: int, gap: float, half: float = 0.06) -> dict[str, Any]:
    """One entry of `paired`."""
    return {"a": a, "b": b, "n": n, "difference": gap, "ci_low": gap - half, "ci_high": gap + half}


def accuracy(methods: list[dict[str, Any]], method: str, verifier: str, n: int) -> float:
    """The accuracy of one entry."""
    return next(m["accuracy"] for m in methods if (m["method"], m["verifier"], m["n"]) == (method, verifier, n))


def put_evaluation(run: Run, values: dict[str, Any]) -> None:
    """Writes evaluation.json with its manifest."""
    artefact = run.artefact("evaluation.json")
    artefact.begin({"synthetic": True})
    run.write_bytes("evaluation.json", json.dumps(values).encode())
    artefact.complete({"methods": len(values["methods"])}, {}, {"seconds": 3.0})


def put_sweep(run: Run) -> None:
    """A table of 4 amounts of critiques x 3 seeds."""
    rng = random.Random(1)
    rows = []
    for critiques in (0, 2000, 4000, 8000):
        for seed in range(3):
            f1 = 0.8 + 0.03 * critiques / 8000 + rng.gauss(0, 0.006)
            scores = {"f1": f1, "best_of_n": f1 - 0.2, "weighted_vote": f1 - 0.12, "self_consistency": 0.633}
            rows.append({"critiques": critiques, "kind": "orm", "seed": seed, **scores})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    run.write_bytes("sweep/results.parquet", sink.getvalue().to_pybytes())
