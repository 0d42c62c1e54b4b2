"""The scorer against transformers, one solution at a time."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.schema import AGGREGATIONS
from minos_ray.errors import UserError
from minos_ray.scoring.verifier import Scorer, aggregate, score_units
from minos_ray.steps.encoding import encode_solution
from tests.tiny import tiny_model

Solutions = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a tiny model of a kind, made once."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, str] = {}

    def model(kind: str) -> str:
        return made.setdefault(kind, "") or made.update({kind: tiny_model(folder / kind, kind)}) or made[kind]

    return model


@pytest.fixture(scope="module")
def solutions() -> Solutions:
    """Three questions with 20 solutions each, many with common steps, some the same."""
    rng = random.Random(0)
    questions = [f"Tom has {apples} apples. How many?" for apples in range(3) for _ in range(20)]
    return [(q, [f"Step {i}: {rng.randint(1, 3)} + {i}" for i in range(rng.randint(1, 4))]) for q in questions]


def alone(model: str, kind: str, solutions: Solutions) -> list[list[float]]:
    """What transformers says, one by one, without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    load = AutoModelForSequenceClassification if kind == "orm" else AutoModelForTokenClassification
    whole, tokenizer = load.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    found = []
    for question, steps in solutions:
        encoded = encode_solution(tokenizer, question, steps)
        with torch.inference_mode():
            logits = whole(input_ids=torch.tensor([encoded.ids])).logits[0]
        logits = logits if kind == "orm" else logits[encoded.positions, 0]
        found.append(torch.sigmoid(logits).tolist())
    return found


@pytest.mark.parametrize("kind", ["orm", "prm"])
@pytest.mark.parametrize("budget", [30, 200, 5000])
def test_scores_are_those_of_transformers(
    models: Callable[[str], str], solutions: Solutions, kind: str, budget: int
) -> None:
    scorer = Scorer(models(kind))
    scorer.budget = budget
    found, stats = scorer.score(solutions)
    expected = alone(models(kind), kind, solutions)
    assert scorer.kind == kind
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    values = [score for scores in expected for score in scores]
    assert max(values) - min(values) > 0.1
    if budget == 5000:
        assert stats["tokens"] < stats["tokens_of_solutions"] / 4


def test_pad_equal_to_eos_changes_nothing(models: Callable[[str], str], solutions: Solutions, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tiny_model(tmp_path / "orm", "orm")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    config = json.loads((tmp_path / "orm" / "config.json").read_text())
    (tmp_path / "orm" / "config.json").write_text(json.dumps({**config, "pad_token_id": config["eos_token_id"]}))
    with_eos = [(question, [*steps, "</s> end"]) for question, steps in solutions]
    assert Scorer(model).score(with_eos)[0] == Scorer(models("orm")).score(with_eos)[0]


def test_what_cannot_be_read_is_refused_and_counted(models: Callable[[str], str]) -> None:
    scorer = Scorer(models("prm"))
    scorer.max_length = 60
    found, stats = scorer.score([("How many?", ["Step 1: 1"]), ("How many?", []), ("How many?", ["1 + 1 = 2"] * 40)])
    assert [len(scores) for scores in found] == [1, 0, 0]
    assert (stats["refused_no_steps"], stats["refused_over_max_length"]) == (1, 1)


def test_the_models_own_length_is_the_limit(models: Callable[[str], str]) -> None:
    assert Scorer(models("orm")).max_length == 1024


def test_out_of_memory_halves_the_work(models: Callable[[str], str], solutions: Solutions) -> None:
    import torch

    scorer = Scorer(models("prm"))
    expected, _ = scorer.score(solutions)
    sizes = []

    def small_memory(module: object, args: object, kwargs: dict[str, "torch.Tensor"]) -> None:
        sizes.append(kwargs["input_ids"].shape[1])
        if sizes[-1] > 120:
            raise torch.OutOfMemoryError("no room for more than 120 tokens")

    scorer.backbone.module.register_forward_pre_hook(small_memory, with_kwargs=True)
    scorer.budget = 5000
    found, _ = scorer.score(solutions)
    assert sizes[0] > 120 and sizes[-1] <= 120
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_single_solution_without_room_fails(models: Callable[[str], str]) -> None:
    import torch

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    scorer = Scorer(models("orm"))
    scorer.backbone.module.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score([("How many?", ["1"])])


def test_a_language_model_is_no_verifier(models: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match="is \\['MistralForCausalLM'\\]; a verifier is"):
        Scorer(models("causal"))


def test_aggregations() -> None:
    steps = np.array([0.5, 0.25, 1.0])
    scores = {name: float(aggregate(steps, np.array([3]), name)[0]) for name in AGGREGATIONS}
    assert scores == pytest.approx({"min": 0.25, "product": 0.125, "last": 1.0, "mean": 1.75 / 3})


BY_HAND: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "product": math.prod,
    "last": lambda scores: scores[-1],
    "mean": lambda scores: sum(scores) / len(scores),
}


