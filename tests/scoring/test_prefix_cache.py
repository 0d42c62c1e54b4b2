"""Scores of growing solutions from cached keys and values are those of the whole text in one pass."""

import random

import numpy as np
import pytest

from minos_ray.config.resources import Scoring
from minos_ray.scoring.prefix_cache import Branch, Growing, PrefixCache, StepScorer
from minos_ray.scoring.verifier import Scorer
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A tiny PRM with grouped heads."""
    return Scorer(tiny_model(tmp_path_factory.mktemp("models") / "prm", "prm", layers=3, hidden=128), False, Scoring())


def questions() -> dict[str, str]:
    """Two problems that ask the same, and one of its own."""
    return {name: f"Tom has {apples} apples. How many?" for name, apples in (("a", 3), ("b", 3), ("c", 14))}


@pytest.mark.parametrize("budget", [2048, 40])
def test_scores_step_by_step_are_those_of_the_whole_text(scorer: Scorer, budget: int) -> None:
    rng, asked, steps = random.Random(0), questions(), StepScorer(scorer)
    scorer.budget, steps.cache.size, steps.cache.free = budget, 16, np.arange(16)  # it has to grow
    beams = [(name, [], Branch()) for name in asked for _ in range(6)]
    whole = 0
    for level in range(5):
        # Each beam continues any one of its problem, so that prefixes are shared; some steps are the same.
        parents = [rng.choice([beam for beam in beams if beam[0] == name]) for name, _, _ in beams]
        texts = [[*done, f"Step {level}: {rng.randint(1, 3)} + {level} is some number"] for _, done, _ in parents]
        growing = [Growing(p[0], asked[p[0]], text, p[2]) for p, text in zip(parents, texts, strict=True)]
        scored = steps(growing)
        expected, stats = scorer.score([(g.question, g.steps) for g in growing])
        whole += stats["tokens_of_solutions"]
        assert [len(scores) for scores, _ in scored] == [level + 1] * len(beams)
        assert np.ptp(np.concatenate(expected)) > 0.01
        for (scores, _), of_whole_text in zip(scored, expected, strict=True):
            assert scores == pytest.approx(of_whole_text, abs=1e-5)
        beams = [(g.name, list(g.steps), branch) for g, (_, branch) in zip(growing, scored, strict=True)]
        for name in asked:
            steps.keep(name, [branch for of, _, branch in beams if of == name])
            assert len(steps.places[name]) == len(np.unique(steps.places[name]))
    assert steps.tokens < whole / 4
    in_use = sum(map(len, steps.places.values()))
    assert in_use + len(steps.cache.free) == steps.cache.size
    for name in asked:
        steps.close(name)
    assert sorted(steps.cache.free) == list(range(steps.cache.size))
    scorer.budget = 2048


def test_another_split_of_the_text_before_gives_the_scores_of_the_whole_text(scorer: Scorer) -> None:
    """A splitter may join or divide earlier steps once it sees more."""
    steps, asked = StepScorer(scorer), "How many?"
    ((_, branch),) = steps([Growing("a", asked, ["One.", "Two."], Branch())])
    for again in (["One.\nTwo.", "Three."], ["One.", "Two.\nThree."], ["One."], ["Other."]):
        ((scores, _),) = steps([Growing("a", asked, again, branch)])
        assert scores == pytest.approx(scorer.score([(asked, again)])[0][0], abs=1e-5)


def test_what_the_verifier_refuses_has_no_scores(scorer: Scorer) -> None:
    steps = StepScorer(scorer)
    none, (some, _) = steps([Growing("a", "How many?", [], Branch()), Growing("b", "Why?", ["One."], Branch())])
    assert none[0] == [] and len(some) == 1
    steps.close("a")
    steps.close("b")


def test_a_model_that_cannot_share_reads_the_whole_text(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = [Growing("a", "How many?", ["One.", "Two."], Branch())]
    expected = StepScorer(scorer)(growing)[0][0]
    monkeypatch.setattr(scorer, "together", 3)
    steps = StepScorer(scorer)
    assert steps(growing)[0][0] == pytest.approx(expected, abs=1e-5)
    assert not steps.questions


def test_places_are_given_once_and_the_cache_grows() -> None:
    cache = PrefixCache()
    first = cache.reserve(5000)
    assert len(np.unique(first)) == 5000 and cache.size == 8192
    cache.release(first[:1000])
    second = cache.reserve(4000)
    assert len(np.unique(np.concatenate([first[1000:], second]))) == 8000
