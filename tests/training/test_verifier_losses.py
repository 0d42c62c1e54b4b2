"""Losses that `reward.loss` names: against loops over plain transformers, TRL's reward trainer, and any layout."""

import math
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from minos_ray.config.training import Reward
from minos_ray.errors import UserError
from minos_ray.graph.specs import sections_of, spec
from minos_ray.pipeline import require
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import models, verifier_losses
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import Room, Rows, as_table, layout, step_rows
from minos_ray.training.objective import PACKED, Objective, Way
from minos_ray.training.packing import pack
from minos_ray.training.results import pair_accuracy
from minos_ray.training.reward import reward_data, verifier_jobs
from minos_ray.training.verifier_losses import check_loss, computed, groups_of, pairwise
from tests.runs import put
from tests.tiny import tiny_model
from tests.training.trainings import COMPARED, Trained, losses, records
from tests.training.world import world

NAMES = {name: f"minos_ray.training.verifier_losses:{name}" for name in ("binary", "pairwise", "step_ranking")}
MODULE = "tests.training.test_verifier_losses"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("base"))


def data(kind: str, soft: bool = False) -> Rows:
    """Four problems of 2 to 5 solutions of different lengths, right and wrong ones in each."""
    rng, made = np.random.default_rng(0), []
    for group, outcomes in enumerate(("10", "110", "10010", "0111")):
        for number, outcome in enumerate(outcomes):
            ids = rng.integers(3, 300, rng.integers(8, 40)).tolist()
            steps = [1, int(outcome), int(outcome)] if number else [int(outcome)] * 3
            targets = [int(outcome)] if kind == "orm" else steps
            made.append({
                "problem_id": f"p{group}", "ids": ids, "first": 4, "correct": outcome == "1", "group": group,
                "positions": [len(ids) - 1] if kind == "orm" else [3, 5, len(ids) - 1],
                "targets": [0.25 + target / 2 for target in targets] if soft else targets,
            })  # fmt: skip
    return Rows(as_table(made))


def by_hand(loss: str, logits: list[torch.Tensor], rows: Rows) -> tuple[torch.Tensor, int]:
    """The formula as its paper writes it, in loops; `logits` of each row at its trained positions."""
    targets = [rows.targets[a:b].tolist() for a, b in zip(rows.target_starts, rows.target_starts[1:], strict=False)]
    terms: list[torch.Tensor] = []
    if loss == "binary":
        for q, y in ((q, y) for row in zip(logits, targets, strict=True) for q, y in zip(*row, strict=True)):
            terms.append(-(y * torch.log(torch.sigmoid(q)) + (1 - y) * torch.log(1 - torch.sigmoid(q))))
        return torch.stack(terms).sum(), len(terms)
    if loss == "pairwise":
        for group in range(4):
            members = [row for row in range(len(rows)) if rows.groups[row] == group]
            pairs = [(a, b) for a, b in product(members, members) if targets[a][0] > targets[b][0]]
            terms.append(torch.stack([-torch.log(torch.sigmoid(logits[a] - logits[b])) for a, b in pairs]).mean())
        return torch.stack(terms).sum(), len(terms)
    for row, labels in zip(logits, targets, strict=True):
        right = [torch.zeros(()), *(q for q, y in zip(row, labels, strict=True) if y == 1)]
        wrong = sum(torch.exp(q + 4) for q, y in zip(row, labels, strict=True) if y == 0)
        ranked = [-torch.log(q.exp() / (sum(p.exp() for p in right[: t + 1]) + wrong)) for t, q in enumerate(right)]
        terms.append(torch.stack(ranked if 0 in labels else ranked[1:]).mean())
    return torch.stack(terms).sum(), len(terms)


