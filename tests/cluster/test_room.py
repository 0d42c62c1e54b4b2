"""Room on nodes: counted node by node, against a search that tries every placement."""

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.cluster.room import Bundles, Growth, bundles, lack, room
from minos_ray.config.resources import Actors, Workers
from minos_ray.pipeline import no_room

NODE = st.fixed_dictionaries({}, optional={"CPU": st.integers(0, 6), "GPU": st.integers(0, 4)})


def placed(each: Mapping[str, float], nodes: Sequence[Mapping[str, float]], most: int) -> int:
    """The most bundles that some assignment of each of them to a node can place."""
    for count in range(most, 0, -1):
        for places in itertools.product(range(len(nodes)), repeat=count):
            if all(
                places.count(place) * amount <= node.get(kind, 0)
                for place, node in enumerate(nodes)
                for kind, amount in each.items()
            ):
                return count
    return 0


@given(
    st.lists(NODE, max_size=3),
    st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(1, 3), min_size=1),
    st.integers(1, 4),
)
def test_room_is_what_some_placement_reaches(nodes: list[dict[str, float]], each: dict[str, float], count: int) -> None:
    assert room(Bundles(count, each), nodes) == placed(each, nodes, count)


def test_fractions_of_a_cpu_add_up() -> None:
    assert room(Bundles(10, {"CPU": 0.1}), [{"CPU": 1.0}]) == 10
    assert room(Bundles(3, {"CPU": 0.7}), [{"CPU": 2.1}]) == 3


def test_what_takes_nothing_fits_nowhere_too() -> None:
    assert room(bundles(Actors(actors=7, cpus=0)), []) == 7


def test_bundles_are_what_ray_reserves() -> None:
    assert bundles(Workers(workers=3, cpus=2, gpu=True)) == Bundles(3, {"CPU": 2.0, "GPU": 1.0})
    assert bundles(Actors(actors=2, cpus=8, gpus=4)) == Bundles(2, {"CPU": 1.0, "GPU": 4.0})
    assert bundles(Actors(actors=2, cpus=0.5)) == Bundles(2, {"CPU": 0.5})


def test_the_sum_is_there_but_no_actor_spans_nodes() -> None:
    nodes = {"a": {"CPU": 8.0, "GPU": 3.0}, "b": {"CPU": 8.0, "GPU": 5.0}}
    need = bundles(Actors(actors=2, gpus=4))
    line = lack("resources.sample", need, nodes)
    assert line == (
        "resources.sample wants 2 x (1 CPU, 4 GPU), each on one node: 1 of 2 fit on b: 8 CPU, 5 GPU; a: 8 CPU, 3 GPU"
    )
    assert lack("resources.sample", need, {**nodes, "c": {"CPU": 1.0, "GPU": 4.0}}) is None


@pytest.mark.parametrize(
    ("may", "refused"),
    [
        (Growth(False), "lower it or add nodes"),
        (Growth(True), None),
        (Growth(True, ({"CPU": 8.0, "GPU": 8.0},)), None),
        (Growth(True, ({"CPU": 8.0, "GPU": 2.0},)), "no type of node that holds one (8 CPU, 2 GPU)"),
    ],
)
def test_what_an_autoscaler_may_bring_is_not_refused(may: Growth, refused: str | None) -> None:
    line = no_room("resources.sample", bundles(Actors(gpus=4)), {"a": {"CPU": 2.0}}, may)
    assert (refused in (line or "")) if refused else line is None
