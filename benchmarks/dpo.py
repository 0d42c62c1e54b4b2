"""DPO on packed pairs that share their prompt against TRL's DPOTrainer: same model, pairs, steps, tokens of a pass.

python benchmarks/dpo.py [--pairs 128] [--rounds 3] [--precision fp32|bf16] [--model DIR] [--out FILE]
Needs TRL (the extra `bench`) and real critiques in MINOS_SHARED; `--model` is a language model in place of the small
one. A pair is a solution with its own critique (chosen) and that of another solution of the question (rejected). Timed
are the reference's log-probabilities and one epoch of training, for both. Tokens are counted as if nothing were shared
or padded. TRL pads pairs as they come: 1.16 groups none by length, and its `padding_free` does nothing. Each run has a
process.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainers
from trainers import BATCH_ROWS, MICRO_TOKENS, Ours, Row

from minos_ray.steps.split import lines
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import data
from minos_ray.training.data import Rows
from minos_ray.training.pretrain import byte_level_bpe
from minos_ray.training.sft import encoded_pairs, pair_rows

BETA = 0.1
OURS = "minos_ray, packed, prompt shared"
PEER = "TRL DPOTrainer"
ROOM = data.Room(MICRO_TOKENS)


def real_pairs(count: int, start: str | None) -> tuple[Any, list[Row]]:
    """A tokenizer, and two rows for each pair."""
    solved = trainers.real_pairs(2 * count)
    texts = ("\n".join((row["question"], row["solution"], row["critique"])) for row in solved)
    tokenizer = load_tokenizer(start) if start else byte_level_bpe(texts, trainers.VOCABULARY)
    pairs = [
        {"problem_id": str(number), "question": row["question"], "steps": lines(row["solution"])}
        | {"chosen": row["critique"], "rejected": solved[number ^ 1]["critique"]}
        for number, row in enumerate(solved)
    ][:count]
    made = list(pair_rows(encoded_pairs(tokenizer, pairs, trainers.encoding.LINES), MICRO_TOKENS, {}))
    return tokenizer, [{**row, "group": place // 2} for place, row in enumerate(made)]


class Packed(Ours):
    """Our step on pairs."""

    def __init__(self, made: list[Row], precision: str, start: str | None) -> None:
        super().__init__(made, "lm", precision, start=start)
        self.objective.beta = BETA

    def run(self) -> None:
        """The reference, then one pass over all pairs."""
        rows, pairs = self.rows, len(self.rows) // 2
        rows.targets = self.reference(rows)
        for step in range(data.total_steps(pairs, 1, BATCH_ROWS // 2)):
            self.step(rows.of_groups(data.step_rows(pairs, 1, BATCH_ROWS // 2, 0, step)))

    def micros(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Packs of the chosen rows."""
        return data.layout(chosen, self.rows.lengths - self.rows.shared, 1, ROOM, self.rows.groups)[0]

    def step(self, chosen: np.ndarray) -> None:
        """One optimizer step."""
        for micro in self.micros(chosen):
            self.engine.backward(self.forward(micro).main / (len(chosen) // 2))
        self.update()

    @torch.no_grad()
    def reference(self, rows: Rows) -> np.ndarray:
        """Log-probabilities of all trained tokens."""
        logs = np.zeros(len(rows.positions), np.float32)
        for micro in self.micros(np.arange(len(rows))):
            places = [np.arange(rows.position_starts[row], rows.position_starts[row + 1]) for row in micro]
            logs[np.concatenate(places)] = self.forward(micro).logits.numpy()
        return logs

    @torch.no_grad()
    def loss(self, rows: int) -> float:
        """The mean loss of the first rows, against a reference that gives every text probability 1."""
        return self.forward(np.arange(rows)).main.item() / (rows // 2)


def trl_trainer(tokenizer: Any, made: list[Row], precision: str, start: str | None) -> Any:
    """TRL's DPOTrainer on tokenised pairs, whose reference is not computed yet."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return super()._precompute_ref_logps(dataset, name, batch_size) if self.args.logging_steps == 1 else dataset

    rows = [
        {"prompt_ids": chosen["ids"][: chosen["first"]], "length": max(len(chosen["ids"]), len(rejected["ids"]))}
        | {"chosen_ids": chosen["ids"][chosen["first"] :], "rejected_ids": rejected["ids"][chosen["first"] :]}
        for chosen, rejected in zip(made[::2], made[1::2], strict=True)
    ]
    pairs = max(1, MICRO_TOKENS // (2 * max(row["length"] for row in rows)))
    settings = {"gradient_accumulation_steps": max(1, BATCH_ROWS // 2 // pairs), "max_length": None, "beta": BETA}
    arguments = trainers.trl_arguments(DPOConfig, pairs, precision, **settings, precompute_ref_log_probs=True)
    model = trainers.model("lm", "fp32", start=start)
    data = datasets.Dataset.from_list(rows)
    return Tokenised(model, args=arguments, train_dataset=data, processing_class=tokenizer)


def trl_run(trainer: Any) -> None:
    """The reference, then one pass over all pairs."""
    trainer.args.logging_steps = 1
    size = trainer.args.per_device_train_batch_size
    trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", size)
    trainer.args.logging_steps = 500
    trainer.train()


@torch.no_grad()
def trl_loss(trainer: Any, pairs: int) -> float:
    """TRL's loss of the first pairs, against a reference that gives every text probability 1."""
    rows = [
        {**row, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        for row in trainer.train_dataset.select(range(pairs))
    ]
    return trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", help="a directory")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokenizer, made = real_pairs(arguments.pairs, arguments.model)
    if arguments.only in (None, OURS):
        trainers.single_process()
    if arguments.only == OURS:
        print(json.dumps(trainers.measured(Packed(made, arguments.precision, arguments.model).run)))
        return
    if arguments.only:
        trainer = trl_trainer(tokenizer, made, arguments.precision, arguments.model)
        print(json.dumps(trainers.measured(lambda: trl_run(trainer))))
        return
    tokens, shared = (sum(amounts) for amounts in zip(*((len(row["ids"]), row["shared"]) for row in made), strict=True))
    print(f"pairs, {arguments.precision}: {len(made) // 2} pairs, {tokens:,} tokens, of them {shared:,} shared")
    first = Packed(made, arguments.precision, arguments.model).loss(8)
    theirs = trl_loss(trl_trainer(tokenizer, made, arguments.precision, arguments.model), 4)
    print(f"  first loss: ours {first:.6f}, TRL {theirs:.6f}")
    trainers.show("DPO", tokens, "tokens", trainers.alternate([OURS, PEER], arguments.rounds), arguments.out)


if __name__ == "__main__":
    main()