@pytest.mark.parametrize(
    ("name", "kind", "soft"),
    [("binary", "prm", False), ("binary", "prm", True), ("pairwise", "orm", False), ("step_ranking", "prm", False)],
)
def test_loss_and_gradients_are_those_of_a_loop_over_transformers(base: str, name: str, kind: Any, soft: bool) -> None:
    rows = data(kind, soft)
    model = models.load(base, kind, "fp32", 0, {}).eval()
    model.set_attn_implementation("eager")
    logits = []
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids[rows.starts[row] : rows.starts[row + 1]].tolist())[None]
        out = model(input_ids=ids, use_cache=False).logits.flatten()
        logits.append(out if kind == "orm" else out[rows.row_positions(row)])
    expected, count = by_hand(name, logits, rows)
    expected.backward()
    own = torch.cat([p.grad.flatten() for p in model.parameters()])
    for way, tokens in product((PACKED, Way(False, "eager")), (60, 10_000)):
        objective = Objective(models.load(base, kind, "fp32", 0, {}), kind, loss=getattr(verifier_losses, name))
        objective.eval().take(way)
        total, counted = torch.zeros(()), 0.0
        for micro in layout(np.arange(len(rows)), rows.lengths, 1, Room(tokens), rows.groups)[0]:
            arrays = [torch.from_numpy(array) for array in pack(rows, micro)]
            main = objective(*arrays).main
            main.backward()
            total += main.detach()
            counted += float(computed(objective.loss, torch.zeros(len(arrays[4])), arrays[4], *arrays[7:])[1])
        gradient = torch.cat([p.grad.flatten() for p in objective.model.parameters()])
        assert counted == pytest.approx(count)
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (gradient - own).abs().max() <= 1e-5 * own.abs().max()


