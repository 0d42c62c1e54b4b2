"""Choices among growing numbers of candidates against their definitions, candidate by candidate; precision; cost."""

import itertools
from collections import Counter
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from minos_ray.config.schema import Evaluate, Model
from minos_ray.evaluation import blocks
from minos_ray.evaluation.choices import (
    DOUBTS,
    LEAST,
    POWERS,
    TOP,
    Answered,
    Choices,
    Way,
    adaptive_votes,
    ordered,
    partly_verified_votes,
    pessimistic_votes,
    plain_votes,
    powered,
    scored,
    shrunk_votes,
    top_votes,
)
from minos_ray.evaluation.selection import PREDICTED, Precision, best_of, peak, predicted_accuracy, ranked
from minos_ray.evaluation.ways import Prices, Size, risks, selected_values, shrunk, size_of
from minos_ray.report.budget import best_rows, budget_table, peak_lines, way_name
from minos_ray.store.run import Run
from tests.evaluation.test_stage import VERIFIERS, evaluated
from tests.evaluation.test_stage import scored as with_scores
from tests.runs import make_run, put

NS = [1, 2, 4, 8, 20]
ROWS, SIZE = 60, 20


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Answers and scores [rows, candidates] with ties, candidates without an answer and without a score."""
    rng = np.random.default_rng(5)
    clusters = rng.integers(-1, 5, (ROWS, SIZE))
    scores = np.round(rng.random((ROWS, SIZE)), 1)
    scores[rng.random((ROWS, SIZE)) < 0.15] = np.nan
    scores[:5, :8] = np.nan  # nothing scored among the first
    clusters[5:8, :4] = -1  # nothing answered
    return clusters, scores


def winner(totals: dict[int, float]) -> float:
    """The chance that the answer with the largest total is 0; 0 without any answer."""
    best = [a for a, t in totals.items() if t >= max(totals.values()) - 1e-9 * abs(max(totals.values()))]
    return (0 in best) / len(best) if best else 0.0


def weigh(clusters: np.ndarray, scores: np.ndarray, total: Any) -> float:
    """The vote in which an answer has `total(its scores)`; without any scored candidate the plain vote."""
    answers = {a for a, s in zip(clusters, scores, strict=True) if a >= 0 and not np.isnan(s)}
    if not answers:
        return winner(Counter(a for a in clusters.tolist() if a >= 0))
    pairs = [(a, max(s, LEAST)) for a, s in zip(clusters.tolist(), scores, strict=True) if not np.isnan(s)]
    return winner({a: total(np.array([s for b, s in pairs if b == a])) for a in answers})


def test_votes_weigh_scores_as_defined(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, scores = drawn
    order = ordered(clusters, NS)
    verifier = scored(order, scores)
    plain, shrunk, pessimistic = plain_votes(order), shrunk_votes(order, verifier), pessimistic_votes(order, verifier)
    for r, (j, n) in itertools.product(range(ROWS), enumerate(NS)):
        first, values = clusters[r, :n], scores[r, :n]
        assert plain[j, r] == pytest.approx(winner(Counter(a for a in first.tolist() if a >= 0)))
        for p, power in enumerate(POWERS):
            power_sum = weigh(first, values, lambda s, k=power: (s**k).sum())
            assert shrunk[p, j, r] == pytest.approx(power_sum), (r, n, power)
        assert pessimistic[j, r] == pytest.approx(weigh(first, values, lambda s: s.sum() / (len(s) + DOUBTS))), (r, n)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0, 6.0, 16.0])
def test_scores_have_any_power(power: float) -> None:
    values = powered(np.array([0.0, 0.3, 1.0, np.nan]), power)
    assert values == pytest.approx([LEAST**power, 0.3**power, 1.0, 0.0])


def test_confidences_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        adaptive_votes(np.zeros((2, 4), int), [0.9, 0.8])


def test_unscored_candidates_count_as_much_as_the_scored_ones_of_their_answer(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    clusters, scores = drawn
    order = ordered(clusters, NS)
    votes = partly_verified_votes(order, scored(order, scores))
    assert set(votes) == {(n, k) for n in NS for k in NS if k < n}
    for (n, k), r in itertools.product(votes, range(ROWS)):
        pairs = [
            (a, max(s, LEAST)) for a, s in zip(clusters[r, :k].tolist(), scores[r, :k], strict=True) if not np.isnan(s)
        ]
        means = {a: np.mean([s for b, s in pairs if a == b]) for a, _ in pairs if a >= 0}
        answered = [s for a, s in pairs if a >= 0]
        overall = np.mean(answered) if answered else 1.0
        counts = Counter(a for a in clusters[r, :n].tolist() if a >= 0)
        assert votes[n, k][r] == pytest.approx(winner({a: c * means.get(a, overall) for a, c in counts.items()}))


def test_the_vote_among_the_top_takes_the_highest_scores(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, _ = drawn
    scores = np.random.default_rng(6).random(clusters.shape)
    votes = top_votes(ordered(clusters, NS), scores)
    assert set(votes) == {(n, k) for n in NS for k in (1, *TOP) if k < n or k == 1}
    for (n, k), r in itertools.product(votes, range(ROWS)):
        answered = [i for i in range(n) if clusters[r, i] >= 0]
        top = sorted(answered, key=lambda i, row=scores[r]: -row[i])[:k]
        assert votes[n, k][r] == pytest.approx(winner(Counter(clusters[r, top].tolist()))), (n, k, r)


def test_sampling_stops_when_the_leader_is_surely_ahead(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    clusters = np.where(np.random.default_rng(7).random(drawn[0].shape) < 0.4, 0, drawn[0])
    stopped = adaptive_votes(clusters, (0.8, 0.97))
    for (c, limit), r in itertools.product(enumerate((0.8, 0.97)), range(ROWS)):
        for n in range(1, SIZE + 1):
            counts = Counter(a for a in clusters[r, :n].tolist() if a >= 0)
            (first, second) = [v for _, v in [*counts.most_common(2), (None, 0), (None, 0)][:2]]
            if beta.sf(0.5, first + 1, second + 1) >= limit or n == SIZE:
                break
        assert stopped.used[c, r] == n
        assert stopped.right[c, r] == pytest.approx(winner(counts))
    assert (stopped.used[0] <= stopped.used[1]).all() and (stopped.used[0] < SIZE).any()


def test_precision_at_ranks_gives_best_of_n(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, _ = drawn
    scores = np.random.default_rng(8).random(clusters.shape)
    right, accepted, false = ranked(clusters, scores)
    best = np.array([[comb(SIZE - r - 1, n - 1) / comb(SIZE, n) for n in NS] for r in range(SIZE)])
    assert right @ best / ROWS == pytest.approx(best_of(scores, clusters, NS).mean(axis=0))
    assert accepted.sum() == ((scores >= 0.5) & (clusters >= 0)).sum()
    assert false.sum() == ((scores >= 0.5) & (clusters > 0)).sum()


def test_ties_at_the_top_are_right_as_often_as_all_of_them() -> None:
    # A critic accepts half; the right ones are the first of these, as in a file of chosen and rejected solutions.
    clusters, scores = np.array([[0, 0, 1, 2, 0, -1]] * 3), np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 1.0]] * 3)
    right, accepted, false = ranked(clusters, scores) / 3
    assert right.tolist() == [0.5] * 4 + [1.0, 0.0]
    assert accepted.tolist() == [1.0] * 4 + [0.0, 0.0] and false.tolist() == [0.5] * 4 + [0.0, 0.0]


@pytest.mark.parametrize("name", ["even", "falling at the top", "rising"])
def test_the_prediction_is_the_integral_of_the_precision(name: str) -> None:
    curves = {"even": lambda u: 0.4, "falling at the top": lambda u: 0.8 * u**0.2 * (1 - u), "rising": lambda u: 1 - u}
    curve, ns = curves[name], [1, 2, 4, 16, 64]
    precision = np.array([curve((r + 0.5) / 64) for r in range(64)])
    truth = [quad(lambda u, k=n: k * (1 - u) ** (k - 1) * curve(u), 0, 1)[0] for n in ns]
    assert predicted_accuracy(precision, ns) == pytest.approx(truth, abs=0.02)


def test_a_peak_beyond_all_candidates_is_none() -> None:
    assert peak([1, 2, 4], np.array([0.1, 0.3, 0.2])) == 2
    assert peak([1, 2, 4], np.array([0.1, 0.2, 0.3])) is None
    assert peak([1, 2, 4], np.array([0.3, 0.3, 0.3 - 1e-16])) is None  # all are right, say
    assert predicted_accuracy(np.array([0.6]), [1, 8]).tolist() == [0.6, 0.6]  # nothing to follow


def test_equally_confident_problems_are_answered_in_random_order() -> None:
    confidence, right = np.array([0.5, 0.9, 0.5, 0.5]), np.array([1.0, 1.0, 0.0, 0.0])
    means = []
    for ties in itertools.permutations((0, 2, 3)):
        outcome = right[[1, *ties]]
        means.append(1 - np.cumsum(outcome) / np.arange(1, 5))
    assert risks(confidence, right)[0] == pytest.approx(np.mean(means, axis=0))


def test_the_interval_of_the_surest_takes_ties_in_random_order_too() -> None:
    # Two of the four that are equally sure are answered; the first of them are right, which is chance.
    confidence, right = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.1]), np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    values = selected_values(confidence, right, 4)
    assert np.isnan(values).tolist() == [False] * 6 + [True]
    assert np.nanmean(values) == pytest.approx(0.5) == 1 - risks(confidence, right)[0][3]
    assert selected_values(confidence, right, 6)[:6].tolist() == right[:6].tolist()  # no tie at the border


@pytest.mark.parametrize("problems", [1, 3])
def test_no_problem_chooses_its_own_power(problems: int) -> None:
    choices = Choices(Evaluate(), [4], 4, 1, ["orm-base"])
    votes = np.zeros((problems, 1, len(POWERS), 1))
    votes[0, 0, 3] = 1.0  # one power, which is best because of the first problem alone
    empty = np.zeros((problems, 0))
    answered = Answered(empty, votes, empty, empty, np.ones(problems), empty, empty)
    columns, _ = shrunk(choices, answered, {Way("best-of-n", "orm-base", 4, 4): np.zeros(problems)})
    assert columns[Way("shrunk-vote", "orm-base", 4, 4)][0] == 0


def test_imported_candidates_have_no_tokens_to_be_charged(tmp_path: Path) -> None:
    run = with_scores(make_run(tmp_path, [4] * 6), "orm-base")
    rows = run.artefact("candidates").read().to_pylist()
    put(run, "candidates", [{**row, "num_tokens": 0} for row in rows])
    content = evaluated(run)
    assert content["compute"] == {}
    for row in content["adaptive"]:
        assert row["saved_tokens"] == pytest.approx(1 - row["samples"] / 4, abs=1e-6)


def test_some_candidates_of_a_search_are_not_priced(tmp_path: Path) -> None:
    run = with_scores(make_run(tmp_path, [4] * 6), "orm-base")
    rows = run.artefact("candidates").read().to_pylist()
    assert evaluated(run)["compute"]["n"] == 4
    put(run, "candidates", rows)
    run.artefact("candidates").complete({"dropped_tokens": 0})
    run.delete("evaluation.json.manifest.json")
    assert evaluated(run)["compute"] == {}
    put(run, "candidates", rows)
    tokens = {"tokens": 300, "dropped_tokens": 60, "verifier_tokens": 90}
    run.artefact("candidates").complete({"candidates": 24, "problems": 6, **tokens})
    run.delete("evaluation.json.manifest.json")
    means = {"tokens": 50, "dropped_tokens": 10, "verifier_tokens": 15}
    assert evaluated(run)["compute"] == {"search": {"n": 4, **means}}


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {**facts, "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager"))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    tokens = 30
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long))
    size = size_of(Model(model=str(tmp_path)), Run(str(tmp_path / "run")), True)
    assert size is not None and (size.layers, size.width) == (2, 32)
    # torch computes the whole square of attention scores, of which a causal mask drops half.
    square = 2 * size.layers * size.width * tokens**2
    assert size.flops(np.array([tokens])) + square == pytest.approx(counter.get_total_flops(), rel=0.01)
    scorer = size_of(Model(model=str(tmp_path)), Run(str(tmp_path / "run")), False)
    assert scorer is not None and size.weights - scorer.weights == 100 * 32
    assert size_of(Model(model="nobody/nothing"), Run(str(tmp_path / "run")), True) is None


def test_a_prompt_is_charged_once_and_a_critique_for_every_candidate() -> None:
    size = Size(weights=1000, layers=2, width=8)
    flops = {"generator": (7.0, 11.0), "prm": (13.0, 17.0), "critic": (19.0, 23.0), "unknown": None}
    price = Prices(50.0, 30.0, 20.0, {}, flops)
    assert price.cost(4, {}) == (200.0, 7 + 44)
    assert price.cost(4, {"prm": 2}) == (200.0, 7 + 44 + 13 + 34)
    assert price.cost(4, {"prm": 4, "critic": 4}) == (280.0, 7 + 44 + 13 + 68 + 19 + 92)
    assert price.cost(4, {"unknown": 1}) == (200.0, None)
    # Behind a prompt of 30, the 31st to 40th token attend to 31 to 40 tokens, about.
    assert size.flops(np.array([10.0]), 30.0) == 2 * 1000 * 10 + 2 * 2 * 8 * (40**2 - 30**2)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run with every verifier, candidates of two lengths of list, and a critic."""
    run = with_scores(make_run(tmp_path_factory.mktemp("run"), [16] * 30 + [8]), *VERIFIERS, "critic")
    return evaluated(run)


