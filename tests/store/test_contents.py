"""Changed files under old names: what is made from them is stale, and nothing else is."""

import json
import os
import shutil
from pathlib import Path

import pytest

from minos_ray.config.load import Config, build
from minos_ray.config.schema import Model
from minos_ray.graph import specs
from minos_ray.graph.specs import begin
from minos_ray.graph.state import status
from minos_ray.imports import bring
from minos_ray.problems.loaders import problems
from minos_ray.store import model_files
from minos_ray.store.model_files import of_model, of_path
from minos_ray.store.run import Run
from tests.tiny import tiny_model


def write(path: Path, *answers: str) -> Path:
    rows = [{"question": f"{path.stem} {n}?", "answer": f"#### {answer}"} for n, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def config(tmp_path: Path, shipped: Path) -> Config:
    """Two files and a model in a directory."""
    model = shutil.copytree(shipped, tmp_path / "model")
    sources = {split: {"path": str(write(tmp_path / f"{split}.jsonl", "3", "4"))} for split in ("train", "test")}
    own = {"model": str(model)}
    return build({"run": str(tmp_path / "run"), "problems": sources, "base": own, "generator": own})


def states(config: Config) -> dict[str, tuple[str, str]]:
    return {state.artefact: (state.state, state.why) for state in status(config, Run(config.run))}


def test_a_changed_problem_file_makes_problems_stale(config: Config, tmp_path: Path) -> None:
    run = Run(config.run)
    problems(config, run)
    assert states(config)["problems"][0] == "done"
    os.utime(tmp_path / "test.jsonl", (1, 1))
    assert states(config)["problems"][0] == "done", "a copy has another time"
    write(tmp_path / "test.jsonl", "3", "5")
    assert states(config)["problems"] == ("stale", "problems.test.path has other content")
    problems(config, run)
    assert {row["answer"] for row in run.artefact("problems").read().to_pylist()} == {"3", "4", "5"}
    (tmp_path / "test.jsonl").unlink()
    assert states(config)["problems"][0] == "done", "a file that is gone says nothing"


def test_another_model_in_the_same_directory_makes_stale_what_it_made(config: Config, tmp_path: Path) -> None:
    run = Run(config.run)
    for name in ("problems", "candidates", "models/orm-base"):
        made = begin(config, run, name)
        made.complete({"rows": 0})
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert of_model(Model(model=str(tmp_path / "copy"))) == of_model(config.base)
    tiny_model(tmp_path / "model", seed=1)
    found = states(config)
    assert found["problems"][0] == "done"
    assert found["candidates"] == ("stale", "generator.model has other content")
    assert "base.model has other content" in found["models/orm-base"][1]


def test_runs_from_before_contents_were_known_stay_valid(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(config.run)
    with monkeypatch.context() as before:
        before.setattr(specs, "contents", lambda config, made: {})
        problems(config, run)
        half = begin(config, run, "candidates")
    assert states(config)["problems"][0] == "done"
    assert states(config)["candidates"] == ("partial", "")
    begun = half.begun()
    begin(config, run, "candidates")
    assert half.begun() == begun, "its parts stay"


def test_an_import_of_changed_files_makes_labels_stale_and_one_of_the_same_does_not(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    made = build({"run": str(tmp_path / "run"), "base": {"model": "x"}})
    run = Run(made.run)

    def import_(text: str) -> str:
        file.write_text(json.dumps({"question": "2?", "answer": "2", "text": text}) + "\n")
        bring("jsonl", str(file), run, text="text")
        return states(made)["labels"][0]

    assert import_("The answer is 1") == "missing"
    labels = begin(made, run, "labels")
    labels.complete({"rows": 1})
    assert import_("The answer is 1") == "done"
    assert import_("The answer is 100") == "stale"


def test_a_folder_is_its_files_and_their_names(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "1")
    first = of_path(str(tmp_path))
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden/b.jsonl", "1")
    assert of_path(str(tmp_path)) == first
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert of_path(str(tmp_path)) != first
    assert of_path(str(tmp_path / "nothing")) is of_path("hf://datasets/a/b/c.parquet") is of_path("x://y") is None


def test_pieces_of_a_large_file_tell_trained_weights_apart(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_model(Model(model=str(shipped)))
    for name, size in {"WHOLE": 1024, "PIECES": 16, "PIECE": 64}.items():
        monkeypatch.setattr(model_files, name, size)
    model_files.of_file.cache_clear()
    by_pieces = of_model(Model(model=str(shipped)))
    weights = shipped / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:2000] + bytes(byte ^ 1 for byte in kept[2000:]))
    assert len({whole, by_pieces, of_model(Model(model=str(shipped)))}) == 3
    weights.write_bytes(kept)
    model_files.of_file.cache_clear()
