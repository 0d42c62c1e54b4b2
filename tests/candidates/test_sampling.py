"""The sampling stage on a real Ray with real engines: 70 means 70, after a rerun and after a killed actor too."""

import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from minos_ray import schema
from minos_ray.candidates.stage import sample
from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.sections import Engine, Model, Resources, Sample
from minos_ray.store import Run
from tests.tiny import tiny_model

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
PROBLEMS = {"one": ("test", 70), "two": ("test", 70), "three": ("train", 5)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny generator."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def make_config(tmp_path: Path, path: str, actors: int, **sampling: object) -> Config:
    """Actors of one CPU each; every unit is a task of its own."""
    engine = Engine(actors=actors, cpus=1, kv_cache_gb=0.05, units_per_task=1)
    settings = {"n_train": 5, "n_test": 70, "unit": 32, "max_tokens": 16, "temperature": 1.0, **sampling}
    return Config(
        run=str(tmp_path / "run"),
        base=Model(model=path),
        generator=Model(model=path),
        sample=Sample(**settings),
        resources=Resources(sample=engine),
    )


def make_run(config: Config) -> Run:
    """A run whose problems all ask the same, so that equal streams would give equal texts."""
    run = Run(config.run)
    artefact = run.artefact("problems")
    artefact.begin({"import": "test"})
    common = {"dataset": "test", "question": QUESTION, "answer": "7", "solution": None}
    rows = [{"problem_id": name, "split": split, **common} for name, (split, _) in PROBLEMS.items()]
    artefact.write_part("0", schema.table("problems", rows))
    artefact.complete({"problems": len(rows)})
    return run


def assert_every_index_once(run: Run) -> None:
    """n candidates of every problem with indices 0..n-1, ids that say so, nothing twice."""
    rows = schema.validate("candidates", run.artefact("candidates").read()).to_pylist()
    assert all(row["candidate_id"] == f"{row['problem_id']}/{row['index']}" for row in rows)
    found = defaultdict(list)
    for row in rows:
        found[row["problem_id"]].append(row["index"])
    assert {name: sorted(indices) for name, indices in found.items()} == {
        name: list(range(n)) for name, (_, n) in PROBLEMS.items()
    }


@pytest.mark.slow
def test_70_are_70_and_a_rerun_asks_for_what_is_missing(tmp_path: Path, path: str, local_ray: None) -> None:
    config = make_config(tmp_path, path, actors=2)
    run = make_run(config)
    manifest = sample(config, run)
    assert_every_index_once(run)
    assert manifest.counts["candidates"] == 145
    rows = run.artefact("candidates").read().to_pylist()
    assert manifest.dropped["truncated_at_max_tokens"] == sum(row["finish_reason"] == "length" for row in rows)
    assert manifest.counts["tokens"] == sum(row["num_tokens"] for row in rows)
    units = defaultdict(set)
    for row in rows:
        units[row["problem_id"], row["index"] // 32].add(row["text"])
    texts = [text for made in units.values() for text in made]
    assert len(units) == 7
    assert len(texts) == len(set(texts)), "two tasks drew the same random stream"

    assert sample(config, run) == manifest
    kept = remove_a_part(run)
    resumed = sample(make_config(tmp_path, path, actors=1), run)
    assert_every_index_once(run)
    assert resumed.details["candidates_before"] == sum(len(ids) for ids in kept.values())
    assert 0 < resumed.details["candidates_before"] < 145
    assert {name: stored_texts(run, name) for name in kept} == kept


def stored_texts(run: Run, part: str) -> list[str]:
    """The texts of a part."""
    return run.artefact("candidates").read_part(part)["text"].to_pylist()


def remove_a_part(run: Run) -> dict[str, list[str]]:
    """Deletes the manifest and one part, tears another; returns the texts of the others by part."""
    artefact = run.artefact("candidates")
    gone, torn, *kept = artefact.part_names()
    texts = {name: stored_texts(run, name) for name in kept}
    run.delete("candidates/manifest.json")
    run.delete(f"candidates/part-{gone}.parquet")
    file = Path(run.root) / f"candidates/part-{torn}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    return texts


@pytest.mark.slow
def test_a_killed_actor_loses_and_repeats_nothing(tmp_path: Path, path: str, local_ray: None) -> None:
    config = make_config(tmp_path, path, actors=1, unit=4, max_tokens=40)
    run = make_run(config)
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(run, killed))
    killer.start()
    sample(config, run)
    killer.join(timeout=60)
    assert killed, "no actor was killed"
    assert_every_index_once(run)


def kill_an_actor(run: Run, killed: list[int]) -> None:
    """Waits for the first part, then kills an actor that is sampling."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(f.startswith("part-") for f in run.files("candidates")):
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        if "PartWriter" in process.name() or "PartWriter" in " ".join(process.cmdline()):
            killed.append(process.pid)
            process.kill()
            return


def test_no_generator_is_one_line_and_clears_nothing(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path / "run"), base=Model(model="base"))
    run = make_run(config)
    artefact = run.artefact("candidates")
    artefact.begin({"an": "older config"})
    artefact.write_part("kept", schema.table("candidates", []))
    artefact.complete({})
    for broken in (config, config.model_copy(update={"generator": Model(model="./nowhere")})):
        with pytest.raises(UserError, match=r"generator|nowhere"):
            sample(broken, run)
    assert artefact.part_names() == ["kept"]
