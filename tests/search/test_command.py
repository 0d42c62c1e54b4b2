"""`minos search` on a real Ray: resume, an engine that dies, and a run of its own that every later stage reads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import Config, load_config
from minos_ray.config.schema import Search
from minos_ray.errors import UserError
from minos_ray.graph.state import status
from minos_ray.miniature import load
from minos_ray.pipeline import findings, saved_config
from minos_ray.search import command
from minos_ray.search.searcher import Searcher
from minos_ray.store.run import Run
from tests.runs import put
from tests.tiny import tiny_model


def make_config(folder: Path, *overrides: str) -> Config:
    """The miniature with one actor; few problems are in flight, so that parts are written early."""
    small = ["actors=1", "max_num_seqs=8", "kv_cache_gb=0.1"]
    return load_config(
        "miniature",
        [
            f"run={folder / 'run'}",
            "search.n=4",
            "search.width=2",
            "score.judge=null",
            "evaluate.bootstrap=100",
            *(f"resources.sample.{setting}" for setting in small),
            "resources.score.actors=1",
            "resources.grade.actors=1",
            *overrides,
        ],
    )


def make_run(config: Config, problems: int = 8) -> Run:
    """A run with problems and two verifiers of random weights, as training would leave it."""
    run = Run(config.run)
    rows = [{**row, "problem_id": f"p{place}"} for place, row in enumerate(load("test", problems, 0))]
    put(run, "problems", rows + [{**row, "split": "train", "problem_id": "t"} for row in load("train", 1, 0)])
    for kind in ("prm", "orm"):
        tiny_model(Path(config.run) / f"models/{kind}-base", kind)
        artefact = run.artefact(f"models/{kind}-base")
        artefact.run.write_bytes(f"{artefact.name}/begun.json", b'{"fingerprint": "1", "inputs": {}}')
        artefact.complete({})
    return run


def texts(run: Run) -> dict[str, str]:
    """Texts of the candidates by id; each is there once."""
    rows = run.artefact("candidates").read().to_pylist()
    assert len({row["candidate_id"] for row in rows}) == len(rows)
    return {row["candidate_id"]: row["text"] for row in rows}


@pytest.mark.slow
def test_a_search_is_a_run_that_resumes_and_survives_its_engine(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    target, manifest = command.search(config, run)
    assert target.path == run.at("search/beam")
    assert manifest.counts["candidates"] == 32 and not manifest.dropped
    first = texts(target)
    assert set(first) == {f"p{place}/{index}" for place in range(8) for index in range(4)}

    content = json.loads(target.read_bytes("evaluation.json"))
    methods = {(row["method"], row["verifier"]) for row in content["methods"] if row["n"] == 4}
    assert {("best-of-n", "prm-base"), ("weighted-vote", "orm-base"), ("self-consistency", "")} <= methods
    states = {state.artefact: state.state for state in status(saved_config(target), target)}
    made = ("problems", "candidates", "labels", "scores/prm-base", "scores/orm-base", "evaluation.json", "report.html")
    assert {states[name] for name in made} == {"done"}
    assert "beam search" in target.read_bytes("report.html").decode()
    before = {name: target.artefact(name).manifest() for name in made}
    assert command.search(config, run)[1] == manifest
    assert {name: target.artefact(name).manifest() for name in made} == before, "a rerun makes nothing again"

    # The same after a kill, with the PRM in an actor of its own: what is stored stays, an engine that dies is
    # started again, and texts are the same.
    lose_half(target)
    with pytest.raises(UserError, match=r"search_pools = 2 takes 2 x \(1 CPU\).* 4 CPU of 2;"):
        command.search(make_config(tmp_path, "resources.search_pools=2", "resources.sample.actors=2"), run)
    monkeypatch.setattr("minos_ray.search.command.Searcher", Mortal)
    again = command.search(make_config(tmp_path, "resources.search_pools=2"), run)[1]
    assert texts(target) == first
    assert again.counts == manifest.counts
    assert (Path(run.path) / "starts").read_text() == "xx"
    assert not target.exists("candidates/attempts")


def lose_half(run: Run) -> None:
    """Deletes the manifest and half of the parts, as a kill would leave it."""
    names = run.artefact("candidates").part_names()
    run.delete("candidates/manifest.json")
    for name in names[: -(-len(names) // 2)]:
        run.delete(f"candidates/part-{name}.parquet")


class Mortal(Searcher):
    """Its process dies while it works, in its first life."""

    def __init__(self, run: str, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        with open(f"{run}/starts", "a+") as starts:
            starts.write("x")
            starts.seek(0)
            lives = len(starts.read())
        rate, rated = self.rate, []

        def mortal_rate(problems: list[Any]) -> None:
            rated.append(problems)
            if lives == 1 and len(rated) == 3:
                os._exit(1)
            rate(problems)

        self.rate = mortal_rate  # ty: ignore[invalid-assignment]


def test_what_cannot_be_searched_is_one_line(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config, 1)
    expected = {
        ("sample.presence_penalty=0.5",): "sample.presence_penalty counts",
        ("search.verifier={model: run:models/orm-base}",): "scores whole solutions",
        ("search.verifier={model: ./nowhere}",): "search.verifier: model './nowhere'",
        ("resources.score.engine=vllm",): "search needs transformers",
        ("sample.max_tokens=512",): "leaves no room for a prompt",
        ("evaluate.groups=5",): r"evaluate.groups = 5 divides search.n = 4",
        ("generator=null",): "generator.model is missing",
        ("search.aggregation=best",): "search.aggregation",
        ("search.width=0",): "search.width",
    }
    for overrides, line in expected.items():
        with pytest.raises(UserError, match=line):
            command.search(make_config(tmp_path, *overrides), run)
    shutil.rmtree(Path(run.path) / "models/prm-base")
    with pytest.raises(UserError, match="has no trained PRM"):
        command.search(config, run)
    assert not run.exists("search")


def test_what_cannot_be_searched_is_found_before_the_run(tmp_path: Path) -> None:
    orm = tiny_model(tmp_path / "orm", "orm")
    expected = {
        ("sample.presence_penalty=0.5",): "sample.presence_penalty counts",
        ("reward.verifiers=[orm-base]",): "has no trained PRM",
        ("search.verifier={model: run:models/prm-other}",): "makes none of that name",
        ("search.verifier={model: ./nowhere}",): "search.verifier: model './nowhere'",
        (f"search.verifier={{model: {orm}}}",): "scores whole solutions",
        ("resources.score.engine=vllm",): "search needs transformers",
        ("evaluate.groups=5",): r"evaluate.groups = 5 divides search.n = 4",
    }
    for overrides, line in expected.items():
        config = make_config(tmp_path, *overrides)
        assert [text for text in findings(config, Run(config.run)) if line in text], line
    for overrides in (
        (),
        ("search.verifier={model: run:models/prm-base}",),
        ("reward.verifiers=[orm-base]", "search={}"),
    ):
        config = make_config(tmp_path, *overrides)
        assert not [text for text in findings(config, Run(config.run)) if "search" in text or "PRM" in text], overrides


def test_a_search_makes_nothing_of_its_run_stale(tmp_path: Path) -> None:
    """The section is in no fingerprint but that of its own candidates."""
    config = make_config(tmp_path)
    run = make_run(config, 1)
    changed = config.model_copy(update={"search": Search(method="dvts", n=64)})
    study = {"study": config.study.model_copy(update={"seeds": (1, 2)})}
    for plain, other in ((config, changed), (config.model_copy(update=study), changed.model_copy(update=study))):
        before, after = status(plain, run), status(other, run)
        assert before == after
        inputs = [command.inputs_of(config, run, run, None) for config in (plain, other)]
        assert inputs[0] != inputs[1]


def test_beams_that_an_earlier_release_chose_and_an_adapter_that_changed_are_searched_again(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    config = make_config(tmp_path, f"generator.adapter={adapter}")
    run = make_run(config, 1)

    def inputs(**search: Any) -> dict[str, Any]:
        changed = config.model_copy(update={"search": config.search.model_copy(update=search)})
        return command.inputs_of(changed, run, run, None)

    assert inputs()["selection"] == command.SELECTION
    assert "selection" not in inputs(width=1) | inputs(method="particles"), "they choose as they did"
    before = inputs()
    (adapter / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 1}')
    assert inputs() != before


def test_a_check_fetches_no_weights_of_a_verifier_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("minos_ray.graph.state.hub_config", lambda name, revision: asked.append(name))
    monkeypatch.setattr("minos_ray.store.model_files._from_hub", lambda model: pytest.fail("it was fetched"))
    config = make_config(tmp_path, "search.verifier={model: some/prm}")
    command.check_search(config, Run(config.run))
    assert asked == ["some/prm"]