def test_pairwise_is_the_loss_of_trl(base: str, tmp_path: Path) -> None:
    """TRL's RewardTrainer on the same pairs: the mean of a batch, its gradients."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rng = np.random.default_rng(1)
    texts = [rng.integers(3, 300, rng.integers(8, 40)).tolist() for _ in range(6)]
    places = [{"first": 4, "problem_id": "p", "ids": ids, "positions": [len(ids) - 1]} for ids in texts]
    outcomes = [{"targets": [1 - i % 2], "correct": not i % 2, "group": i // 2} for i in range(6)]
    rows = Rows(as_table([place | outcome for place, outcome in zip(places, outcomes, strict=True)]))
    objective = Objective(models.load(base, "orm", "fp32", 0, {}), "orm", loss=pairwise).eval()
    total = objective(*map(torch.from_numpy, pack(rows, np.arange(6)))).main / 3
    total.backward()
    model = models.load(base, "orm", "fp32", 0, {})
    pairs = Dataset.from_dict({"chosen_ids": texts[::2], "rejected_ids": texts[1::2]})
    settings = RewardConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], disable_dropout=True, max_length=None
    )

    trainer = RewardTrainer(model, settings, train_dataset=pairs, processing_class=load_tokenizer(base))
    theirs = trainer.compute_loss(model, trainer.data_collator(list(pairs)))
    theirs.backward()
    assert total.item() == pytest.approx(theirs.item(), rel=1e-5)
    for ours, other in zip(objective.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_group_is_never_divided(ranks: int) -> None:
    """In any layout, also where a step holds the same group twice, in two epochs; the sums are the same."""
    rows = data("orm")
    chosen = rows.of_groups(step_rows(4, 3.0, 6, 0, 0))
    logits = torch.linspace(-2, 2, len(rows))
    expected = sum(
        float(pairwise(logits[of], torch.tensor(rows.targets[of]), torch.arange(len(of)), torch.zeros(len(of)))[0])
        for of in (np.flatnonzero(rows.groups == group) for group in step_rows(4, 3.0, 6, 0, 0))
    )
    for tokens in (1, 60, 200, 10_000):
        laid = layout(chosen, rows.lengths, ranks, Room(tokens), rows.groups)
        assert len({len(micros) for micros in laid}) == 1
        assert sorted(np.concatenate([micro for micros in laid for micro in micros])) == sorted(chosen)
        total, count = 0.0, 0.0
        for micro in (micro for micros in laid for micro in micros):
            part = pack(rows, micro)
            labels = (torch.from_numpy(array) for array in (part.targets, part.rows, part.problems))
            loss, counted = pairwise(logits[micro], *labels)
            total, count = total + loss.item(), count + float(counted)
        assert count == pytest.approx(6) and total == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=5), st.integers(2, 9))
def test_groups_hold_both_outcomes_and_no_row_is_lost(problems: list[list[bool]], size: int) -> None:
    rows = [
        {"problem_id": f"p{p}", "candidate_id": f"p{p}/{i}", "correct": correct}
        for p, outcomes in enumerate(problems) for i, correct in enumerate(outcomes)
    ]  # fmt: skip
    groups = list(groups_of(rows, size, 0))
    assert groups == list(groups_of(rows, size, 0)) and all(part for _, part in groups)
    assert Counter(row["candidate_id"] for _, part in groups for row in part) == {r["candidate_id"]: 1 for r in rows}
    for reason, part in groups:
        assert len({row["problem_id"] for row in part}) == 1
        assert reason or ({row["correct"] for row in part} == {True, False} and len(part) <= size)
    for p, outcomes in enumerate(problems):
        reasons = {reason for reason, part in groups if part[0]["problem_id"] == f"p{p}"}
        assert ("no_partner" in reasons) == (len(set(outcomes)) == 1)
        # Rows are left over only where one outcome is too rare to be in every group.
        few = min(Counter(outcomes).values()) if len(set(outcomes)) == 2 else 0
        assert "over_group_rows" not in reasons or few < math.ceil(len(outcomes) / size)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_pair_accuracy_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool, int]]) -> None:
    """Averaged over groups, whatever the order of the rows; ties count half."""
    shares = []
    for group in {group for _, _, group in rows}:
        right, wrong = ([q for q, y, g in rows if g == group and y is side] for side in (True, False))
        if right and wrong:
            shares.append(np.mean([(a > b) + (a == b) / 2 for a, b in product(right, wrong)]))
    scores, truth, groups = map(np.array, zip(*rows, strict=True))
    measured = pair_accuracy(scores.astype(float), truth, groups)
    assert measured is None if not shares else measured == pytest.approx(np.mean(shares))


def test_rows_without_a_partner_are_counted(tmp_path: Path) -> None:
    config, run = world(tmp_path, candidates=4)
    tokenizer = base_tokenizer(config, run)
    section = Reward(loss=NAMES["pairwise"], eval_rows=20, max_length=256, group_rows=3)
    made = reward_data(run, tokenizer, section, "orm")
    assert len(made.train) + len(made.held_out) + sum(made.dropped.values()) == 36 * 4
    assert made.dropped["no_partner"] and set(made.dropped) <= {"no_partner", "over_group_rows"}
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in made.train:
        groups.setdefault(row["group"], []).append(row)
    assert list(groups) == list(range(len(groups)))
    for rows in groups.values():
        assert 2 <= len(rows) <= 3 and {row["correct"] for row in rows} == {True, False}
    plain = reward_data(run, tokenizer, section.model_copy(update={"loss": NAMES["binary"]}), "orm")
    assert Counter(tuple(r["ids"]) for r in made.held_out) == Counter(tuple(r["ids"]) for r in plain.held_out)
    fewer = reward_data(run, tokenizer, section.model_copy(update={"rows": 30}), "orm")
    assert 27 < len(fewer.train) <= 30 and fewer.dropped["over_limit"] == len(made.train) - len(fewer.train)
    assert {tuple(row["ids"]) for row in fewer.train} < {tuple(row["ids"]) for row in made.train}


@pytest.mark.parametrize("outcomes", [[True], [False]])
def test_nothing_to_compare_is_known_before_training(tmp_path: Path, outcomes: list[bool]) -> None:
    """One line from `minos check` and from the stage, which starts no worker."""
    config, run = world(tmp_path, reward={"loss": NAMES["pairwise"], "verifiers": ["orm-base"]})
    labels = [row for row in run.artefact("labels").read().to_pylist() if row["correct"] in outcomes]
    run.delete("labels")
    put(run, "labels", labels)
    words = "reward.loss = .*pairwise: .* none of 3[0-9] train problems has both"
    with pytest.raises(UserError, match=words):
        require(config, run, {"reward"})
    with pytest.raises(UserError, match=r"reward: no rows to train on .*no_partner"):
        verifier_jobs(config, run, ["orm-base"])


def test_a_group_that_no_pass_holds_is_one_line(tmp_path: Path) -> None:
    section = {"loss": NAMES["pairwise"], "verifiers": ["orm-base"]}
    config, run = world(tmp_path, reward=section, resources={"train": {"micro_tokens": 64}})
    with pytest.raises(UserError, match=r"reward.group_rows = 8: a group has up to \d+ tokens, .*micro_tokens = 64;"):
        verifier_jobs(config, run, ["orm-base"])


def test_the_default_makes_no_finished_run_stale(tmp_path: Path) -> None:
    """A section without the keys is that of an earlier version; another loss is another model."""
    plain, _ = world(tmp_path)
    other = plain.model_copy(update={"reward": plain.reward.model_copy(update={"loss": NAMES["pairwise"]})})
    before, after = (sections_of(config, spec(config, "models/orm-base"))["reward"] for config in (plain, other))
    assert not before.keys() & {"loss", "group_rows"} and before == {k: v for k, v in after.items() if k != "loss"}
    assert after["loss"] == NAMES["pairwise"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairwise", "step_ranking"])
def test_no_layout_changes_a_training_that_compares(trained: Trained, name: str) -> None:
    """One worker in one pass, two that accumulate, two with padded rows."""
    curves = {way: losses(trained.run, f"{name}-{way}") for way in COMPARED}
    weights = {way: load_file(f"{trained.run.root}/models/{name}-{way}/model.safetensors") for way in COMPARED}
    for way in ("two", "padded"):
        assert curves[way] == pytest.approx(curves["one"], abs=5e-6)
        apart = torch.cat([(weights[way][key] - weight).abs().flatten() for key, weight in weights["one"].items()])
        # What moves all solutions of a problem alike has no gradient but rounding, which Adam makes as large as any.
        assert apart.max() <= 1e-3 and apart.mean() <= 1e-7, (way, apart.max(), apart.mean())
    assert len(curves["one"]) > 10 and max(curves["one"]) - min(curves["one"]) > 0.01
    card = Path(f"{trained.run.root}/models/{name}-one/README.md").read_text()
    assert f"`{NAMES[name]}`" in card and "no calibrated chance" in card and "is the chance that" not in card


@pytest.mark.slow
def test_imported_pairs_teach_an_orm_to_prefer_what_was_chosen(trained: Trained) -> None:
    held_out = records(trained.run, "pairs-one", "eval")
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    assert held_out[-1]["pair_accuracy"] > max(held_out[0]["pair_accuracy"], 0.5)
    assert trained.run.artefact("models/pairs-one").manifest().counts["rows"] == 60


def no_loss(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return logits.sum()


def no_function(logits: torch.Tensor) -> torch.Tensor:
    return logits.sum()


def counts_logits(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> Any:
    return logits.sum(), (logits > 0).sum()


def each(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> Any:
    return logits, len(logits)


def infinite(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> Any:
    return torch.log(targets * logits).sum(), len(logits)


@pytest.mark.parametrize(
    ("loss", "kind", "section", "words"),
    [
        ("pairwise", "prm", {}, "examples? of prms .*one score of each"),
        ("pairwise", "orm", {"orm_positions": "every_token"}, "orm_positions=every_token"),
        ("pairwise", "orm", {"wrong_share": 0.5}, "reward.wrong_share = 0.5: .* set it to null"),
        ("step_ranking", "prm", {"soft_labels": True}, "targets 0 and 1, no soft ones"),
        (f"{MODULE}:nothing", "orm", {}, "reward.loss: '.*' does not name a function"),
        (f"{MODULE}:NAMES", "orm", {}, "not a callable"),
        (f"{MODULE}:no_function", "orm", {}, "it cannot be called so"),
        (f"{MODULE}:no_loss", "orm", {}, "fails on an example of orms"),
        (f"{MODULE}:each", "orm", {}, "fails on an example of orms"),
        (f"{MODULE}:counts_logits", "prm", {}, "its count is .* for other logits"),
        (f"{MODULE}:infinite", "orm", {}, "not finite"),
    ],
)
def test_what_is_no_loss_is_one_line(loss: str, kind: Any, section: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        check_loss(Reward(loss=NAMES.get(loss, loss), **section), [kind])
    assert "\n" not in str(error.value) and "reward." in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("binary", "orm"), ("binary", "prm"), ("pairwise", "orm"), ("step_ranking", "prm"), ("step_ranking", "orm")],
)
def test_shipped_losses_pass_the_check(name: str, kind: Any) -> None:
    check_loss(Reward(loss=NAMES[name]), [kind])
