"""Preferences: loss and gradients against transformers and TRL, the shared prefix, the layout, and a kill."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from minos_ray.errors import UserError
from minos_ray.training import models
from minos_ray.training.data import Room, Rows, as_table, layout
from minos_ray.training.objective import PACKED, Losses, Objective, Way, choose_way
from minos_ray.training.packing import Packed, pack
from minos_ray.training.sft import pair_rows
from tests.tiny import tiny_model
from tests.training.trainings import Trained, losses, records

BETA = 0.3
EOS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("base"))


def pairs(count: int = 10) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected text of random tokens; some texts begin alike, and end in EOS."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        prompt, alike = (rng.integers(3, 300, size).tolist() for size in (rng.integers(4, 20), number % 3))
        texts = [[*alike, word, *rng.integers(3, 300, rng.integers(1, 15)).tolist(), EOS] for word in (300, 301)]
        made.append((prompt, *texts))
    return made


def rows(count: int = 10) -> Rows:
    """The same pairs as a table."""
    encoded = ((str(i), p + c, p + r) for i, (p, c, r) in enumerate(pairs(count)))
    made = [{**row, "group": place // 2} for place, row in enumerate(pair_rows(encoded, 1000, Counter()))]
    return Rows(as_table(made))


def refer(data: Rows, reference: torch.nn.Module) -> None:
    """Gives the rows a reference's log-probabilities, by a pass of each pair."""
    objective = Objective(reference, "lm", beta=BETA)
    data.targets, data.target_starts = np.zeros(len(data.positions), np.float32), data.position_starts
    with torch.no_grad():
        packs = (pack(data, np.arange(first, first + 2)) for first in range(0, len(data), 2))
        data.targets = torch.cat([objective(*map(torch.from_numpy, micro)).logits for micro in packs]).numpy()


def loaded(path: str, noise: float = 0.0) -> Any:
    """The model at `path`, away from it by noise."""
    model = models.load(path, "lm", "fp32", 0, {})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return model


def ours(path: str, data: Rows, tokens: int, way: Way = PACKED) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over pairs and its gradients by name, in packs of that size."""
    model = loaded(path, 0.02)
    objective = Objective(model, "lm", beta=BETA)
    objective.take(way)
    lengths = data.lengths if not way.packed else data.lengths - data.shared
    total = 0.0
    for micro in layout(np.arange(len(data)), lengths, 1, Room(tokens, not way.packed), data.groups)[0]:
        loss = objective(*map(torch.from_numpy, pack(data, micro))).main / (len(data) // 2)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def log_probability(model: Any, prompt: list[int], text: list[int]) -> torch.Tensor:
    """Of a text after a prompt, by transformers' own forward pass of that text alone."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt + text])
    logs = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], -1)
    return logs.gather(1, torch.tensor(text)[:, None]).sum()


