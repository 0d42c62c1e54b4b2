"""Stage 2 on packed rows against TRL's PRMTrainer and RewardTrainer: same backbone, rows and tokens of a pass.

python benchmarks/training.py [--kind prm|orm] [--rows 512] [--rounds 3] [--precision fp32|bf16] [--out FILE]
Needs TRL (`make bench-trl` installs it) and real solutions in MINOS_SHARED. TRL dropped its PRMTrainer in 1.14: kind
prm runs that of 1.13, which lies beside the environment's own TRL. RewardTrainer compares a right with a wrong solution
of the same question, the ORM judges each, so the same tokens go through the same backbone. Each run has a process.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainers
from trainers import Ours, Row

PACKED, BARE = "minos_ray, packed", "  the same without DeepSpeed"
PADDED, GROUPED = "TRL PRMTrainer, padded", "TRL PRMTrainer, grouped by length"
PAIRS, PAIRS_GROUPED = "TRL RewardTrainer, padded", "TRL RewardTrainer, grouped by length"
# The last TRL with a PRMTrainer, where `make bench-trl` puts it.
TRL_WITH_PRM = Path(sys.prefix) / "trl-1.13"


class Prm:
    """TRL's PRMTrainer: a class at each step's end, padded batches in random order or of similar lengths."""

    def __init__(self, tokenizer: Any, made: list[Row], precision: str, grouped: bool = False) -> None:
        import datasets

        sys.path.insert(0, str(TRL_WITH_PRM))
        from trl.experimental.prm import PRMConfig, PRMTrainer

        rows = trainers.MICRO_TOKENS // longest(made)
        order = {"train_sampling_strategy": "group_by_length"} if grouped else {}
        arguments = trainers.trl_arguments(PRMConfig, rows, precision, max_length=None, **order)
        data = [{"input_ids": row["ids"], "labels": trainers.labels(row)} for row in made]
        options = {"train_dataset": datasets.Dataset.from_list(data), "processing_class": tokenizer}
        self.data, self.trainer = data, PRMTrainer(trainers.model("prm", "fp32", labels=2), arguments, **options)

    def run(self) -> None:
        """One pass over all rows."""
        self.trainer.train()

    @torch.no_grad()
    def loss(self, rows: int) -> float:
        """TRL's loss of the first rows as one batch."""
        return self.trainer.compute_loss(self.trainer.model, self.trainer.data_collator(self.data[:rows])).item()


class Pairs:
    """TRL's RewardTrainer: the loss of a right solution against a wrong one."""

    def __init__(self, tokenizer: Any, made: list[Row], precision: str, grouped: bool = False) -> None:
        import datasets
        from trl import RewardConfig, RewardTrainer

        pairs = trainers.MICRO_TOKENS // longest(made) // 2
        more: dict[str, Any] = {"gradient_accumulation_steps": round(trainers.BATCH_ROWS / 2 / pairs)}
        if grouped:
            # The column `length` is none of the signature's: the trainer would drop it before it groups by it.
            more |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
        arguments = trainers.trl_arguments(RewardConfig, pairs, precision, max_length=None, **more)
        ids = [row["ids"] for row in made]
        data = [
            {"chosen_ids": a, "rejected_ids": b, "length": max(len(a), len(b))}
            for a, b in zip(ids[::2], ids[1::2], strict=True)
        ]
        options = {"train_dataset": datasets.Dataset.from_list(data), "processing_class": tokenizer}
        self.data, self.trainer = data, RewardTrainer(trainers.model("orm", "fp32"), arguments, **options)

    def run(self) -> None:
        """One pass over all pairs."""
        self.trainer.train()

    @torch.no_grad()
    def losses(self, made: list[Row]) -> tuple[float, float]:
        """TRL's loss of these rows as one batch of pairs, and transformers' own BCE of the same model on them."""
        model, count = self.trainer.model, len(made) // 2
        batch = self.trainer.data_collator(self.data[:count])
        pairwise = self.trainer.compute_loss(model, dict(batch)).item()
        model.config.problem_type = "multi_label_classification"
        targets = [made[i]["targets"] for i in [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]]
        return pairwise, model(**batch, labels=torch.tensor(targets)).loss.item()


def longest(made: list[Row]) -> int:
    """Tokens of the longest row: what a padded batch must leave room for."""
    return max(len(row["ids"]) for row in made)


def contenders(kind: str, tokenizer: Any, made: list[Row], precision: str) -> dict[str, Callable[[], Any]]:
    """Makers of everyone who trains this kind of verifier; ours is the first."""
    ours = {PACKED: partial(Ours, made, kind, precision), BARE: partial(Ours, made, kind, precision, False)}
    if kind == "orm":
        pairs = partial(Pairs, tokenizer, made, precision)
        return ours | {PAIRS: pairs, PAIRS_GROUPED: partial(pairs, grouped=True)}
    theirs = partial(Prm, tokenizer, made, precision)
    return ours | {PADDED: theirs, GROUPED: partial(theirs, grouped=True)}


def equality(kind: str, makers: dict[str, Callable[[], Any]], made: list[Row], rows: int = 8) -> None:
    """Prints the losses of the same rows before training."""
    ours = makers[PACKED]()
    if kind == "prm":
        print(f"  first loss: {ours.loss(rows):.6f}, PRMTrainer {makers[PADDED]().loss(rows):.6f}")
        return
    with torch.no_grad():
        logits = ours.forward(np.arange(rows)).logits
    pairwise = -torch.nn.functional.logsigmoid(logits[::2] - logits[1::2]).mean().item()
    theirs, bce = makers[PAIRS]().losses(made[:rows])
    print(f"  first loss: {ours.loss(rows):.6f}, transformers' BCE {bce:.6f}")
    print(f"  pairwise loss of our logits: {pairwise:.6f}, RewardTrainer {theirs:.6f}")


def compare(kind: str, arguments: argparse.Namespace) -> None:
    """One kind of verifier: losses, speed, memory."""
    tokenizer, made = trainers.verifier_rows(arguments.rows, kind)
    makers = contenders(kind, tokenizer, made, arguments.precision)
    if arguments.only:
        if arguments.only == PACKED:
            trainers.single_process()
        print(json.dumps(trainers.measured(makers[arguments.only]().run)))
        return
    trainers.single_process()
    tokens = sum(len(row["ids"]) for row in made)
    print(f"\n{kind}, {arguments.precision}: {len(made)} rows, mean {tokens / len(made):.0f}, longest {longest(made)}")
    equality(kind, makers, made)
    found = trainers.alternate(list(makers), arguments.rounds, "--kind", kind)
    out = arguments.out and arguments.out.with_stem(f"{arguments.out.stem}-{kind}")
    trainers.show(f"stage 2 ({kind})", tokens, "real tokens", found, out)


def main() -> None:
    """Prints the table of a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--kind", choices=("prm", "orm"), default="prm")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    compare(arguments.kind, arguments)


if __name__ == "__main__":
    main()
