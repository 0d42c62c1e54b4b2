"""A round of `minos refine` beside its two parts alone: vLLM without Ray, and the training without Ray.

python benchmarks/refine.py RUN [--candidates 2000] [--samples 8] [--epochs 2] [--out FILE]
RUN is a finished demo (`minos demo --out RUN`); it is copied, not changed. First one round as a user starts it, with
the start of Ray and both measurements of critics. Then the same critiques: as many engines as the round's pool, each
with every other candidate. Then the same rows and steps: as many processes as the round's workers. Parts have the time
of their slowest process, loading included.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trainers import Ours

from minos_ray.config.load import Config
from minos_ray.pipeline import saved_config
from minos_ray.store.run import Run
from minos_ray.training import data, engine, models
from minos_ray.training.data import Rows
from minos_ray.training.objective import Objective

CRITIC, ROUND = "critic", "critic-1"


class Alone(Ours):
    """The steps of the round's training, as one of several processes."""

    def __init__(self, run: Run, config: Config, rank: int, ranks: int) -> None:
        start = f"{run.path}/models/{CRITIC}"
        self.rows = Rows.read(run, f"critiques-{ROUND}-train")
        self.objective = Objective(models.load(start, "lm", config.sft.precision, config.sft.seed, {}), "lm")
        self.engine: Any = engine.start(self.objective, config.sft, config.resources.train)
        self.rank, self.ranks, self.config = rank, ranks, config

    def run(self) -> None:
        """All epochs of the round."""
        section, epochs = self.config.sft, self.config.refine.epochs or self.config.sft.epochs
        for step in range(data.total_steps(len(self.rows), epochs, section.batch_rows)):
            self.step(data.step_rows(len(self.rows), epochs, section.batch_rows, section.seed, step))

    def step(self, chosen: np.ndarray) -> None:
        """One optimizer step."""
        targets = int(self.rows.position_counts[chosen].sum())
        room = data.Room(self.config.resources.train.micro_tokens)
        for micro in data.layout(chosen, self.rows.lengths, self.ranks, room)[self.rank]:
            self.engine.backward(self.forward(micro).main * self.ranks / targets)
        self.engine.step()


def train(run: Run, config: Config, rank: int, ranks: int, store: str) -> None:
    """One process of the training."""
    engine.prepare(gpu=False)
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    Alone(run, config, rank, ranks).run()


def sample(run: Run, config: Config, rank: int, ranks: int, store: str) -> None:
    """One engine of the sampling: vLLM's own `generate` on the texts that the round's engines were given."""
    from minos_ray.candidates.engine import arguments, import_vllm
    from minos_ray.config.schema import Model
    from minos_ray.rounds.refine import candidates
    from minos_ray.steps import encoding
    from minos_ray.store.model_files import load_tokenizer

    import_vllm(config.resources.judge)  # in this process, bound to no core, as in an actor
    from vllm import LLM, SamplingParams

    path, section = f"{run.path}/models/{CRITIC}", config.refine
    llm = LLM(path, **arguments(path, Model(model=path), config.resources.judge))
    tokenizer = load_tokenizer(path)
    rows = candidates(config, run, 0, held_out=False)[0][rank::ranks]
    prompts: list[Any] = [
        {"prompt_token_ids": encoding.critic_prompt_ids(tokenizer, row["question"], row["steps"], encoding.LINES)}
        for row in rows
    ]
    sampling = SamplingParams(n=section.samples, temperature=section.temperature, max_tokens=section.max_tokens)
    llm.generate(prompts, sampling, use_tqdm=False)


def alone(part: str, ranks: int, run: str) -> float:
    """Seconds until the last process of a part has ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, run, "--part", part, f"--ranks={ranks}", f"--store={folder}/store"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        processes = [
            subprocess.Popen([*command, f"--rank={rank}"], env=environment, stdout=subprocess.DEVNULL)
            for rank in range(ranks)
        ]
        if any([process.wait() for process in processes]):
            raise RuntimeError(f"a process of {part} failed")
        return time.perf_counter() - start


def main() -> None:
    """The round, then its parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=("sample", "train"), help=argparse.SUPPRESS)
    for name, kind in (("--rank", int), ("--ranks", int), ("--store", str)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run = Run(f"{arguments.run}")
        part = sample if arguments.part == "sample" else train
        return part(run, saved_config(run), arguments.rank, arguments.ranks, arguments.store)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(arguments.run, f"{folder}/run")
        changes = {name: getattr(arguments, name) for name in ("candidates", "samples", "epochs")} | {"rounds": 1}
        command = [sys.executable, "-m", "minos_ray", "refine", f"{copy}/config.yaml", f"run={copy}"]
        start = time.perf_counter()
        subprocess.run([*command, *(f"refine.{key}={value}" for key, value in changes.items())], check=True)
        figures = {"round": time.perf_counter() - start}
        resources = saved_config(Run(copy)).resources
        figures["sampling alone"] = alone("sample", resources.judge.actors or 1, copy)
        figures["training alone"] = alone("train", resources.train.least, copy)
        stages = json.loads(Path(copy, "refine.json").read_text())["rounds"]
    figures["round / parts"] = figures["round"] / (figures["sampling alone"] + figures["training alone"])
    for name, figure in figures.items():
        print(f"{name:16} {figure:8.2f}")
    print({key: value for row in stages for key, value in row.items() if key.startswith(("seconds", "sampled"))})
    if arguments.out:
        arguments.out.write_text(json.dumps({"figures": figures, "rounds": stages}, indent=1))


if __name__ == "__main__":
    main()
