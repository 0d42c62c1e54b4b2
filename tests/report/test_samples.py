import random

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.report.browser import gallery, looked_at, steps, take
from minos_ray.store.run import Run


def test_the_sample_is_seeded(full: Run) -> None:
    chosen = [[s.candidate_id for s in gallery(full, 40, seed).samples] for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_groups_are_what_they_say(full: Run) -> None:
    found = gallery(full, 40, 0)
    sizes = {title: len(samples) for title, samples in found.groups()}
    assert list(sizes.values()) == [8, 8, 7, 7, 10]
    for sample in found.samples:
        if sample.group != "critique":
            assert sample.correct == sample.group.startswith("right")
    for side in ("right", "wrong"):
        high = [s.scores["prm-minos"] for s in found.samples if s.group == f"{side}-high"]
        low = [s.scores["prm-minos"] for s in found.samples if s.group == f"{side}-low"]
        assert min(high) > max(low)


@given(
    problems=st.lists(st.integers(0, 6), max_size=30),
    count=st.integers(0, 12),
    seed=st.integers(0, 5),
)
def test_problems_repeat_only_when_there_are_not_enough(problems: list[int], count: int, seed: int) -> None:
    identities = [f"p{problem}/{index}" for index, problem in enumerate(problems)]
    taken = take(identities, count, random.Random(seed))
    assert len(set(taken)) == len(taken) == min(count, len(identities))
    assert len({i.partition("/")[0] for i in taken}) == min(count, len(set(problems)))


def test_without_a_verifier_the_test_candidates_are_of_test_problems(copy: Run) -> None:
    copy.delete("scores")
    for problems in (None, ["test-1", "test-2"]):
        groups = dict(gallery(copy, 40, 0, problems).groups())
        assert {title: len(samples) for title, samples in groups.items()} == {
            "Test candidates": 30,
            "Training candidates with their critiques": 10,
        }
        assert all(s.candidate_id.startswith("test") for s in groups["Test candidates"])


def test_critiques_come_with_training_candidates_and_some_were_set_aside(full: Run) -> None:
    with_text = [s for s in gallery(full, 40, 0).samples if s.group == "critique"]
    assert all(s.candidate_id.startswith("train") and s.critiques for s in with_text)
    assert sum(not s.critiques[0]["agrees"] for s in with_text) == 2


def test_steps_carry_label_type_and_prm_score(full: Run) -> None:
    sample = next(s for s in gallery(full, 40, 0).samples if s.group == "wrong-low")
    assert len(sample.steps) == 4
    assert all(step.score is not None for step in sample.steps)
    assert min(step.score for step in sample.steps) == sample.scores["prm-minos"]
    assert [step.label for step in sample.steps].count(0) == sum(bool(step.error) for step in sample.steps)


def test_short_label_lists_leave_steps_unlabelled() -> None:
    made = steps({"steps": ["a", "b"], "step_labels": [1], "error_types": None}, [0.5])
    assert [(s.label, s.error, s.score) for s in made] == [(1, "", 0.5), (-1, "", None)]


def test_of_many_problems_some_are_looked_at(full: Run) -> None:
    assert looked_at(full, 0) is None and looked_at(full, 0, most=8) is None
    few = looked_at(full, 0, most=3)
    assert few is not None and few == looked_at(full, 0, most=3) and len(set(few)) == 3
    assert all(name.startswith("test-") for name in few)
    drawn = [s.candidate_id for s in gallery(full, 40, 0, few).samples if s.group != "critique"]
    assert {name.rpartition("/")[0] for name in drawn} == set(few)
