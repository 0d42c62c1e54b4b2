"""Two kills and a drain in the middle of the work on real raylets; `make chaos` does many, in all stages."""

from collections.abc import Iterator
from typing import Any

import pytest

from minos_ray.cluster.connect import disconnect
from minos_ray.problems.loaders import problems
from minos_ray.store import columns
from tests.faults.chaos_processes import Watch
from tests.faults.chaos_round import Round, measure
from tests.faults.world import ENVIRONMENT, GATE, Gate, World, world

pytestmark = pytest.mark.slow
# One text in so many of those that sampling would give is labelled: 152, of which 76 need a comparison.
EVERY = 2
# So many comparisons are let through before each kill: some parts can be stored, but not all.
BETWEEN, EVERYTHING = 24, 10**6


class HeldRound(Round):
    """The stage cannot end before the last kill, however fast it is: a gate holds it until then."""

    def __init__(self, gate: Gate, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.gate = gate
        gate.let(BETWEEN)

    def await_moment(self, kind: str, more: int) -> bool:
        """Until something is stored."""
        return self.within(self.share, "nothing is stored")

    def strike(self, kind: str) -> bool:
        """Lets work through until the next kill, or all of it after the last."""
        if killed := super().strike(kind):
            self.gate.let(BETWEEN if kind == "driver" else EVERYTHING)
        return killed


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """An open gate."""
    made = Gate(tmp_path_factory.mktemp("gate"))
    made.let(EVERYTHING)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gate: Gate, end_of_ray: None) -> Iterator[World]:
    """A head and two raylets, and a reference with candidates."""
    disconnect()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, GATE: str(gate.limit.parent)}.items():
            patch.setenv(name, value)
        with world(tmp_path_factory.mktemp("world"), nodes=2) as made:
            problems(made.config(made.reference), made.reference)
            put_candidates(made)
            yield made


def put_candidates(world: World) -> None:
    """One part for each problem. Every second one copies the worked solution, the others go wrong in the last line."""
    section, target = world.config(world.reference).sample, world.reference.artefact("candidates")
    amounts = {"train": section.n_train // EVERY, "test": section.n_test // EVERY}
    target.begin({"import": "candidates"})
    questions = world.reference.artefact("problems").read().to_pylist()
    for number, problem in enumerate(questions):
        target.write_part(str(number), columns.table("candidates", candidates(problem, amounts[problem["split"]])))
    target.complete({"rows": sum(amounts[problem["split"]] for problem in questions)})


def candidates(problem: dict, amount: int) -> list[dict]:
    """Of one problem."""
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
        for index in range(amount)
    ]


def test_labels_are_those_of_the_reference_whatever_dies(made: World, gate: Gate) -> None:
    with Watch(made) as watch:
        reference = measure(made, watch, "label")
        report = HeldRound(gate, made, watch, "label", reference, "disturbed", seed=8).play(("driver", "raylet"))
        drained = HeldRound(gate, made, watch, "label", reference, "drained", seed=9).play(("drain",))
    assert reference.done and 0 < reference.full <= reference.seconds
    assert not report.wrong
    assert [kill.victim for kill in report.kills] == ["driver", "raylet"]
    assert all(0 < kill.share < 1 for kill in report.kills)
    assert report.kills[0].outcome == "rerun went on"
    assert not drained.wrong and drained.starts == 1
    assert drained.kills[0].early and not drained.kills[0].lost
