"""Stage 1 on packed rows against TRL's SFTTrainer: same model, rows, loss on the critique, tokens of a pass.

python benchmarks/sft.py [--rows 256] [--rounds 3] [--precision fp32|bf16] [--model DIR] [--out FILE]
Needs TRL (the extra `bench`) and real critiques in MINOS_SHARED; `--model` is a language model in place of the small
one, such as SmolLM2-135M of `python -m tests.real.smollm2 DIR`. TRL packs best-fit decreasing into sequences of
MICRO_TOKENS, or of the longest row's length (less attention across rows); or pads batches of similar lengths. It warns
that packs without flash attention mix rows; with transformers 5 they do not, as the first losses show: attention masks
are made from the position ids, and the whole square of a pack is computed. Each run has a process.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trainers
from trainers import Ours, Row

OURS = "minos_ray, packed"
WAYS: dict[str, str] = {
    "TRL SFTTrainer, packed (bfd)": "packed",
    "  packed, sequences of one row": "short",
    "  padding-free": "free",
    "  padded, grouped by length": "padded",
}


class Sft:
    """TRL's SFTTrainer on tokenised rows with labels at the critiques."""

    def __init__(self, tokenizer: Any, made: list[Row], precision: str, way: str, start: str | None) -> None:
        import datasets
        from trl import SFTConfig, SFTTrainer

        arguments = trainers.trl_arguments(SFTConfig, precision=precision, **settings(made, way))
        data = datasets.Dataset.from_list([{"input_ids": row["ids"], "labels": trainers.labels(row)} for row in made])
        model = trainers.model("lm", "fp32", start=start)
        self.trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)

    def run(self) -> None:
        """One pass over all rows."""
        self.trainer.train()

    @torch.no_grad()
    def loss(self) -> float:
        """TRL's loss of its first batch."""
        return self.trainer.compute_loss(self.trainer.model, next(iter(self.trainer.get_train_dataloader()))).item()


def settings(made: list[Row], way: str) -> dict[str, Any]:
    """Rows and sequences of a forward pass that holds `MICRO_TOKENS` at most, and steps of about `BATCH_ROWS` rows."""
    longest = max(len(row["ids"]) for row in made)
    mean = sum(len(row["ids"]) for row in made) / len(made)
    rows, length = max(1, trainers.MICRO_TOKENS // longest), trainers.MICRO_TOKENS
    if way == "padded":
        return {"rows": rows, "max_length": None, "train_sampling_strategy": "group_by_length"}
    if way == "free":
        return {"rows": rows, "max_length": None, "padding_free": True}
    length = longest if way == "short" else length
    packs = {"gradient_accumulation_steps": max(1, round(trainers.BATCH_ROWS * mean / length))}
    return {"rows": 1, "max_length": length, "packing": True, **packs}


def maker(name: str, tokenizer: Any, made: list[Row], precision: str, start: str | None) -> Callable[[], Any]:
    """What makes a contender."""
    if name in WAYS:
        return partial(Sft, tokenizer, made, precision, WAYS[name], start)
    return partial(Ours, made, "lm", precision, start=start)


def equality(tokenizer: Any, made: list[Row], precision: str, start: str | None, rows: int = 4) -> None:
    """Prints the loss of the same rows before training, one batch for everyone."""
    found = [f"ours {Ours(made, 'lm', precision, start=start).loss(rows):.6f}"]
    for way in ("packed", "free", "padded"):
        found.append(f"TRL {way} {Sft(tokenizer, made[:rows], precision, way, start).loss():.6f}")
    print("  first loss:", ", ".join(found))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", help="a directory")
    parser.add_argument("--ways", default=",".join(WAYS.values()), help="of TRL: %(default)s")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokenizer, made = trainers.critic_rows(arguments.rows, arguments.model)
    if arguments.only in (None, OURS):
        trainers.single_process()
    if arguments.only:
        contender = maker(arguments.only, tokenizer, made, arguments.precision, arguments.model)()
        print(json.dumps(trainers.measured(contender.run)))
        return
    tokens = sum(len(row["ids"]) for row in made)
    trained = sum(len(row["positions"]) for row in made)
    print(f"critiques, {arguments.precision}: {len(made)} rows, {tokens:,} tokens, of them {trained:,} trained")
    equality(tokenizer, made, arguments.precision, arguments.model)
    peers = [name for name, way in WAYS.items() if way in arguments.ways.split(",")]
    found = trainers.alternate([OURS, *peers], arguments.rounds)
    trainers.show("stage 1", trained, "trained tokens", found, arguments.out)


if __name__ == "__main__":
    main()
