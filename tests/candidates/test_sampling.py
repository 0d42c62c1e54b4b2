"""The sampling stage on a real Ray with real engines: 70 means 70, after a rerun and after a killed actor too."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from minos_ray.candidates.engine import Sampler, Text, candidates
from minos_ray.candidates.stage import extend, plan, read_targets, sample, stored_candidates
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine, Resources
from minos_ray.config.schema import Model, Sample
from minos_ray.errors import UserError
from minos_ray.graph import specs
from minos_ray.store import columns
from minos_ray.store.run import Run
from tests.tiny import tiny_model

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
DEADLY = "How many engines does this question kill?"
PROBLEMS = {"one": ("test", 70), "two": ("test", 70), "three": ("train", 5)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny generator."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def make_config(
    tmp_path: Path, path: str, actors: int, units_per_task: int = 1, max_num_seqs: int = 64, **sampling: object
) -> Config:
    """Actors of one CPU each; every unit is a task of its own unless told otherwise."""
    tasks = {"units_per_task": units_per_task, "max_num_seqs": max_num_seqs}
    engine = Engine(actors=actors, cpus=1, kv_cache_gb=0.05, **tasks)
    settings = {"n_train": 5, "n_test": 70, "unit": 32, "max_tokens": 16, "temperature": 1.0, **sampling}
    return Config(
        run=str(tmp_path / "run"),
        base=Model(model=path),
        generator=Model(model=path),
        sample=Sample(**settings),
        resources=Resources(sample=engine),
    )


def make_run(config: Config, deadly: tuple[str, ...] = ()) -> Run:
    """A run whose problems all ask the same, so that equal streams would give equal texts, but for `deadly` ones."""
    run = Run(config.run)
    artefact = run.artefact("problems")
    artefact.begin({"import": "test"})
    common = {"dataset": "test", "answer": "7", "solution": None}
    asked = {name: DEADLY if name in deadly else QUESTION for name in PROBLEMS}
    rows = [
        {"problem_id": name, "split": split, "question": asked[name], **common} for name, (split, _) in PROBLEMS.items()
    ]
    artefact.write_part("0", columns.table("problems", rows))
    artefact.complete({"problems": len(rows)})
    return run


def assert_every_index_once(run: Run) -> None:
    """n candidates of every problem with indices 0..n-1, ids that say so, nothing twice."""
    rows = columns.validate("candidates", run.artefact("candidates").read()).to_pylist()
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
    assert {name: stored_texts(run, [name]) for name in kept} == kept


def stored_texts(run: Run, names: list[str]) -> dict[str, str]:
    """The texts of parts, by candidate."""
    rows = [row for name in names for row in run.artefact("candidates").read_part(name).to_pylist()]
    return {row["candidate_id"]: row["text"] for row in rows}


def remove_a_part(run: Run) -> dict[str, dict[str, str]]:
    """Deletes the manifest and one part, tears another; returns the texts of the others by part."""
    artefact = run.artefact("candidates")
    gone, torn, *kept = artefact.part_names()
    texts = {name: stored_texts(run, [name]) for name in kept}
    run.delete("candidates/manifest.json")
    run.delete(f"candidates/part-{gone}.parquet")
    file = Path(run.root) / f"candidates/part-{torn}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    return texts


def test_a_larger_n_keeps_what_is_there_and_a_smaller_one_or_another_key_does_not(tmp_path: Path, path: str) -> None:
    few = make_config(tmp_path, path, actors=1, n_train=2, n_test=40)
    run = make_run(few)
    artefact = specs.begin(few, run, "candidates")
    unit = {"problem_id": "one", "first": 0, "count": 40}
    artefact.write_part("kept", candidates(unit, [Text("text", "stop", 1)] * 40, "model"))
    done = artefact.complete({"candidates": 40})
    larger = make_config(tmp_path, path, actors=1, n_train=2, n_test=50)
    other = make_config(tmp_path, path, actors=1, n_train=2, n_test=50, temperature=0.5)
    for neither in (make_config(tmp_path, path, actors=1, n_train=1, n_test=50), other, few):
        extend(neither, run)
        assert artefact.manifest() == done
    extend(larger, run)
    assert artefact.manifest() is None
    begun = specs.begin(larger, run, "candidates")
    wanted = read_targets(larger, run)
    assert stored_candidates(begun, wanted).sum() == 40
    assert plan(wanted.amounts, stored_candidates(begun, wanted), 64).count.sum() == 50 + 50 + 2 - 40
    again = begun.complete({})
    assert again.fingerprint != done.fingerprint, "what was made from fewer candidates is stale"


def test_what_is_stored_twice_is_kept_once(tmp_path: Path, path: str) -> None:
    config = make_config(tmp_path, path, actors=1)
    run = make_run(config)
    artefact = run.artefact("candidates")
    artefact.begin({"import": "test"})
    parts = {"a": [("one", 0, 32)], "b": [("one", 31, 32), ("two", 0, 8)], "c": [("two", 8, 4)]}
    parts |= {"d": [("three", 0, 2), ("three", 1, 1)], "e": [("three", 3, 2)]}
    for name, units in parts.items():
        made = [
            candidates({"problem_id": p, "first": f, "count": n}, [Text("", "stop", 1)] * n, "m") for p, f, n in units
        ]
        artefact.write_part(name, pa.concat_tables(made))
    wanted = read_targets(config, run)
    found = stored_candidates(artefact, wanted)
    there = {(problem, index) for problem, index in zip(*(axis.tolist() for axis in np.nonzero(found)), strict=True)}
    assert there == {(0, i) for i in range(32)} | {(1, i) for i in range(8, 12)} | {(2, 3), (2, 4)}
    assert artefact.part_names() == ["a", "c", "e"]
    assert (stored_candidates(artefact, wanted) == found).all()


def test_a_rerun_with_nothing_left_forgets_what_was_noted_of_attempts(tmp_path: Path, path: str) -> None:
    config = make_config(tmp_path, path, actors=1)
    run = make_run(config)
    artefact = specs.begin(config, run, "candidates")
    for name, (_, n) in PROBLEMS.items():
        made = candidates({"problem_id": name, "first": 0, "count": n}, [Text("", "stop", 1)] * n, "m")
        artefact.write_part(name, made)
    run.write_bytes("candidates/attempts/of/a-killed-driver", b"")
    assert sample(config, run).counts["candidates"] == 145
    assert not run.exists("candidates/attempts")


@pytest.mark.slow
def test_neither_a_killed_driver_nor_a_deadly_prompt_loses_or_repeats_a_candidate(
    tmp_path: Path, path: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rerun meets a prompt that kills every engine, with others in work beside it."""
    config = make_config(tmp_path, path, actors=1, unit=5, max_tokens=60, units_per_task=64, max_num_seqs=4)
    run = make_run(config, deadly=("three",))
    kept = killed_driver(config, run, tmp_path)
    assert kept and not [name for name in kept if name.startswith("three")]

    monkeypatch.setattr("minos_ray.candidates.stage.Sampler", Fragile)
    manifest = sample(config, run)
    assert_every_index_once(run)
    assert 0 < manifest.details["candidates_before"] < 145
    assert kept.items() <= stored_texts(run, parts(run)).items()
    dead = [row for row in run.artefact("candidates").read().to_pylist() if row["finish_reason"] == "engine_died"]
    assert {row["problem_id"] for row in dead} == {"three"}
    assert {row["text"] for row in dead} == {""}
    assert manifest.dropped["engine_died"] == len(dead) == 5
    told = max(run.files("logs/metrics"), key=lambda name: (Path(run.path) / "logs/metrics" / name).stat().st_mtime)
    last = json.loads(run.read_bytes(f"logs/metrics/{told}").splitlines()[-1])
    assert (last["state"], last["failures"]["engine_died"], last["remaining"]) == ("done", 5, 0)
    assert len((tmp_path / "run" / "starts").read_text()) == 4, "one engine more than it kills"
    assert not run.exists("candidates/attempts")


