"""Seeded mistakes on a cluster of real raylets, two of which differ: each is found and named, in seconds."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from minos_ray.cluster import nodes
from minos_ray.cluster.connect import disconnect
from minos_ray.config.load import Config, load_config
from minos_ray.errors import UserError, WorkStopped
from minos_ray.pipeline import check, findings, require, run_stage
from minos_ray.store.run import Run
from tests.cluster import world
from tests.cluster.world import KEY, ODD, OTHER, SEEDED
from tests.runs import problem, put

pytestmark = pytest.mark.slow
apart = pytest.mark.skipif(not world.SEPARATE, reason="no mount namespaces here")


class World(NamedTuple):
    """Where it lies, where its cluster is, and the file of a right config."""

    folder: Path
    address: str
    config: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Joined by this process, which finds the modules that the configs name."""
    folder = tmp_path_factory.mktemp("preflight")
    world.prepare(folder)
    with pytest.MonkeyPatch.context() as patch, world.critic() as url, ExitStack() as until_the_end:
        cluster = until_the_end.enter_context(world.cluster(folder))
        for name in ("here", "partly"):
            patch.syspath_prepend(str(folder / "modules" / name))
        patch.setenv(KEY, "good")
        patch.setenv("RAY_ADDRESS", cluster.address)
        (folder / "right.yaml").write_text(yaml.safe_dump(world.right(folder, cluster.address, url)))
        yield World(folder, cluster.address, folder / "right.yaml")


def config(made: World, *overrides: str) -> Config:
    """The right config with some keys changed."""
    return load_config(made.config, [override.format(folder=made.folder) for override in overrides])


def found(made: World, *overrides: str) -> list[str]:
    """What is found to be wrong."""
    values = config(made, *overrides)
    return list(findings(values, Run(values.run)))


def test_nothing_is_wrong(made: World) -> None:
    said: list[str] = []
    check(config(made, "sample.prompt=everywhere:plain"), said.append)
    assert "config, files, models, credentials: fine" in said
    assert said[-1] == "cluster: 3 nodes with 4 CPU, 8 GPU: same versions, storage shared"
    assert not (made.folder / "run").exists(), "a check leaves nothing behind"


@pytest.mark.parametrize("name", [pytest.param(n, marks=apart if s.mounted else ()) for n, s in SEEDED.items()])
def test_a_mistake_is_named_and_nothing_else(made: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = SEEDED[name]
    for variable, value in seeded.env.items():
        monkeypatch.setenv(variable, value)
    if name == "no cluster at the address":
        disconnect()
    lines = found(made, *seeded.overrides)
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in seeded.words), lines[0]
    assert "wrong" not in lines[0], "keys are never shown"


@apart
def test_several_are_said_at_once(made: World) -> None:
    lines = found(made, "generator.model={folder}/partly/model", "run={folder}/frozen/run", "resources.grade.actors=9")
    assert len(lines) == 3
    assert all(any(word in line for line in lines) for word in ("generator.model", "Read-only", "9 x (1 CPU)"))


@apart
def test_a_node_with_other_versions_and_a_full_disk(made: World) -> None:
    with world.other_node(made.folder, made.address):
        lines = found(made)
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"node {OTHER}: transformers 4.1.0, the driver has ")
    assert lines[1].startswith(f"node {OTHER}: {made.folder}/tiny has 0.00 GB free")


@apart
def test_a_stage_asks_for_its_own_only(made: World) -> None:
    values = config(made, "generator.model={folder}/partly/model", "resources.grade.actors=9")
    run = Run(values.run)
    assert not list(findings(values, run, {"problems"}))
    [line] = findings(values, run, {"sample"})
    assert ODD in line and "generator.model" in line
    assert not list(findings(values, run, {"label"})), "a stage waits for room, and says so"


def test_what_the_driver_lacks_is_not_asked_of_the_nodes(made: World) -> None:
    [line] = found(made, "base.model={folder}/nowhere")
    assert line.startswith("base.model: model") and "nowhere" in line


@apart
def test_a_stage_is_refused_before_it_begins(made: World) -> None:
    values = config(made, "run={folder}/half", "generator.model={folder}/partly/model")
    run = Run(values.run)
    put(run, "problems", [problem(0)])
    with pytest.raises(UserError, match=rf"node {ODD}: generator.model = .* cannot be read there"):
        run_stage(values, run, "sample")
    assert run.artefact("candidates").begun() is None


def test_a_node_that_does_not_answer_is_named(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "WITHIN_S", 6.0)
    with world.frozen(ODD):
        lines = found(made)
    assert lines == [f"node {ODD}: does not answer within 6 s"]


def test_a_node_that_is_silent_while_a_stage_starts_stops_the_work(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PATIENT_S", 5.0)
    values = config(made)
    with world.frozen(ODD), pytest.raises(WorkStopped, match=f"node {ODD}: does not answer within 5 s"):
        require(values, Run(values.run), {"sample"})


def test_an_address_of_another_server_is_no_head(made: World) -> None:
    disconnect()
    with world.critic() as url:
        lines = found(made, f"resources.address={url.split('/')[2]}")
    assert len(lines) == 1 and "is no Ray head" in lines[0], lines
