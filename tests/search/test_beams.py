"""What is kept and continued: beam search, DVTS, lookahead and particles without any model."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from minos_ray.config.schema import Search
from minos_ray.search.beams import Beam, ProblemSearch, Tree, keep_best, resample

METHODS = ("beam", "dvts", "lookahead", "particles")


def finish(search: ProblemSearch, step: Callable[[Beam], tuple[str, str]], score: Callable[[str], float]) -> int:
    """Runs a search whose steps are letters; returns how many were asked for."""
    asked = 0
    while not search.done:
        for slot, beam in list(search.pending.items()):
            letter, reason = step(beam)
            asked += 1
            search.extend(slot, [ord(letter)], beam.text + letter, reason)
        if not search.look_ahead():
            for slot, beam in search.unscored().items():
                search.rate(slot, replace(beam, score=score(beam.text)))
            search.select()
    return asked


def random_step(seed: int) -> Callable[[Beam], tuple[str, str]]:
    """One of three letters; every fourth step is the last."""
    rng = random.Random(seed)
    return lambda beam: (rng.choice("abc"), rng.choice(["", "", "", "stop"]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "width"), [(1, 1), (1, 4), (7, 1), (7, 3), (16, 4), (64, 5), (256, 8)])
def test_every_slot_ends_once_and_every_token_is_counted(method: str, n: int, width: int) -> None:
    for seed in range(5):
        search = ProblemSearch(Search(method=method, n=n, width=width, seed=seed), "p", Beam())
        asked = finish(search, random_step(seed), lambda text: random.Random(text).random())
        assert sorted(search.ended) == list(range(n))
        assert all(beam.reason == "stop" and len(beam.ids) == len(beam.steps) for beam in search.ended.values())
        assert (search.tokens, search.requests) == (asked, asked)
        steps = {number for beam in search.ended.values() for number, _ in beam.steps}
        assert search.dropped_tokens == asked - len(steps)
        if width == 1 and method in ("beam", "dvts"):
            assert search.dropped_tokens == 0
        if method != "lookahead":
            assert asked <= n * max(len(beam.steps) for beam in search.ended.values()) + n * search.level


def test_width_1_continues_each_beam_in_its_slot_without_a_score() -> None:
    search = ProblemSearch(Search(n=3, width=1), "p", Beam())
    for level, letters in enumerate(("abc", "def")):
        for slot, letter in enumerate(letters):
            search.extend(slot, [1], search.pending[slot].text + letter, "stop" if level else "")
        assert not search.unscored()
        search.select()
    assert [search.ended[slot].text for slot in range(3)] == ["ad", "be", "cf"]


def test_the_best_quarter_is_kept_and_shares_the_slots() -> None:
    scores = [0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    tree = Tree(list(range(8)), {slot: Beam(text=str(slot), score=score) for slot, score in enumerate(scores)})
    assert keep_best(tree, 4) == {}
    assert Counter(beam.text for beam in tree.beams.values()) == {"1": 4, "4": 4}
    assert (tree.beams[1].text, tree.beams[4].text) == ("1", "4"), "a kept beam stays in its slot"


def test_a_text_that_is_kept_already_is_not_kept_twice_but_has_slots_by_its_frequency() -> None:
    texts, scores = "aabc", [0.9, 0.9, 0.8, 0.1]
    pairs = enumerate(zip(texts, scores, strict=True))
    tree = Tree(list(range(4)), {slot: Beam(text=text, score=score) for slot, (text, score) in pairs})
    keep_best(tree, 2)
    assert Counter(beam.text for beam in tree.beams.values()) == {"a": 3, "b": 1}


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_shared_in_proportion_to_summed_scores(seed: int) -> None:
    """D'Hondt: no slot would have a larger weight for each slot elsewhere; beside that all kept texts have one."""
    rng = random.Random(seed)
    beams = {slot: Beam(text=rng.choice("abcd"), score=rng.random()) for slot in range(64)}
    tree = Tree(list(beams), dict(beams))
    assert keep_best(tree, 2) == {}
    counts = Counter(beam.text for beam in tree.beams.values())
    weights = {text: sum(beam.score for beam in beams.values() if beam.text == text) for text in counts}
    assert sum(counts.values()) == 64 and counts.keys() == {beam.text for beam in beams.values()}
    least = min(weights[text] / count for text, count in counts.items() if count > 1)
    assert all(weights[text] / (count + 1) <= least + 1e-12 for text, count in counts.items())
    assert all(abs(counts[text] - 64 * weights[text] / sum(weights.values())) < 2 for text in counts)