def killed_driver(config: Config, run: Run, folder: Path) -> dict[str, str]:
    """Samples in another process, which is killed when there are two parts; the texts stored by then."""
    (folder / "config.json").write_text(config.model_dump_json())
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder / "config.json")])
    deadline = time.monotonic() + 300
    while len(parts(run)) < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    theirs = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    # Its actors end with it; Ray's agents may stay.
    _, alive = psutil.wait_procs(theirs, timeout=1)
    for process in alive:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            process.kill()
    psutil.wait_procs(alive)
    return stored_texts(run, parts(run))


def parts(run: Run) -> list[str]:
    """Names of the parts at this moment."""
    files = run.files("candidates")
    return [f.removeprefix("part-").removesuffix(".parquet") for f in files if f.endswith(".parquet")]


class Fragile(Sampler):
    """Its engine kills the process when it is given the prompt of a deadly question."""

    def __init__(self, run: str, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        with open(f"{run}/starts", "a") as starts:
            starts.write("x")
        engine, deadly = self.generator.llm.llm_engine, self.prompt(DEADLY, self.tokenizer)
        add = engine.add_request

        def add_request(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> str:
            if list(prompt["prompt_token_ids"]) == deadly:
                os._exit(1)
            return add(request_id, prompt, *args, **kwargs)

        engine.add_request = add_request


class Held(Sampler):
    """Never comes to the end of a deadly question, so that the stage lasts until its driver is killed."""

    def __init__(self, run: str, **kwargs: Any) -> None:
        super().__init__(run, **kwargs)
        engine, deadly = self.generator.llm.llm_engine, self.prompt(DEADLY, self.tokenizer)
        add = engine.add_request

        def add_request(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> str:
            if list(prompt["prompt_token_ids"]) == deadly:
                threading.Event().wait(600)
            return add(request_id, prompt, *args, **kwargs)

        engine.add_request = add_request


DRIVER = """
import sys
from minos_ray.candidates import stage
from minos_ray.config.schema import Config
from minos_ray.store.run import Run
from tests.candidates.test_sampling import Held
stage.Sampler = Held
config = Config.model_validate_json(open(sys.argv[1]).read())
stage.sample(config, Run(config.run))
"""


def test_no_generator_is_one_line_and_clears_nothing(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path / "run"), base=Model(model="base"))
    run = make_run(config)
    artefact = run.artefact("candidates")
    artefact.begin({"an": "older config"})
    artefact.write_part("kept", columns.table("candidates", []))
    artefact.complete({})
    for broken in (config, config.model_copy(update={"generator": Model(model="./nowhere")})):
        with pytest.raises(UserError, match=r"generator|nowhere"):
            sample(broken, run)
    assert artefact.part_names() == ["kept"]


CHECKED = """
import sys
from minos_ray.candidates.stage import check_prompt, read_targets
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.store.run import Run
config = Config.model_validate_json(open(sys.argv[1]).read())
run = Run(config.run)
targets = read_targets(config, run)
check_prompt(config, run, targets)
print("ray" in sys.modules)
run.delete("candidates")
sample = config.sample.model_copy(update={"prompt": sys.argv[2]})
try:
    check_prompt(config.model_copy(update={"sample": sample}), run, targets)
except UserError as error:
    print(error, "ray" in sys.modules, sys.modules["ray"].is_initialized(), sep="\\n")
"""


@pytest.mark.slow
def test_ray_is_joined_while_the_prompt_is_made_if_nothing_is_stored_and_left_when_it_is_wrong(
    tmp_path: Path, path: str
) -> None:
    config = make_config(tmp_path, path, actors=1)
    make_run(config).artefact("candidates").write_part("stored", columns.table("candidates", []))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", CHECKED, tmp_path / "config.json", "minos_ray.candidates.prompts:chat"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with_stored, error, joined, still_joined = output.splitlines()
    assert (with_stored, joined, still_joined) == ("False", "True", "False") and "has no chat template" in error
