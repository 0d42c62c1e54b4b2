"""The stages that read a model, on a real one; each function does one and says in a line what came of it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.pipeline import open_run, run_stage
from minos_ray.store.run import Manifest, Run

CHAT = "minos_ray.candidates.prompts:chat"
QUICK = {"lr": 1e-5, "epochs": 1, "precision": "fp32", "max_length": 512, "eval_every": 100}


@dataclass
class Peak:
    """The most memory that this process and its children held at once, in GiB, and who held how much then."""

    gib: float = 0.0
    shares: list[float] = field(default_factory=list)


@contextlib.contextmanager
def watched(every_s: float = 0.5) -> Iterator[Peak]:
    """Asks for the proportional set sizes of all processes again and again (shared pages count once)."""
    peak, done = Peak(), threading.Event()

    def ask() -> None:
        while not done.wait(every_s):
            shares = sorted(sizes(), reverse=True)
            if (gib := sum(shares)) > peak.gib:
                peak.gib, peak.shares = gib, shares

    watcher = threading.Thread(target=ask, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def sizes() -> Iterator[float]:
    """GiB of this process and of each of its descendants that still lives."""
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            yield process.memory_full_info().pss / 2**30


def config(folder: Path, model: Path, name: str, **workers: Any) -> tuple[Config, Run]:
    """A config of few steps in the run `folder`/`name`; `workers` are keys of `resources.train`."""
    made = build(
        {
            "run": str(folder / name),
            "base": {"model": str(model)},
            "generator": {"model": str(model)},
            "sample": {"prompt": CHAT, "n_test": 2, "n_train": 0, "unit": 2, "max_tokens": 48, "temperature": 0.7},
            "label": {"steps": "minos_ray.miniature.step_labels:gold"},
            "sft": {**QUICK, "batch_rows": 8, "source": "critiques"},
            "reward": {**QUICK, "batch_rows": 8, "eval_rows": 4, "verifiers": ["orm-minos", "prm-minos"]},
            "score": {"judge": {"max_tokens": 96}},
            "resources": {
                "num_cpus": 2,
                "train": {"workers": 1, "cpus": 2, "micro_tokens": 1024, **workers},
                "sample": {"cpus": 2, "kv_cache_gb": 0.2},
                "judge": {"cpus": 2, "kv_cache_gb": 0.2},
                "score": {"cpus": 2, "max_model_len": 1024},
            },
        }
    )
    return made, open_run(made)


def losses(manifest: Manifest) -> str:
    """`loss 2.104 -> 1.873`: of the first and the last step."""
    record = manifest.details["loss"]
    return f"loss {record[0]['loss']:.3f} -> {record[-1]['loss']:.3f}, {manifest.details['tokens_per_second']} tokens/s"


def train(config: Config, run: Run) -> str:
    """The critic, then an ORM and a PRM from it."""
    run_stage(config, run, "sft")
    run_stage(config, run, "reward")
    names = ("critic", *config.reward.verifiers)
    return "; ".join(f"{name} {losses(manifest(run, f'models/{name}'))}" for name in names)


def manifest(run: Run, artefact: str) -> Manifest:
    """The manifest of an artefact that is complete."""
    found = run.artefact(artefact).manifest()
    assert found is not None, artefact
    return found


def score_and_judge(config: Config, run: Run) -> str:
    """Scores of both verifiers and the critic's verdicts of the test candidates, with the distance of the outcomes."""
    run_stage(config, run, "score")
    notes = []
    for name in (*config.reward.verifiers, "critic"):
        scores = run.artefact(f"scores/{name}").read(["score"])["score"].to_pylist()
        notes.append(f"{name} {min(scores):.3f} to {max(scores):.3f}")
    return f"{len(scores)} candidates: " + ", ".join(notes)


def sample(config: Config, run: Run) -> str:
    """Candidates of the test problems through the model's chat template."""
    run_stage(config, run, "sample")
    candidates = run.artefact("candidates").read(["text", "num_tokens"]).to_pylist()
    first = " ".join(candidates[0]["text"].split())[:60]
    return f"{len(candidates)} candidates, {sum(row['num_tokens'] for row in candidates)} tokens: '{first} ...'"


def solutions(run: Run) -> list[tuple[str, list[str]]]:
    """Questions and steps of the test candidates."""
    asked = {row["problem_id"]: row for row in run.artefact("problems").read().to_pylist()}
    labels = run.artefact("labels").read(["problem_id", "steps"]).to_pylist()
    return [
        (asked[row["problem_id"]]["question"], row["steps"])
        for row in labels
        if asked[row["problem_id"]]["split"] == "test"
    ]


def require_close(what: str, difference: float, limit: float) -> str:
    """`what` and the difference as text; AssertionError where it is above the limit."""
    assert difference <= limit, f"{what}: {difference:.1e} is more than {limit:.0e}"
    return f"{what} {difference:.1e}"


def by_transformers(path: str, asked: list[tuple[str, list[str]]]) -> list[list[float]]:
    """Scores of each solution on its own, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from minos_ray.steps.encoding import encode_solutions
    from minos_ray.store.model_files import load_tokenizer

    kind = "orm" if "/orm" in path else "prm"
    auto = AutoModelForSequenceClassification if kind == "orm" else AutoModelForTokenClassification
    model = auto.from_pretrained(path).eval()
    scores = []
    with torch.inference_mode():
        for row in encode_solutions(load_tokenizer(path), asked):
            logits = model(input_ids=torch.tensor([row.ids])).logits
            read = logits[0] if kind == "orm" else logits[0, row.positions, 0]
            scores.append(torch.sigmoid(read).tolist())
    return scores


def by_engine(engine: str) -> Callable[[str, list[tuple[str, list[str]]]], list[list[float]]]:
    """Scores by our scorer, or by vLLM's `classify` and `token_classify`."""

    def score(path: str, asked: list[tuple[str, list[str]]]) -> list[list[float]]:
        import gc

        from minos_ray.config.resources import Scoring
        from minos_ray.scoring.verifier import load

        verifier = load(path, False, Scoring(engine=engine, kv_cache_gb=0.1, max_model_len=1024))
        scores, _ = verifier.score(asked)
        del verifier
        gc.collect()
        return scores

    return score


def parity(run: Run, engine: str, limit: float = 1e-4) -> str:
    """The largest difference of a score of the ORM and the PRM between an engine and transformers, row by row."""
    import numpy as np

    asked, notes = solutions(run), []
    for name in ("orm-minos", "prm-minos"):
        path = run.at(f"models/{name}")
        alone, together = (np.concatenate(score(path, asked)) for score in (by_transformers, by_engine(engine)))
        notes.append(
            require_close(f"{name}: largest difference of {len(alone)}", np.abs(alone - together).max(), limit)
        )
    return "; ".join(notes)


def zero_3(config: Config, run: Run, reference: Run, limit: float = 1e-4) -> str:
    """The critic again, with its weights, gradients and optimizer in ZeRO 3: the same loss in every step."""
    run_stage(config, run, "sft")
    ours, other = (manifest(one, "models/critic").details["loss"] for one in (reference, run))
    assert [record["step"] for record in ours] == [record["step"] for record in other]
    largest = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, other, strict=True))
    return require_close("largest difference of a step's loss", largest, limit)