def test_a_common_right_step_has_more_candidates_than_a_rare_wrong_one() -> None:
    """The generator is right in three of four texts, the verifier cannot tell: candidates are as right as samples."""
    rng, right = random.Random(0), 0
    for problem in range(100):
        search = ProblemSearch(Search(n=16, width=4), str(problem), Beam())
        finish(search, lambda beam: (rng.choice("aaab"), "stop" * (len(beam.text) == 2)), lambda text: 0.5)
        right += sum(beam.text[0] == "a" for beam in search.ended.values())
    assert right / 1600 > 0.7


def test_an_ended_beam_settles_its_slot_and_competes_with_none() -> None:
    beams = {0: Beam(text="x", score=0.9, reason="stop"), 1: Beam(text="y", score=0.8)}
    beams |= {2: Beam(text="z", score=0.1, reason="stop"), 3: Beam(text="w", score=0.2)}
    tree = Tree([0, 1, 2, 3], dict(beams))
    assert keep_best(tree, 2) == {0: beams[0], 2: beams[2]}
    assert {slot: beam.text for slot, beam in tree.beams.items()} == {1: "y", 3: "y"}
    # Nothing goes on: all are candidates.
    tree = Tree([0, 2], {slot: beams[slot] for slot in (0, 2)})
    assert keep_best(tree, 2) == {0: beams[0], 2: beams[2]}
    assert tree.beams == {}


def test_dvts_keeps_one_beam_of_each_subtree() -> None:
    search = ProblemSearch(Search(method="dvts", n=10, width=4), "p", Beam())
    assert [tree.slots for tree in search.trees] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for slot in range(10):
        search.extend(slot, [1], str(slot), "")
    for slot, beam in search.unscored().items():
        search.rate(slot, replace(beam, score=slot / 10))
    search.select()
    assert [search.pending[slot].text for slot in range(10)] == ["3"] * 4 + ["7"] * 4 + ["9"] * 2


def test_lookahead_scores_a_step_by_what_may_follow_and_keeps_the_step_alone() -> None:
    search = ProblemSearch(Search(method="lookahead", n=2, width=2, lookahead=2), "p", Beam())
    search.extend(0, [1], "a", "")
    search.extend(1, [2], "b", "")
    assert search.look_ahead() and search.ahead == 1
    search.extend(0, [3], "a!", "stop")  # ends early, and is not continued
    search.extend(1, [4], "b?", "")
    assert search.look_ahead() and list(search.pending) == [1]
    search.extend(1, [5], "b??", "")
    assert not search.look_ahead()
    assert {slot: beam.text for slot, beam in search.unscored().items()} == {0: "a!", 1: "b??"}
    for slot, beam in search.unscored().items():
        search.rate(slot, replace(beam, score=0.9 if beam.text == "b??" else 0.1))
    search.select()
    assert [(beam.text, beam.ids, beam.score) for beam in search.pending.values()] == [("b", (2,), 0.9)] * 2
    assert search.tokens == 5


def test_particles_are_drawn_by_their_odds() -> None:
    scores = [0.5, 0.75, 0.25, 0.5]
    expected = np.array([1, 3, 1 / 3, 1]) / (16 / 3)
    counts: Counter[str] = Counter()
    for level in range(2000):
        tree = Tree(list(range(4)), {slot: Beam(text=str(slot), score=score) for slot, score in enumerate(scores)})
        resample(tree, 0, f"p {level}")
        counts.update(beam.text for beam in tree.beams.values())
    drawn = np.array([counts[str(slot)] for slot in range(4)]) / 8000
    assert drawn == pytest.approx(expected, abs=0.02)
    again = Tree(list(range(4)), {slot: Beam(text=str(slot), score=score) for slot, score in enumerate(scores)})
    resample(again, 0, "p 1999")
    assert again == tree
    # A score of exactly 0 or 1 has a weight, too.
    edges = Tree([0, 1], {0: Beam(text="0", score=0.0), 1: Beam(text="1", score=1.0)})
    resample(edges, 0, "p")
    assert {beam.text for beam in edges.beams.values()} == {"1"}


@pytest.mark.parametrize("method", ["beam", "dvts", "lookahead", "particles"])
def test_a_perfect_verifier_finds_what_samples_seldom_are(method: str) -> None:
    """The right text is `aaaa`: one of 81 samples is."""
    rng = random.Random(0)

    def step(beam: Beam) -> tuple[str, str]:
        return rng.choice("abc"), "stop" if len(beam.text) == 3 else ""

    def right(method: str, width: int) -> int:
        search = ProblemSearch(Search(method=method, n=8, width=width), "p", Beam())
        finish(search, step, lambda text: 0.99 if set(text) == {"a"} else 0.01)
        return sum(beam.text == "aaaa" for beam in search.ended.values())

    sampled, searched = (sum(right(*how) for _ in range(40)) for how in (("beam", 1), (method, 8)))
    assert searched > 30 > 15 > sampled