def test_the_best_choice_of_a_budget_is_affordable_and_no_worse_than_a_smaller_budgets(
    evaluation: dict[str, Any],
) -> None:
    content = evaluation["compute"]
    assert content["tokens_per_solution"] == 30 and content["problems"] == 30 and content["n"] == 16
    assert {row["axis"] for row in content["budgets"]} == {"tokens"}  # there are no models, so no FLOPs
    votes = [row for row in content["budgets"] if row["group"] == ""]
    assert [row["n"] for row in votes] == [1, 2, 4, 8, 16, *[16] * (len(votes) - 5)]
    for group in ("any", *VERIFIERS):
        rows = [row for row in content["budgets"] if row["group"] == group]
        assert all(row["tokens"] <= row["budget"] for row in rows)
        best = [row["best_accuracy"] for row in rows]
        assert best == sorted(best) and len(best) > 2
    for row in (row for row in content["budgets"] if row["group"] == "any"):
        within = [m["accuracy"] for m in content["methods"] if m["tokens"] <= row["budget"]]
        assert row["best_accuracy"] == pytest.approx(max(within))
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]


def test_the_shrunk_vote_is_chosen_from_vote_to_best_of_n(evaluation: dict[str, Any]) -> None:
    content = evaluation["robust"]
    assert set(content["powers"]) == {*VERIFIERS, "critic"} and content["ns"] == [4, 8, 16]
    assert all(power in {*POWERS, "best-of-n"} for powers in content["powers"].values() for power in powers)
    rows = [row for row in content["methods"] if row["n"] == 16]
    assert all(row["minus_better_low"] <= row["minus_better"] <= row["minus_better_high"] for row in rows)
    assert {row["method"] for row in rows} == {"shrunk-vote", "top-vote", "pessimistic"}


