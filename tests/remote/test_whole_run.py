"""Every stage with the run in an S3 bucket, on two raylets that share no path: a real server, real engines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from minos_ray.config.load import load_config
from minos_ray.config.schema import Config
from minos_ray.pipeline import open_run, run_all
from minos_ray.store.run import Manifest, Run
from tests.raylets import enter, started_raylets
from tests.remote.server import KEYS, Bucket, bucket

pytestmark = pytest.mark.slow

TINY = [
    "problems.train.limit=24",
    "problems.test.limit=6",
    "sample={n_train: 2, n_test: 4, unit: 2, max_tokens: 60, temperature: 0.7}",
    "inserted.count=8",
    "critique.count=24",
    "error_analysis.count=0",
    "sft.batch_rows=8",
    "sft.eval_every=5",
    "reward={verifiers: [orm-minos], rows: 40, eval_rows: 10, batch_rows: 8, eval_every: 5, precision: fp32}",
    "score={judge: null}",
    "resources.train.save_every=2",
    "resources.sample.actors=1",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Bucket]:
    with bucket(tmp_path / "server.log") as made:
        yield made


@pytest.fixture
def nodes(end_of_ray: None, store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The homes of two raylets with one CPU each; what each of them and the driver has on disk is its own."""
    with started_raylets() as raylets:
        homes = [tmp_path / name for name in ("first", "second", "driver")]
        for home in homes:
            (home / "tmp").mkdir(parents=True)
            monkeypatch.chdir(home)
            for name, value in {"HOME": home, "XDG_CACHE_HOME": home / "cache", "TMPDIR": home / "tmp"}.items():
                monkeypatch.setenv(name, str(value))
            if home.name != "driver":
                raylets.add()
        monkeypatch.setenv("RAY_ADDRESS", raylets.address)
        enter(raylets)
        yield homes[:2]


def objects(run: Run) -> dict[str, Any]:
    """When each object of the run was written."""
    found = run.fs.get_file_info(pafs.FileSelector(run.root, recursive=True))
    return {info.path.removeprefix(f"{run.root}/"): info.mtime_ns for info in found if info.type == pafs.FileType.File}


def without_time(manifest: Manifest | None) -> dict[str, Any]:
    """What a second making of the same artefact must repeat."""
    assert manifest is not None
    return manifest.model_dump(exclude={"created", "details"})


def test_a_run_in_a_bucket(store: Bucket, nodes: list[Path]) -> None:
    config = load_config("miniature", [f"run={store.uri('run')}", *TINY])
    run = open_run(config)
    stages = run_all(config, run)
    assert list(stages) == ["problems", "sample", "label", "critique", "sft", "reward", "score", "evaluate", "report"]
    assert run.artefact("candidates").read(["candidate_id"]).num_rows == 24 * 2 + 6 * 4
    assert run.artefact("scores/orm-minos").read().num_rows == 24
    assert b"orm-minos" in run.read_bytes("report.html")
    models = [sorted(path.parent.name for path in home.glob("cache/minos_ray/models/*/config.json")) for home in nodes]
    assert models[0] == models[1] != [], "both nodes fetched the models that they trained on and scored with"
    assert not [path for home in nodes for path in (home / "tmp").glob("minos-*")], "nothing is left aside"
    assert not [name for name in objects(run) if name.endswith(".tmp") or name.startswith("checkpoints/")]
    no_key_is_in(run)
    a_rerun_does_nothing(config, run)
    only_what_is_gone_is_redone(config, run)


def no_key_is_in(run: Run) -> None:
    """No object of the run holds a credential."""
    for name in objects(run):
        content = run.read_bytes(name)
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert KEYS[key].encode() not in content, name


def a_rerun_does_nothing(config: Config, run: Run) -> None:
    """Every stage says that it is up to date; no object is written."""
    before, said = objects(run), list[str]()
    assert run_all(config, run, said.append) == {}
    assert len(said) == 9 and all(line.endswith("up to date") for line in said)
    assert objects(run) == before


def only_what_is_gone_is_redone(config: Config, run: Run) -> None:
    """A part and the manifest are deleted: the other parts stay, and everything made of the scores too."""
    scores, before = run.artefact("scores/orm-minos"), objects(run)
    whole, rows = without_time(scores.manifest()), scores.read().sort_by("candidate_id").to_pydict()
    gone, *others = (f"{scores.name}/part-{name}.parquet" for name in scores.part_names())
    run.delete(gone)
    run.delete(scores.manifest_name)
    assert list(run_all(config, run)) == ["score"]
    assert without_time(scores.manifest()) == whole
    again = scores.read().sort_by("candidate_id").to_pydict()
    assert again["candidate_id"] == rows["candidate_id"]
    assert again["score"] == pytest.approx(rows["score"], abs=1e-5)
    after = objects(run)
    assert others and all(after[name] == before[name] for name in others)
    assert {name for name in before if after.get(name) != before[name]} <= {gone, scores.manifest_name}
