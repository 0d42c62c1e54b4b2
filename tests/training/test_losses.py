"""Loss and gradients against transformers' own, and independence of the layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from minos_ray.training import models
from minos_ray.training.data import Room, Rows, as_table, language_row, layout
from minos_ray.training.objective import Objective, disable_dropout, dropout_mask
from minos_ray.training.packing import pack
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.vocabulary import backbone_of
from tests import families
from tests.tiny import tiny_model
from tests.training.world import world


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("base"))


def rows(kind: str, count: int = 12) -> Rows:
    """Random rows of different lengths."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        ids = rng.integers(3, 300, rng.integers(8, 40)).tolist()
        positions = [len(ids) - 1] if kind == "orm" else [3, 5, len(ids) - 1]
        verdicts = {
            "positions": positions,
            "targets": rng.integers(0, 2, len(positions)).tolist(),
            "first": 4,
            "correct": True,
        }
        row = {"problem_id": str(number), "ids": ids, **verdicts}
        made.append(language_row(str(number), ids, 4) if kind == "lm" else row)
    return Rows(as_table(made))


def objective(path: str, kind: Any, seed: int = 0) -> Objective:
    return Objective(models.load(path, kind, "fp32", seed, {}), kind)


def run(trained: Objective, data: Rows, micro_tokens: int) -> tuple[float, torch.Tensor]:
    """Summed loss and gradient of all rows, in micro-batches of that size."""
    total = 0.0
    for micro in layout(np.arange(len(data)), data.lengths, 1, Room(micro_tokens))[0]:
        loss = trained(*map(torch.from_numpy, pack(data, micro))).main
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["lm", "orm", "prm"])
def test_layout_changes_neither_loss_nor_gradient(base: str, kind: str) -> None:
    alone, gradient = run(objective(base, kind), rows(kind), 1)
    together, other = run(objective(base, kind), rows(kind), 10_000)
    assert together == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["lm", "orm", "prm"])
def test_loss_is_that_of_transformers(base: str, kind: str) -> None:
    """Each row alone through the model's own forward, scored with the textbook formula."""
    trained, data = objective(base, kind).eval(), rows(kind)
    model = models.load(base, kind, "fp32", 0, {}).eval()
    expected = 0.0
    for row in range(len(data)):
        ids = torch.tensor(data.ids[data.starts[row] : data.starts[row + 1]].tolist())[None]
        places = data.positions[data.position_starts[row] : data.position_starts[row + 1]]
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        if kind == "lm":
            log = torch.log_softmax(logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            expected -= log[places.tolist()].sum().item()
            continue
        chance = torch.sigmoid(logits.flatten() if kind == "orm" else logits[0, places.tolist(), 0])
        targets = torch.tensor(data.targets[data.target_starts[row] : data.target_starts[row + 1]].tolist())
        expected -= torch.log(torch.where(targets > 0.5, chance, 1 - chance)).sum().item()
    assert run(trained, data, 300)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "phi", "mixtral", "gpt_neox"])
def test_the_last_layer_works_only_where_it_is_read(family: str, checkpointed: bool) -> None:
    """Loss and every gradient are those of each row alone by transformers, whose own forward stays what it is."""
    from transformers import AutoModelForTokenClassification

    model = families.tiny_model(family, AutoModelForTokenClassification, num_labels=1)
    packed, data, tokens = Objective(model, "prm"), rows("prm"), []
    disable_dropout(model)
    model.train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    first = next(backbone_of(model).layers[-1].mlp.children())
    first.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[-2]))
    data.ids = data.ids % 60 + 3
    loss, gradient = run(packed, data, 10_000)
    assert tokens == [data.position_counts.sum()] * (1 + checkpointed)
    model.zero_grad()
    model.set_attn_implementation("eager")
    expected = torch.zeros(())
    for row in range(len(data)):
        ids = torch.tensor(data.ids[data.starts[row] : data.starts[row + 1]].tolist())[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, data.row_positions(row), 0]
        targets = torch.tensor(data.targets[data.target_starts[row] : data.target_starts[row + 1]].tolist())
        expected = expected + functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    expected.backward()
    own = torch.cat([p.grad.flatten() for p in packed.parameters() if p.grad is not None])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - own).norm() <= 1e-5 * own.norm()