def test_abstaining_answers_the_surest(evaluation: dict[str, Any]) -> None:
    rows = {(row["method"], row["verifier"]): row for row in evaluation["selective"]}
    assert len(rows) == 1 + 2 * len(VERIFIERS) + 1
    for (method, verifier), row in rows.items():
        exact = next(m for m in evaluation["methods"] if (m["method"], m["verifier"], m["n"]) == (method, verifier, 16))
        assert 1 - row["risk"][-1] == pytest.approx(exact["accuracy"], abs=1e-6)
        assert row["accuracy_at_50"] == pytest.approx(1 - row["risk"][9])
    for row in evaluation["adaptive"]:
        assert 0 <= row["saved_tokens"] < 1 and row["samples"] <= 16


def test_peaks_are_those_of_best_of_n(evaluation: dict[str, Any]) -> None:
    methods = {(m["method"], m["verifier"], m["n"]): m["accuracy"] for m in evaluation["methods"]}
    for row in evaluation["peaks"]:
        assert row["predicted_n"] == list(PREDICTED)
        if row["verifier"] != "critic":  # whose best-of-n is no method
            assert row["accuracy"][-1] == pytest.approx(methods["best-of-n", row["verifier"], 16])


def test_the_text_names_budgets_and_peaks(evaluation: dict[str, Any]) -> None:
    text, rows = budget_table(evaluation), best_rows(evaluation)
    assert text.startswith("budget, solutions  tokens") and [row["solutions"] for row in rows][:2] == [1, 2]
    assert all(way_name(row) in text for row in rows)
    assert sum(line.startswith("prm-minos: best-of-n") for line in peak_lines(evaluation)) == 1
    assert (budget_table({}), peak_lines({})) == ("", [])


@pytest.mark.parametrize(
    ("method", "verifier", "verified", "top", "name"),
    [
        ("self-consistency", "", 0, 0, "self-consistency"),
        ("weighted-vote", "prm-base", 4, 0, "weighted vote, prm-base, 4 of 16 scored"),
        ("top-vote", "orm-base", 16, 4, "vote among the top 4, orm-base"),
        ("adaptive-0.95", "", 0, 0, "adaptive vote, 95 % sure"),
    ],
)
def test_choices_have_names(method: str, verifier: str, verified: int, top: int, name: str) -> None:
    assert way_name({"method": method, "verifier": verifier, "n": 16, "verified": verified, "top": top}) == name


def test_blocks_of_any_size_give_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_scores(make_run(tmp_path, [8] * 9), "orm-base", "prm-minos", "critic")
    together = evaluated(run)
    run.delete("evaluation.json.manifest.json")
    monkeypatch.setattr(blocks, "ROWS", 20)
    by_block = evaluated(run)
    for name in ("robust", "adaptive", "selective", "peaks"):
        assert by_block[name] == together[name]


def test_problems_with_fewer_candidates_are_left_out() -> None:
    tally = Precision([1, 2, 4], 4)
    assert tally.problems == 0 and tally.rows() == []