@given(st.lists(st.lists(st.floats(0, 1, width=32), max_size=5), max_size=8))
def test_aggregations_of_many_solutions_are_those_of_each(rows: list[list[float]]) -> None:
    flat, lengths = np.array([s for row in rows for s in row], np.float32), np.array([len(row) for row in rows], int)
    assert set(BY_HAND) == set(AGGREGATIONS)
    for name, one in BY_HAND.items():
        expected = [one(row) if row else np.nan for row in rows]
        assert aggregate(flat, lengths, name) == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True)


def test_scores_that_are_no_numbers_are_refused_and_counted(models: Callable[[str], str], solutions: Solutions) -> None:
    scorer = Scorer(models("prm"))
    scorer.head.weight.data[0, 0] = float("nan")
    found, stats = scorer.score(solutions[:3])
    assert found == [[], [], []] and stats["refused_not_finite"] == 3


def test_what_is_no_number_spoils_no_neighbour(models: Callable[[str], str], solutions: Solutions) -> None:
    import torch

    scorer = Scorer(models("prm"))
    expected, _ = scorer.score(solutions)
    ids = scorer.tokenizer("zq", add_special_tokens=False)["input_ids"]
    used = {i for s in solutions for i in encode_solution(scorer.tokenizer, *s).ids}
    odd = next(i for i in ids if i not in used)
    with torch.no_grad():
        scorer.backbone.module.get_input_embeddings().weight[odd] = torch.inf
    found, stats = scorer.score([*solutions, (solutions[0][0], ["zq"])])
    assert found[-1] == [] and stats["refused_not_finite"] == 1
    for one, other in zip(found, expected, strict=False):
        assert one == pytest.approx(other, abs=1e-5)


def test_what_rotary_encodings_tell_apart_goes_alone(models: Callable[[str], str], solutions: Solutions) -> None:
    scorer = Scorer(models("prm"))
    expected, together = scorer.score(solutions)
    scorer.together = 0
    found, alone = scorer.score(solutions)
    assert alone["tokens"] == alone["tokens_of_solutions"] > together["tokens"]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_no_score_of_a_solution_is_zero_for_that_stands_for_none() -> None:
    unit = {"problem_id": "p", "question": "?", "candidate_ids": ["p/0", "p/1"], "steps": [["a"], ["b"]]}
    rows, _ = score_units(pa.Table.from_pylist([unit]), lambda _: ([[0.0], []], {}), "last", by_step=False)
    assert [row["score"] > 0 for row in rows.to_pylist()] == [True, False]


def test_a_verifier_without_its_head_is_not_scored_with_a_random_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_model(tmp_path, "prm")
    weights = load_file(f"{path}/model.safetensors")
    save_file({n: w for n, w in weights.items() if "score" not in n}, f"{path}/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for 'score\.bias', 'score\.weight'"):
        Scorer(path)
