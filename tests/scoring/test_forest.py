"""Forests: every sequence is there, each token sees exactly what it would see alone, nothing shared is repeated."""

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.scoring.forest import NONE, Forest, forests, keys, runs

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


def seen(forest: Forest, node: int) -> set[int]:
    """What a node attends to."""
    return {other for other in range(node + 1) if node < forest.ends[other]}


@given(SEQUENCES, st.integers(1, 30))
def test_a_path_is_its_sequence_and_sees_itself_only(sequences: list[list[int]], budget: int) -> None:
    met = []
    for forest in forests(sequences, range(len(sequences)), budget):
        for member, path in zip(forest.members, forest.paths, strict=True):
            met.append(member)
            assert forest.ids[path].tolist() == sequences[member]
            assert forest.depths[path].tolist() == list(range(len(path)))
            for place, node in enumerate(path):
                assert seen(forest, node) == set(path[: place + 1])
        assert len(forest.ids) <= budget or len({tuple(sequences[m]) for m in forest.members}) == 1
    assert sorted(met) == list(range(len(sequences)))


@given(SEQUENCES)
def test_one_forest_holds_each_distinct_beginning_once(sequences: list[list[int]]) -> None:
    (forest,) = forests(sequences, range(len(sequences)), budget=1000)
    beginnings = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert len(forest.ids) == len(beginnings)


@given(SEQUENCES, st.integers(1, 9))
def test_a_run_has_the_keys_of_all_its_nodes_once(sequences: list[list[int]], width: int) -> None:
    (forest,) = forests(sequences, range(len(sequences)), budget=1000)
    asking = runs(forest, width)
    assert asking.flatten().tolist()[: len(forest.ids)] == list(range(len(forest.ids)))
    for run, asked in zip(asking, keys(forest, asking), strict=True):
        there = [key for key in asked if key != NONE]
        assert len(set(there)) == len(there)
        for node in run[run < len(forest.ids)]:
            assert seen(forest, node) <= set(there)


def test_only_members_are_laid_out() -> None:
    (forest,) = forests([[1], [2], [3]], [2, 0], budget=10)
    assert sorted(forest.members) == [0, 2]
    assert list(forests([[1]], [], budget=10)) == []
