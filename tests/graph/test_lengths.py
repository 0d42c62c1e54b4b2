"""Rows that a length refused are made when it grows; no other row is made again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from minos_ray.candidates import stage
from minos_ray.candidates.engine import Text, candidates
from minos_ray.config.load import Config
from minos_ray.graph import lengths, specs
from minos_ray.graph.lengths import Length, make_again
from minos_ray.graph.state import status
from minos_ray.store import columns
from minos_ray.store.run import Artefact, Run
from tests.candidates.test_sampling import make_config, make_run
from tests.tiny import tiny_model

WRITTEN, TOO_LONG = Text("text", "stop", 3), Text("", "prompt_too_long", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def with_length(config: Config, tokens: int) -> Config:
    """The config with engines of that length."""
    engine = config.resources.sample.model_copy(update={"max_model_len": tokens})
    return config.model_copy(update={"resources": config.resources.model_copy(update={"sample": engine})})


def sampler(texts: Callable[[str], Text]) -> Callable[..., int]:
    """In place of the actors: all that is missing in one part, with the text of each problem."""

    def sample_missing(
        config: Config, run: Run, artefact: Artefact, wanted: stage.Targets, grouped: bool = False
    ) -> int:
        stage.mark_resampled(artefact)
        stats, tables = Counter[str](), []
        names = wanted.problems["problem_id"].to_pylist()
        units = stage.missing(config, artefact, wanted)
        for number, first, count in zip(units.problem, units.first, units.count, strict=True):
            text, unit = texts(names[number]), {"problem_id": names[number], "first": int(first), "count": int(count)}
            tables.append(candidates(unit, [text] * int(count), "m"))
            stats[text.reason] += int(count)
        artefact.write_part(f"{len(artefact.part_names())}", pa.concat_tables(tables), dict(stats))
        return 0

    return sample_missing


def test_refused_candidates_are_made_when_the_length_grows(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = with_length(make_config(tmp_path, model, actors=1), 60)
    run = make_run(short)
    monkeypatch.setattr(stage, "sample_missing", sampler(lambda name: TOO_LONG if name == "two" else WRITTEN))
    first = stage.sample(short, run)
    assert first.dropped["prompt_too_long"] == 70
    assert first.details["length"] == {"tokens": 60, "model": 1024, "refused": 70}
    assert stage.sample(short, run) == first
    shorter, longer = with_length(short, 50), with_length(short, 4096)
    assert specs.fresh(shorter, run, "candidates") == first
    state = next(state for state in status(longer, run) if state.artefact == "candidates")
    assert (state.state, state.why) == ("partial", "70 rows refused at 60 tokens, 1,024 now")

    before = specs.fingerprint_of(run, "candidates")
    rows = run.artefact("candidates").read().to_pylist()
    asked: list[str] = []
    monkeypatch.setattr(stage, "sample_missing", sampler(lambda name: asked.append(name) or Text("new", "stop", 2)))
    second = stage.sample(longer, run)
    assert set(asked) == {"two"}
    assert "prompt_too_long" not in second.dropped and second.counts["candidates"] == 145
    kept = [row for row in rows if row["finish_reason"] == "stop"]
    now = {row["candidate_id"]: row for row in run.artefact("candidates").read().to_pylist()}
    assert len(now) == 145 and all(now[row["candidate_id"]] == row for row in kept)
    assert specs.fingerprint_of(run, "candidates") != before, "what was made from the empty ones is stale"
    assert stage.sample(with_length(short, 100_000), run) == second, "the model allows no more"


def test_a_stopped_run_asks_again_only_under_another_length(tmp_path: Path, model: str) -> None:
    config = with_length(make_config(tmp_path, model, actors=1), 60)
    run = make_run(config)
    artefact = specs.begin(config, run, "candidates")
    make_again(artefact, Length(60, 1024), stage.not_refused)
    unit = {"problem_id": "one", "first": 0, "count": 2}
    artefact.write_part("a", candidates(unit, [WRITTEN, TOO_LONG], "m"), {"prompt_too_long": 1, "tokens": 3})
    make_again(artefact, Length(60, 1024), stage.not_refused)
    assert artefact.read(partial=True).num_rows == 2
    make_again(artefact, Length(61, 1024), stage.not_refused)
    assert artefact.read(partial=True)["text"].to_pylist() == ["text"]
    assert artefact.stats() == {"prompt_too_long": 0, "tokens": 3}


@pytest.mark.parametrize("name", ["scores/orm-base", "scores/critic", "rollouts"])
def test_scores_and_rollouts_that_were_refused_go(tmp_path: Path, model: str, name: str) -> None:
    run = Run(str(tmp_path / "run"))
    artefact = run.artefact(name)
    artefact.begin({"config": {}})
    make_again(artefact, Length(100, 1024))
    rows: list[dict[str, Any]] = []
    table = columns.table(name.partition("/")[0], rows)
    artefact.write_part("fine", table, {"tokens": 1})
    artefact.write_part("refused", table, {lengths.reason(name): 2})
    done = artefact.complete({"rows": 0}, {}, lengths.details(artefact, artefact.stats()))
    assert done.details == {"length": {"tokens": 100, "model": 1024, "refused": 2}}
    config = Config(run=run.path, base={"model": "x"})
    assert lengths.outgrown(config, done) == "2 rows refused at 100 tokens, 1,024 now"
    artefact.begin({"config": {}})
    make_again(artefact, Length(1024, 1024))
    assert artefact.part_names() == ["fine"]
    again = artefact.complete({"rows": 0}, {}, lengths.details(artefact, artefact.stats()))
    assert again.details["length"]["refused"] == 0 and again.details["drawn_again"]
    assert not lengths.outgrown(config, again)
