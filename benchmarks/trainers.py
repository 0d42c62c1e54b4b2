"""What the benchmarks of training share: real rows, one small backbone, our step, and TRL's arguments for the same."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow.parquet as pq
import torch

from minos_ray.config.resources import Workers
from minos_ray.config.training import Train
from minos_ray.steps import encoding
from minos_ray.steps.split import lines
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import data, engine, models
from minos_ray.training.data import Rows, as_table, language_row
from minos_ray.training.objective import Losses, Objective
from minos_ray.training.packing import pack
from minos_ray.training.pretrain import byte_level_bpe

SIZE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}
BATCH_ROWS, MICRO_TOKENS, LR, VOCABULARY = 64, 4096, 1e-3, 4096
DISTRIBUTED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
Row = dict[str, Any]


def real_pairs(count: int) -> list[Row]:
    """Right and wrong solutions of one question in turn, each with its critique."""
    folder = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[2] / "shared" / "data") / "gsm8k_gemini"
    columns = ["question", "solution", "critique", "correct"]
    sides: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in pq.read_table(sorted(folder.glob("*.parquet"))[0], columns=columns).to_pylist():
        sides[row["question"]][not row["correct"]].append(row)
    pairs = [pair for right, wrong in sides.values() for pair in zip(right, wrong, strict=False)]
    chosen = np.random.default_rng(0).permutation(len(pairs))[: count // 2]
    return [row for i in chosen for row in pairs[i]]


def verifier_rows(count: int, kind: str) -> tuple[Any, list[Row]]:
    """A tokenizer, and solutions that carry the outcome at every step (PRM) or at their end (ORM)."""
    chosen = real_pairs(count)
    tokenizer = byte_level_bpe((row["question"] + "\n" + row["solution"] for row in chosen), VOCABULARY)
    encoded = encoding.encode_solutions(tokenizer, [(row["question"], lines(row["solution"])) for row in chosen])
    made = []
    for i, (row, one) in enumerate(zip(chosen, encoded, strict=True)):
        places = one.positions if kind == "prm" else one.positions[-1:]
        targets = [float(row["correct"])] * len(places)
        made.append({"problem_id": str(i), "ids": one.ids, "positions": places, "targets": targets})
        made[-1] |= {"first": one.first, "correct": row["correct"]}
    return tokenizer, made


def critic_rows(count: int, start: str | None = None) -> tuple[Any, list[Row]]:
    """The tokenizer of `start` or one of these rows, and solutions with critiques, which alone are trained."""
    chosen = real_pairs(count)
    texts = ("\n".join((row["question"], row["solution"], row["critique"])) for row in chosen)
    tokenizer = load_tokenizer(start) if start else byte_level_bpe(texts, VOCABULARY)
    asked = [(row["question"], lines(row["solution"]), row["critique"]) for row in chosen]
    encoded = encoding.encode_critiques(tokenizer, asked)
    return tokenizer, [language_row(str(i), ids, first) for i, (ids, first) in enumerate(encoded)]


def model(kind: str, precision: str, labels: int = 1, start: str | None = None) -> Any:
    """The language model at `start`, or the same small backbone each time.

    The head of its two-label model gives the same probability as the one-label one.
    """
    import transformers

    if start:
        return models.load(start, kind, precision, 0, {})

    names = {"lm": "CausalLM", "orm": "SequenceClassification", "prm": "TokenClassification"}
    torch.manual_seed(0)
    config = transformers.MistralConfig(vocab_size=VOCABULARY, sliding_window=None, num_labels=labels, **SIZE, **HEADS)
    made = getattr(transformers, f"MistralFor{names[kind]}")(config)
    if kind == "prm":
        made.dropout.p = 0.0
    if kind != "lm":
        weights = torch.randn(SIZE["hidden_size"], generator=torch.Generator().manual_seed(1)) * 0.05
        with torch.no_grad():
            made.score.weight.copy_(torch.stack([weights * 0, weights] if labels == 2 else [weights]))
    return made.to(torch.bfloat16 if precision == "bf16" else torch.float32)


class Ours:
    """The steps of `minos_ray.training.loop` on one worker, DeepSpeed or plain PyTorch around the same module."""

    def __init__(
        self, made: Sequence[Row], kind: str, precision: str, deepspeed: bool = True, start: str | None = None
    ) -> None:
        self.rows, self.objective = Rows(as_table(made)), Objective(model(kind, precision, start=start), kind)
        section, workers = Train(lr=LR, precision=precision), Workers(micro_tokens=MICRO_TOKENS)
        self.engine = engine.start(self.objective, section, workers) if deepspeed else None
        groups = engine.parameter_groups(self.objective, 0.0)
        self.optimizer = None if deepspeed else torch.optim.AdamW(groups, lr=LR, fused=True)

    def run(self) -> None:
        """One pass over all rows."""
        for step in range(data.total_steps(len(self.rows), 1, BATCH_ROWS)):
            self.step(data.step_rows(len(self.rows), 1, BATCH_ROWS, 0, step))

    def step(self, chosen: np.ndarray) -> None:
        """One optimizer step."""
        targets = int(self.rows.position_counts[chosen].sum())
        for micro in data.layout(chosen, self.rows.lengths, 1, data.Room(MICRO_TOKENS))[0]:
            loss = self.forward(micro).main / targets
            self.engine.backward(loss) if self.engine else loss.backward()
        self.update()

    def forward(self, micro: np.ndarray) -> Losses:
        """Losses and logits of a pack."""
        return (self.engine or self.objective)(*map(torch.from_numpy, pack(self.rows, micro)))

    def update(self) -> None:
        """Clip and step."""
        if self.engine:
            self.engine.step()
            return
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, rows: int) -> float:
        """The mean loss of the first rows as one pack."""
        return self.forward(np.arange(rows)).main.item() / int(self.rows.position_counts[:rows].sum())


def trl_arguments(config: Any, rows: int, precision: str, **more: Any) -> Any:
    """One pass in optimizer steps of `BATCH_ROWS` rows, `rows` of them in a forward pass; the rest as TRL has it."""
    return config(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        per_device_train_batch_size=rows,
        num_train_epochs=1,
        learning_rate=LR,
        gradient_checkpointing=False,
        bf16=precision == "bf16",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **{"gradient_accumulation_steps": max(1, round(BATCH_ROWS / rows)), **more},
    )


def labels(row: Row) -> list[int]:
    """A target in Hugging Face's form at each trained place (of a critique: the next token), -100 elsewhere."""
    found = [-100] * len(row["ids"])
    for place, target in zip(row["positions"], row["targets"], strict=False):
        found[place] = int(target)
    return found if row["targets"] else [-100] * row["first"] + row["ids"][row["first"] :]


