"""Who votes together."""

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.evaluation.answers import clusters


def test_right_answers_are_one_cluster_however_they_are_written() -> None:
    answers = ["1/2", "0.5", "7", None, "7.0", "x + 1", " x+1 "]
    right = [True, True, False, False, False, False, False]
    assert clusters(answers, right) == [0, 0, 1, -1, 1, 2, 2]


@given(st.lists(st.tuples(st.none() | st.integers(0, 5).map(str), st.booleans()), max_size=30))
def test_clusters_keep_equal_answers_together_and_others_apart(pairs: list[tuple[str | None, bool]]) -> None:
    answers, right = [a for a, _ in pairs], [r for _, r in pairs]
    found = clusters(answers, right)
    for (answer, good), cluster in zip(pairs, found, strict=True):
        assert (cluster == 0) == good
        assert good or (cluster == -1) == (answer is None)
    wrong = {(a, c) for (a, good), c in zip(pairs, found, strict=True) if not good and a is not None}
    assert len({a for a, _ in wrong}) == len(wrong) == len({c for _, c in wrong})