@pytest.fixture(scope="module")
def expected(base: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and its gradients by transformers, every text by itself."""
    model, reference = loaded(base, 0.02), loaded(base)
    total = torch.zeros(())
    for prompt, chosen, rejected in pairs():
        with torch.no_grad():
            base_margin = log_probability(reference, prompt, chosen) - log_probability(reference, prompt, rejected)
        margin = log_probability(model, prompt, chosen) - log_probability(model, prompt, rejected)
        total = total - functional.logsigmoid(BETA * (margin - base_margin)) / len(pairs())
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


def compare(got: tuple[float, dict[str, torch.Tensor]], right: tuple[float, dict[str, torch.Tensor]]) -> None:
    """Both to 1e-5: the loss, and each gradient beside its largest entry."""
    assert got[0] == pytest.approx(right[0], abs=1e-5)
    for name, gradient in right[1].items():
        assert (got[1][name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("tokens", [40, 150, 4096])
@pytest.mark.parametrize("way", [PACKED, Way(False, "sdpa"), Way(False, "eager", True)])
def test_loss_and_gradients_are_those_of_each_text_alone(
    base: str, expected: tuple[float, dict[str, torch.Tensor]], way: Way, tokens: int
) -> None:
    data = rows()
    refer(data, loaded(base))
    assert abs(expected[0] - np.log(2)) > 0.05  # the noise makes a difference
    compare(ours(base, data, tokens, way), expected)


def test_trl_has_the_same_loss_and_gradients(base: str, tmp_path: Path) -> None:
    """TRL's DPOTrainer on the same tokens."""
    reason = "TRL, the oracle of this test, is not installed (the extra `bench`)"
    trl = pytest.importorskip("trl", reason=reason)
    datasets = pytest.importorskip("datasets", reason=reason)
    transformers = pytest.importorskip("transformers")
    arguments = trl.DPOConfig(
        str(tmp_path), beta=BETA, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False
    )
    example = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    model, tokenizer = loaded(base, 0.02), transformers.AutoTokenizer.from_pretrained(base)
    trainer = trl.DPOTrainer(model, loaded(base), arguments, train_dataset=example, processing_class=tokenizer)
    batch = trainer.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs()])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    data = rows()
    refer(data, loaded(base))
    compare(ours(base, data, 150), (loss.item(), {name: p.grad for name, p in model.named_parameters()}))


def test_the_trial_finds_pairs_that_are_not_those_of_each_text_alone(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both texts share is tried out before training; here the second text's positions go on behind the first's."""
    objective = Objective(loaded(base), "lm", beta=BETA)

    def forward(data: Rows, few: np.ndarray) -> Losses:
        return objective(*map(torch.from_numpy, pack(data, few)))

    assert choose_way(forward, objective, "on", "mine") is None
    monkeypatch.setattr(Packed, "position_ids", property(lambda self: torch.arange(len(self.own))[None]))
    with pytest.raises(UserError, match=r"packing: on: .* differ from those of each row alone"):
        choose_way(forward, objective, "on", "mine")


def test_pairs_that_teach_nothing_or_are_too_long_are_counted() -> None:
    dropped: Counter[str] = Counter()
    encoded = [("a", [1, 5, 6, 2], [1, 5, 6, 2]), ("b", [1, 5, 2], [1, 6, 7, 2]), ("c", [1, *[5] * 9, 2], [1, 2])]
    made = list(pair_rows(iter(encoded), 8, dropped))
    assert dropped == {"same_text": 1, "over_max_length": 1}
    assert [(row["problem_id"], row["first"], row["shared"], row["positions"]) for row in made] == [
        ("b", 1, 0, [0, 1]),
        ("b", 1, 1, [0, 1, 2]),
    ]


@pytest.mark.slow
def test_a_training_learns_the_preferences_whatever_the_layout(trained: Trained) -> None:
    """Real DeepSpeed: packs, two workers, ZeRO 3 and padded rows give one curve, and a killed worker the same bytes."""
    run = trained.run
    one = losses(run, "dpo-one")
    evals = records(run, "dpo-one", "eval")
    assert evals[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # the start model is the reference
    assert evals[-1]["loss"] < 0.5 and evals[-1]["accuracy"] > 0.7 and evals[-1]["margin"] > 0.5
    weights = load_file(f"{run.root}/models/dpo-one/model.safetensors")
    for name in ("dpo-straight", "dpo-padded", "dpo-zero3"):
        assert losses(run, name) == pytest.approx(one, abs=2e-5), name
        other = load_file(f"{run.root}/models/{name}/model.safetensors")
        assert max((weights[key] - other[key]).abs().max().item() for key in weights) < 1e-4, name
    straight, killed = (run.read_bytes(f"models/dpo-{name}/model.safetensors") for name in ("straight", "killed"))
    assert straight == killed and len({r["pid"] for r in records(run, "dpo-killed", "start")}) == 2
    assert not run.exists("train/reference/dpo-killed")
    assert records(run, "dpo-adapter", "eval")[-1]["loss"] < np.log(2)
