"""Rankings and voters: what each rule chooses."""

import numpy as np
import pytest

from minos_ray.evaluation.selection import Choice, best_of, log_odds, rankings, voters, votes


def test_log_odds_undo_the_sigmoid_and_stay_finite() -> None:
    logits = np.array([-9.0, -0.5, 0.0, 3.0])
    assert log_odds(1 / (1 + np.exp(-logits))) == pytest.approx(logits)
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def vote(choice: Choice, clusters: list[int], scores: dict[str, list[float]]) -> float:
    """The vote of all candidates."""
    voter = voters((1, len(clusters)), {name: np.array([values]) for name, values in scores.items()}, {})[choice]
    return float(votes(np.array([clusters]), [voter], [len(clusters)], 2, np.random.default_rng)[0][0, 0, 0])


def test_the_critic_filters_and_is_ignored_where_it_accepts_nothing() -> None:
    clusters, verifier = [0, 1, 1, 0], [0.9, 0.4, 0.4, 0.2]
    one = {"orm": verifier, "critic": [0.0, 1.0, 0.5, 0.2]}
    none = {"orm": verifier, "critic": [0.0, 0.0, 0.0, 0.2]}
    filtered, weighted = Choice("critic-filtered-vote", "critic"), Choice("critic-filtered-weighted-vote", "orm")
    assert vote(filtered, clusters, one) == vote(weighted, clusters, one) == 0.0
    assert vote(filtered, clusters, none) == 0.5 and vote(weighted, clusters, none) == 1.0
    choice = Choice("critic-filtered-best-of-n", "orm")
    for critic, best in ((one, 0.0), (none, 1.0)):
        ranked = rankings({name: np.array([values]) for name, values in critic.items()}, {})[choice]
        assert best_of(ranked, np.array([clusters]), [4])[0, 0] == best


def test_an_accepted_candidate_wins_however_low_it_is_scored() -> None:
    clusters, choice = [0, 1, 1], Choice("critic-filtered-weighted-vote", "orm")
    for low in (0.0, 1e-13):
        scores = {"orm": [low, 0.9, 0.9], "critic": [1.0, 0.0, 0.0]}
        assert vote(choice, clusters, scores) == 1.0
        arrays = {name: np.array([values]) for name, values in scores.items()}
        ranked = rankings(arrays, {})[Choice("critic-filtered-best-of-n", "orm")]
        assert best_of(ranked, np.array([clusters]), [3])[0, 0] == 1.0
    close = {"orm": np.array([[9e-17, 1e-17]]), "critic": np.ones((1, 2))}
    assert best_of(rankings(close, {})[Choice("critic-filtered-best-of-n", "orm")], np.array([[0, 1]]), [2])[0, 0] == 1


def test_the_rules_differ_where_they_should() -> None:
    clusters, scores = [0, 1, 1, 2, 2, 2], {"orm": [0.9, 0.7, 0.6, 0.45, 0.45, 0.45]}
    rules = ("weighted-vote", "weighted-vote-mean", "weighted-vote-log-odds")
    assert [vote(Choice(rule, "orm"), clusters, scores) for rule in rules] == [0.0, 1.0, 1.0]
    assert vote(Choice("self-consistency"), clusters, scores) == 0.0


NONE = float("nan")
WEIGHTED = ("weighted-vote", "weighted-vote-mean", "weighted-vote-log-odds", "critic-filtered-weighted-vote")


def best(choice: Choice, clusters: list[int], scores: dict[str, list[float]]) -> float:
    """The best of all candidates."""
    ranked = rankings({name: np.array([values]) for name, values in scores.items()}, {})[choice]
    return float(best_of(ranked, np.array([clusters]), [len(clusters)])[0, 0])


@pytest.mark.parametrize("rule", WEIGHTED)
def test_a_candidate_without_a_score_has_no_vote(rule: str) -> None:
    critic = {"critic": [1.0] * 6}
    refused = {"orm": [0.9, 0.9, 0.9, 0.9, NONE, 0.4], **critic}
    assert vote(Choice(rule, "orm"), [0, 0, 0, 0, 0, 1], refused) == 1.0
    # Many of them do not outvote one that has a score, and where nothing has one they vote plainly.
    assert vote(Choice(rule, "orm"), [0, 1, 1, 1, 1, -1], {"orm": [0.1, *[NONE] * 5], **critic}) == 1.0
    assert vote(Choice(rule, "orm"), [0, 0, 1, 1, 1, -1], {"orm": [NONE] * 5 + [0.9], **critic}) == 0.0
    for right, found in ((2, 0.0), (4, 1.0)):
        clusters = [0] * right + [1] * (6 - right)
        assert vote(Choice(rule, "orm"), clusters, {"orm": [NONE] * 6, **critic}) == found


def test_best_of_n_takes_one_without_a_score_only_where_nothing_has_one() -> None:
    for name in ("best-of-n", "critic-filtered-best-of-n"):
        choice, critic = Choice(name, "orm"), {"critic": [1.0] * 3}
        assert best(choice, [0, 1, 1], {"orm": [1e-30, NONE, NONE], **critic}) == 1.0
        assert best(choice, [0, 1, 1], {"orm": [NONE] * 3, **critic}) == pytest.approx(1 / 3)
        assert best(choice, [1, 0, -1], {"orm": [NONE, NONE, 0.9], **critic}) == 0.5


def test_the_critic_accepts_before_scores_count() -> None:
    clusters, weighted = [0, 1, 2], Choice("critic-filtered-weighted-vote", "orm")
    one, unread = {"orm": [NONE, 0.9, 0.8], "critic": [1.0, 0.0, 0.0]}, {"critic": [NONE] * 3}
    for rule in (vote, best):
        choice = weighted if rule is vote else Choice("critic-filtered-best-of-n", "orm")
        assert rule(choice, clusters, one) == 1.0
        assert rule(choice, clusters, {"orm": [0.9, 0.1, NONE], **unread}) == 1.0
    assert vote(Choice("critic-filtered-vote", "critic"), [0, 0, 1], {"orm": [0.1] * 3, **unread}) == 1.0
    assert vote(Choice("critic-filtered-vote", "critic"), clusters, {"orm": [0.1] * 3, "critic": [1, NONE, 0]}) == 1.0


@pytest.mark.parametrize("how", ["min", "product", "last", "mean"])
def test_other_aggregations_of_a_prm_leave_them_out_too(how: str) -> None:
    steps = {("prm", how): np.array([[0.2, NONE, NONE]])}
    choice = Choice("weighted-vote", "prm", how)
    voter = voters((1, 3), {}, steps)[choice]
    assert votes(np.array([[0, 1, 1]]), [voter], [3], 2, np.random.default_rng)[0][0, 0, 0] == 1.0
    assert best_of(rankings({}, steps)[choice._replace(method="best-of-n")], np.array([[0, 1, 1]]), [3])[0, 0] == 1.0
