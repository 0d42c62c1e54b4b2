"""How many trials a cluster holds at once: each phase of each trial whole, no bundle over two nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.resources import Resources
from minos_ray.study.stage import trials_at_once


@pytest.mark.parametrize(
    ("train", "score", "nodes", "expected"),
    [
        ({"workers": 2}, {"actors": 1}, [{"CPU": 2}], 1),
        ({"workers": 1}, {"actors": 1}, [{"CPU": 2}], 2),
        ({"workers": 1}, {"actors": 2}, [{"CPU": 5}], 2),
        ({"workers": 2, "gpu": True, "cpus": 4}, {"actors": 1, "gpus": 1}, [{"CPU": 64, "GPU": 8}], 4),
        ({"workers": 2, "gpu": True, "cpus": 4}, {"actors": 8, "gpus": 1}, [{"CPU": 64, "GPU": 8}], 1),
        ({"workers": 8, "gpu": True}, {"actors": 1}, [{"CPU": 1}], 1),
        # 3 + 3 CPUs hold 3 + 3 workers of one CPU, but one of two CPUs on each node.
        ({"workers": 2, "cpus": 1}, {"actors": 1}, [{"CPU": 3}, {"CPU": 3}], 3),
        ({"workers": 2, "cpus": 2}, {"actors": 1}, [{"CPU": 3}, {"CPU": 3}], 1),
        ({"workers": 1}, {"actors": 1, "gpus": 2, "engine": "vllm"}, [{"CPU": 9, "GPU": 3}, {"CPU": 9, "GPU": 5}], 3),
        # A scorer on a GPU takes a CPU too.
        ({"workers": 1, "cpus": 0.1}, {"actors": 1, "gpus": 1}, [{"CPU": 2, "GPU": 8}], 2),
        ({"workers": 1, "cpus": 0.1}, {"actors": 1, "cpus": 0}, [{"CPU": 0.3}], 3),
        ({"workers": 1}, {"actors": 1}, [{"CPU": 100}], 9),
    ],
)
def test_as_many_trials_at_once_as_have_room_in_every_phase(
    train: dict, score: dict, nodes: list[dict[str, float]], expected: int
) -> None:
    assert trials_at_once(Resources(train=train, score=score), nodes, most=9) == expected


def test_critics_that_sample_need_room_for_their_engines() -> None:
    resources = Resources(judge={"actors": 3})
    assert [trials_at_once(resources, [{"CPU": 6}], 9, judges) for judges in (False, True)] == [6, 2]


def placed(bundles: int, need: int, nodes: list[int]) -> bool:
    """Whether so many bundles can be put on the nodes, by trying."""
    if not bundles:
        return True
    return any(
        free >= need and placed(bundles - 1, need, [*nodes[:at], free - need, *nodes[at + 1 :]])
        for at, free in enumerate(nodes)
    )


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 4), max_size=3))
def test_never_more_than_fit_and_not_one_fewer(count: int, need: int, free: list[int]) -> None:
    resources = Resources(train={"workers": count, "cpus": need}, score={"cpus": 0})
    found = trials_at_once(resources, [{"CPU": float(cpus)} for cpus in free], most=3)
    assert found == 1 or placed(found * count, need, free)
    assert found == 3 or not placed((found + 1) * count, need, free)