def test_no_rows_give_no_loss_and_no_gradient(base: str) -> None:
    for kind in ("lm", "orm", "prm"):
        trained = objective(base, kind)
        loss = trained(*map(torch.from_numpy, pack(rows(kind), np.zeros(0, np.int64)))).main
        loss.backward()
        assert loss.item() == 0
        assert all(not p.grad.any() for p in trained.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_head_depends_on_the_seed_only(base: str, tmp_path: Path, kind: str) -> None:
    other = tiny_model(tmp_path, seed=7)
    same = [objective(path, kind).model for path in (base, other)]
    torch.testing.assert_close(same[0].score.weight, same[1].score.weight, rtol=0, atol=0)
    assert not torch.equal(
        same[0].base_model.layers[0].mlp.up_proj.weight, same[1].base_model.layers[0].mlp.up_proj.weight
    )
    assert not torch.equal(same[0].score.weight, objective(base, kind, seed=1).model.score.weight)
    assert same[0].score.weight.abs().max() < 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_language_loss_is_that_of_the_language_model(tmp_path: Path, tied: bool) -> None:
    """On the tokens of right solutions from the first one on; the head is the one that the start has."""
    path = tiny_model(tmp_path, tied=tied)
    data = rows("prm")
    data.language_counts[1::2] = 0
    verifier = models.load(path, "prm", "fp32", 0, {})
    trained = Objective(verifier, "prm", models.vocabulary_head(verifier, path)).eval()
    words = models.load(path, "lm", "fp32", 0, {}).eval()
    expected = 0.0
    for row in range(0, len(data), 2):
        ids = torch.tensor(data.ids[data.starts[row] : data.starts[row + 1]].tolist())
        with torch.no_grad():
            log = torch.log_softmax(words(input_ids=ids[None]).logits[0], -1)
        expected -= sum(log[place - 1, ids[place]].item() for place in range(4, len(ids)))
    found = trained(*map(torch.from_numpy, pack(data, np.arange(len(data))))).language
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_any_seed_gives_numbers_of_places() -> None:
    """Also one whose product with the step is beyond 64 bits; other salts, other numbers."""
    data, chosen = rows("prm"), np.arange(3)
    numbers = [pack(data, chosen, salt=seed * 1_000_003).element_ids.tolist() for seed in (1, 2, 12345, 2**63)]
    assert len({tuple(some) for some in numbers}) == 4 and all(len(set(some)) == 9 for some in numbers)


def test_dropout_leaves_its_share_and_is_independent_between_places() -> None:
    left = dropout_mask(torch.arange(500, dtype=torch.int64) + (7 << 32), 512, 0.1).float()
    assert left.mean().item() == pytest.approx(0.9, abs=0.002)
    assert left.mean(0).std().item() == pytest.approx((0.09 / 500) ** 0.5, rel=0.15), "features are independent"
    assert left.mean(1).std().item() == pytest.approx((0.09 / 512) ** 0.5, rel=0.15), "places are independent"
    neighbours = torch.corrcoef(left)[0, 1:].abs().max()
    assert neighbours < 0.25
    other = dropout_mask(torch.arange(500, dtype=torch.int64) + (8 << 32), 512, 0.1).float()
    assert (left == other).float().mean().item() == pytest.approx(0.82, abs=0.005), "another step, another draw"


def test_dropout_acts_in_training_only_and_no_layout_changes_it(base: str) -> None:
    data, losses = rows("prm"), {}
    model = models.load(base, "prm", "fp32", 0, {})
    for dropout in (0.0, 0.5):
        trained = Objective(model, "prm", dropout=dropout)
        for name, micro_tokens in (("one", 1), ("all", 10_000)):
            micros = layout(np.arange(len(data)), data.lengths, 1, Room(micro_tokens))[0]
            packs = [tuple(map(torch.from_numpy, pack(data, micro, salt=3))) for micro in micros]
            losses[dropout, name] = sum(trained.train()(*arrays).main.item() for arrays in packs)
            losses[dropout, name, "eval"] = sum(trained.eval()(*arrays).main.item() for arrays in packs)
    assert losses[0.5, "one"] == pytest.approx(losses[0.5, "all"], rel=1e-5)
    assert losses[0.5, "one"] != pytest.approx(losses[0.0, "one"], rel=1e-3)
    assert losses[0.5, "all", "eval"] == pytest.approx(losses[0.0, "all"], rel=1e-6)


def test_only_prms_have_the_dropout_of_the_paper(tmp_path: Path) -> None:
    config, run = world(tmp_path, reward={"verifiers": ["orm-base", "prm-base"]})
    jobs = []
    for name in ("orm-base", "prm-base"):
        run.artefact(f"models/{name}").begin({"for": "test"})
        jobs += verifier_jobs(config, run, [name])
    assert [job.dropout for job in jobs] == [0.0, 0.1]
