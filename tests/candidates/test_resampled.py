"""Candidates that a complete artefact lost are drawn again as other texts: what was made from the old ones is stale."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.candidates.stage import Targets, extend, finish, mark_resampled
from minos_ray.config.load import Config, load_config
from minos_ray.graph import specs
from minos_ray.store.columns import table
from minos_ray.store.run import Run

WANTED = Targets(pa.table({"problem_id": ["p", "q"], "question": ["?", "!"]}), np.array([2, 2]))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def config(run: Run, n: int = 2) -> Config:
    return load_config("miniature", [f"run={run.path}", f"sample.n_train={n}", f"sample.n_test={n}"])


def put(run: Run, problem: str) -> None:
    rows = [
        {
            "candidate_id": f"{problem}/{index}",
            "problem_id": problem,
            "index": index,
            "text": "x",
            "num_tokens": 1,
            "finish_reason": "stop",
        }
        for index in range(2)
    ]
    run.artefact("candidates").write_part(problem, table("candidates", rows))


def complete(run: Run) -> str | None:
    """Completes the candidates; what others know them by."""
    finish(config(run), run.artefact("candidates"), WANTED, 0, 1.0)
    return specs.fingerprint_of(run, "candidates")


def test_what_was_made_from_lost_candidates_is_stale(run: Run) -> None:
    candidates, inputs = specs.begin(config(run), run, "candidates"), specs.inputs
    put(run, "p")
    mark_resampled(candidates)  # resumed before it was ever complete: nothing has been made from it
    put(run, "q")
    first, wanted = complete(run), inputs(config(run), run, specs.spec(config(run), "labels"))
    assert first == candidates.manifest().fingerprint
    for lost in (["q"], ["p", "q"]):
        for name in ("manifest.json", *(f"part-{part}.parquet" for part in lost)):
            run.delete(f"candidates/{name}")
        specs.begin(config(run), run, "candidates")
        mark_resampled(candidates)
        for part in lost:
            put(run, part)
        again, now = complete(run), inputs(config(run), run, specs.spec(config(run), "labels"))
        assert again != first and now != wanted
        assert specs.fresh(config(run), run, "candidates") is not None
        first, wanted = again, now


def test_a_manifest_alone_that_is_lost_makes_nothing_stale(run: Run) -> None:
    candidates = specs.begin(config(run), run, "candidates")
    put(run, "p")
    put(run, "q")
    complete(run)
    mark_resampled(candidates)
    first = complete(run)
    run.delete("candidates/manifest.json")
    specs.begin(config(run), run, "candidates")
    assert complete(run) == first


def test_more_candidates_are_another_artefact_anyway(run: Run) -> None:
    candidates = specs.begin(config(run), run, "candidates")
    put(run, "p")
    put(run, "q")
    complete(run)
    extend(config(run, 3), run)
    mark_resampled(candidates)
    assert not run.exists("candidates/drawn.txt")
