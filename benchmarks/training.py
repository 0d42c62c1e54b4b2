"""Stage 2 (PRM) on packed rows against TRL's PRMTrainer and a bare PyTorch loop: same model, rows, tokens a pass.

python benchmarks/training.py [--rows 512] [--rounds 3] [--memory ours|trl]
Needs TRL with PRMTrainer (1.12) beside minos_ray, and real solutions in MINOS_SHARED. `--memory` prints the peak of
one contender in a process of its own.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import show

from minos_ray.labels.steps import lines
from minos_ray.resources import Workers
from minos_ray.sections import Train
from minos_ray.training import batches, encoding, engine
from minos_ray.training.losses import Objective
from minos_ray.training.rows import Rows, as_table, pack
from minos_ray.training.tokenizer import byte_level_bpe

SIZE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}
BATCH_ROWS, MICRO_TOKENS, LR, VOCABULARY = 64, 4096, 1e-3, 4096


def solutions(count: int) -> tuple[Any, list[dict[str, Any]]]:
    """A tokenizer, and rows of real solutions whose steps all carry the outcome."""
    folder = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[2] / "shared" / "data") / "gsm8k_gemini"
    table = pq.read_table(sorted(folder.glob("*.parquet"))[0], columns=["question", "solution", "correct"])
    chosen = table.take(np.random.default_rng(0).permutation(table.num_rows)[:count]).to_pylist()
    tokenizer = byte_level_bpe((row["question"] + "\n" + row["solution"] for row in chosen), VOCABULARY)
    encoded = encoding.encode_solutions(tokenizer, [(row["question"], lines(row["solution"])) for row in chosen])
    return tokenizer, [
        {"problem_id": str(i), "ids": made.ids, "positions": made.positions, "first": made.first}
        | {"targets": [float(row["correct"])] * len(made.positions), "correct": row["correct"]}
        for i, (row, made) in enumerate(zip(chosen, encoded, strict=True))
    ]


def model(labels: int) -> Any:
    """The same backbone each time; the head of the two-label model gives the same probability as the one-label one."""
    from transformers import MistralConfig, MistralForTokenClassification

    torch.manual_seed(0)
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=None, num_labels=labels, **SIZE, **HEADS)
    made = MistralForTokenClassification(config)
    made.dropout.p = 0.0
    weights = torch.randn(256, generator=torch.Generator().manual_seed(1)) * 0.05
    with torch.no_grad():
        made.score.bias.zero_()
        made.score.weight.copy_(torch.stack([weights * 0, weights] if labels == 2 else [weights]))
    return made


class Ours:
    """The loop of `minos_ray.training.loop` on one worker, DeepSpeed or plain PyTorch around the same module."""

    def __init__(self, rows: Rows, deepspeed: bool) -> None:
        self.rows, self.objective = rows, Objective(model(1), "prm")
        section, workers = Train(lr=LR, precision="fp32"), Workers(micro_tokens=MICRO_TOKENS)
        self.engine = engine.start(self.objective, section, workers) if deepspeed else None
        groups = engine.parameter_groups(self.objective, 0.0)
        self.optimizer = None if deepspeed else torch.optim.AdamW(groups, lr=LR, fused=True)

    def run(self) -> float:
        """One pass over all rows; the mean loss of the first step."""
        losses = [self.step(at) for at in range(batches.total_steps(len(self.rows), 1, BATCH_ROWS))]
        return losses[0]

    def step(self, at: int) -> float:
        """One optimizer step."""
        chosen = batches.step_rows(len(self.rows), 1, BATCH_ROWS, 0, at)
        targets, total = int(self.rows.position_counts[chosen].sum()), 0.0
        for micro in batches.layout(chosen, self.rows.lengths, 1, MICRO_TOKENS)[0]:
            arrays = map(torch.from_numpy, pack(self.rows, micro))
            loss = (self.engine or self.objective)(*arrays).main / targets
            self.engine.backward(loss) if self.engine else loss.backward()
            total += loss.item()
        self.update()
        return total

    def update(self) -> None:
        """Clip and step."""
        if self.engine:
            self.engine.step()
            return
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Trl:
    """TRL's own trainer on the same token ids and labels: padded batches of as many tokens, in random order."""

    def __init__(self, tokenizer: Any, made: list[dict[str, Any]], longest: int) -> None:
        import datasets
        from trl.experimental.prm import PRMConfig, PRMTrainer

        rows = max(1, MICRO_TOKENS // longest)
        while BATCH_ROWS % rows:
            rows -= 1
        arguments = PRMConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=BATCH_ROWS // rows,
            num_train_epochs=1,
            learning_rate=LR,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        )
        data = datasets.Dataset.from_list([{"input_ids": row["ids"], "labels": labels(row)} for row in made])
        self.trainer = PRMTrainer(model(2), arguments, train_dataset=data, processing_class=tokenizer)

    def run(self) -> None:
        """One pass over all rows."""
        self.trainer.train()

    @torch.no_grad()
    def loss(self, chosen: list[dict[str, Any]]) -> float:
        """TRL's loss of these rows as one batch, before any training."""
        batch = self.trainer.data_collator([{"input_ids": row["ids"], "labels": labels(row)} for row in chosen])
        return self.trainer.compute_loss(self.trainer.model, batch).item()


def labels(row: dict[str, Any]) -> list[int]:
    """TRL's form: a class at each step's end, -100 elsewhere."""
    found = [-100] * len(row["ids"])
    for position, target in zip(row["positions"], row["targets"], strict=True):
        found[position] = int(target)
    return found


def single_process() -> None:
    """DeepSpeed wants a process group, also of one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    engine.prepare(gpu=False)
    torch.distributed.init_process_group("gloo")


def timed(contender: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    contender()
    return time.perf_counter() - start


def main() -> None:
    """Prints the equality of the first loss, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "trl"))
    arguments = parser.parse_args()
    single_process()
    tokenizer, made = solutions(arguments.rows)
    rows = Rows(as_table(made))
    longest, tokens = int(rows.lengths.max()), int(rows.lengths.sum())
    makers: dict[str, Callable[[], Any]] = {
        "minos_ray, packed, DeepSpeed": lambda: Ours(rows, deepspeed=True),
        "the same, bare PyTorch": lambda: Ours(rows, deepspeed=False),
        "TRL PRMTrainer, padded": lambda: Trl(tokenizer, made, longest),
    }
    if arguments.memory:
        chosen = list(makers.values())[0 if arguments.memory == "ours" else 2]()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chosen.run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{arguments.memory}: peak {peak / 2**20:.2f} GiB, before training {before / 2**20:.2f} GiB")
        return
    first = [made[i] for i in batches.step_rows(len(made), 1, BATCH_ROWS, 0, 0)]
    print(f"rows {len(made)}, tokens {tokens:,}, mean {tokens / len(made):.0f}, longest {longest}")
    print(f"first loss: ours {Ours(rows, True).run():.6f}, TRL {Trl(tokenizer, made, longest).loss(first):.6f}")
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(arguments.rounds):
        for name, make in makers.items():
            seconds[name].append(timed(make().run))
    show("stage 2 (PRM)", tokens, "real tokens", seconds)


if __name__ == "__main__":
    main()