def single_process() -> None:
    """DeepSpeed wants a process group, also of one."""
    engine.prepare(gpu=False)
    os.environ |= DISTRIBUTED
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def memory(field: str) -> float:
    """MiB that this process has now (VmRSS) or had at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 2**10


def measured(run: Callable[[], object]) -> dict[str, float]:
    """Seconds, CPU seconds, what a run adds to the peak of memory before it, and the peak of the whole process."""
    before, cpu, start = memory("VmHWM"), time.process_time(), time.perf_counter()
    run()
    times = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return times | {"mib": memory("VmHWM") - before, "peak": memory("VmHWM")}


def alternate(names: Sequence[str], rounds: int, *more: str) -> dict[str, list[dict[str, float]]]:
    """This script again with `--only NAME`, every run in a process of its own; the contenders take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    # Under these variables Accelerate would wrap the peers' models for several processes, which costs them time.
    environment = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED}
    for name in list(names) * rounds:
        command = [sys.executable, *sys.argv, *more, "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show(title: str, tokens: int, unit: str, found: dict[str, list[dict[str, float]]], out: Path | None) -> None:
    """Rates, ratios and memory, all medians."""
    seconds = {name: [run["seconds"] for run in runs] for name, runs in found.items()}
    common.show(title, tokens, unit, seconds)
    for name, runs in found.items():
        cpu, mib, peak = (statistics.median(run[key] for run in runs) for key in ("cpu", "mib", "peak"))
        print(f"  {name:34} {cpu:8.2f} s of CPU, {mib:6.0f} MiB more than before training, {peak:6.0f} MiB at most")
    if out is not None:
        out.write_text(json.dumps({"title": title, "tokens": tokens, "runs": found}, indent=1))
