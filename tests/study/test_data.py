"""The data of a study: one budget for all of it, copies that are what they were made from, trials that need them."""

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.config.load import Config, build
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.limits import StopAtBudget
from minos_ray.critiques.reply import Answer
from minos_ray.graph.specs import inputs, spec
from minos_ray.store.run import Run
from minos_ray.study.arms import Trial, amounts, data_config, data_run, trial_config, trial_run
from minos_ray.study.data import copy, give, is_given, take_fitting, with_what_is_left


def study(folder: Path, **critique: object) -> tuple[Config, Run]:
    values = {"run": f"{folder}/run", "base": {"model": "x"}, "critique": {"count": 10, **critique}}
    return build({**values, "study": {"seeds": [1, 2]}}), Run(f"{folder}/run")


def put(config: Config, run: Run, name: str, parts: list[int]) -> None:
    """An artefact as its stage would leave it, of so many rows a part."""
    made = run.artefact(name)
    made.begin(inputs(config, run, spec(config, name)))
    for part, rows in enumerate(parts):
        made.write_part(f"{rows}-{part}", pa.table({"row": list(range(rows))}))
    made.complete({"rows": sum(parts)})


def test_the_limit_holds_for_the_data_of_all_seeds_together(tmp_path: Path) -> None:
    config, run = study(tmp_path, max_usd=5)
    places = [data_run(run, Trial(amounts(config)[-1], seed)) for seed in (1, 2)]
    answer = Answer(text="x", outcome="answered", cost_usd=1.5)
    for key in ("a", "b"):
        asyncio.run(Cache(places[0]).add(key, answer))
    assert with_what_is_left(config, run, places[0]).critique.max_usd == 5
    assert with_what_is_left(config, run, places[1]).critique.max_usd == pytest.approx(2)
    asyncio.run(Cache(places[0]).add("c", Answer(text="x", outcome="answered", cost_usd=2.5)))
    with pytest.raises(StopAtBudget, match=r"critique\.max_usd = 5\.0: the data of other seeds"):
        with_what_is_left(config, run, places[1])
    free, _ = study(tmp_path)
    assert with_what_is_left(free, run, places[1]) == free


def test_a_copy_holds_nothing_of_what_was_there_with_the_same_inputs(tmp_path: Path) -> None:
    config, run = study(tmp_path)
    source, target = Run(run.at("source")), Run(run.at("target"))
    put(config, source, "problems", [2, 3])
    put(config, target, "problems", [4, 5, 6])
    take_fitting(config, source, target)
    assert target.artefact("problems").manifest() == source.artefact("problems").manifest()
    assert target.artefact("problems").part_names() == source.artefact("problems").part_names()
    copy(source.artefact("problems"), target.artefact("problems"))
    assert target.artefact("problems").read().equals(source.artefact("problems").read())


def test_other_critiques_make_the_trials_that_read_them_stale_alone(tmp_path: Path) -> None:
    config, run = study(tmp_path)
    base, minos = (Trial(arm, 1) for arm in (amounts(config)[0], amounts(config)[-1]))
    data = data_run(run, base)
    for name in ("problems", "candidates", "labels", "critiques"):
        put(data_config(config, run, base), data, name, [2])
    for trial in (base, minos):
        assert not is_given(config, run, trial)
        give(config, run, trial)
        assert is_given(config, run, trial)
    put(data_config(config, run, base), data, "critiques", [3])
    assert is_given(config, run, base) and not is_given(config, run, minos)
    trial_run(run, minos).write_bytes("old", b"")
    give(config, run, minos)
    assert is_given(config, run, minos) and not trial_run(run, minos).exists("old")
    assert trial_config(config, run, minos).reward.verifiers == ("orm-minos", "prm-minos")
