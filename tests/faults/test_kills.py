"""A few kills at random moments on real raylets; `make chaos` does a hundred, in every stage."""

from collections.abc import Iterator

import pytest

from minos_ray.cluster.connect import disconnect
from minos_ray.problems.stage import problems
from tests.faults.chaos_processes import Watch
from tests.faults.chaos_round import Round, measure
from tests.faults.world import ENVIRONMENT, World, world
from tests.runs import put

pytestmark = pytest.mark.slow
# One text in so many of those that sampling would give is labelled.
EVERY = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Iterator[World]:
    """A head and two raylets, and a reference with candidates."""
    disconnect()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with world(tmp_path_factory.mktemp("world"), nodes=2) as made:
            problems(made.config(made.reference), made.reference)
            put(made.reference, "candidates", candidates(made))
            yield made


def candidates(world: World) -> list[dict]:
    """Every second one copies the worked solution, the others go wrong in the last line."""
    section = world.config(world.reference).sample
    amounts = {"train": section.n_train, "test": section.n_test}
    return [
        {
            "candidate_id": f"{problem['problem_id']}/{index}",
            "problem_id": problem["problem_id"],
            "index": index,
            "text": problem["solution"] + str(index) * (index % 2),
            "finish_reason": "stop",
            "num_tokens": 30,
            "model": "package:miniature/model",
        }
        for problem in world.reference.artefact("problems").read().to_pylist()
        for index in range(amounts[problem["split"]] // EVERY)
    ]


def test_labels_are_those_of_the_reference_whatever_dies(made: World) -> None:
    with Watch(made) as watch:
        reference = measure(made, watch, "label")
        report = Round(made, watch, "label", reference, "disturbed", seed=8).play(("driver", "raylet"))
    assert reference.done and 0 < reference.full <= reference.seconds
    assert not report.wrong
    assert [kill.victim for kill in report.kills] == ["driver", "raylet"]
    assert report.kills[0].outcome == "rerun went on"
