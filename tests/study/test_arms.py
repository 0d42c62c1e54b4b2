"""Trials of a study differ from each other in what their arms say, and in nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import Config, build, leaves, load_config
from minos_ray.errors import UserError
from minos_ray.pipeline.check import findings
from minos_ray.store.run import Run
from minos_ray.study.arms import Trial, amounts, arms, data_config, data_run, trial_config, trials
from minos_ray.study.stage import study as run_study

SHIPPED = "miniature-study"


def values(config: Config) -> dict[str, Any]:
    return {key: str(value) for key, value in leaves(config.model_dump(mode="json"))}


def changed(one: Config, other: Config) -> set[str]:
    """Keys in which two configs differ, but for their run directories."""
    before, now = values(one), values(other)
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - {"run"}


def test_the_demo_is_made_as_the_study_is() -> None:
    demo, frozen = load_config("miniature"), load_config(SHIPPED)
    for section in ("generator", "base", "label", "critique", "sft", "reward"):
        assert getattr(demo, section) == getattr(frozen, section), section
    assert changed(demo, frozen) & {"problems.train.limit", "sample.n_train", "sample.temperature"} == set()


def test_every_arm_with_every_seed_once() -> None:
    config = load_config(SHIPPED)
    planned = trials(config)
    assert len({trial.name for trial in planned}) == len(planned) == len(arms(config)) * len(config.study.seeds)
    first = planned[: len(amounts(config)) * len(config.study.seeds)]
    assert {trial.arm.name for trial in first} == {arm.name for arm in amounts(config)}


def test_arms_of_a_seed_differ_in_what_they_say_alone(tmp_path: Path) -> None:
    config, run = load_config(SHIPPED), Run(str(tmp_path))
    minos = trial_config(config, run, Trial(amounts(config)[-1], 12))
    for arm in arms(config):
        own = trial_config(config, run, Trial(arm, 12))
        if arm.changes:
            from_base = {"reward.verifiers"} if arm.name in config.study.from_base else set()
            assert changed(minos, own) == set(arm.changes) | from_base, arm.name
        elif arm.critiques == 0:
            assert changed(minos, own) == {"reward.verifiers"}
            assert own.reward.verifiers == ("orm-base", "prm-base")
        elif arm != amounts(config)[-1]:
            assert changed(minos, own) == {"sft.rows"} and own.sft.rows == arm.critiques
        assert {own.seed, own.sft.seed, own.reward.seed} == {12}


def test_seeds_differ_in_their_seeds_alone(tmp_path: Path) -> None:
    config, run = load_config(SHIPPED), Run(str(tmp_path))
    one, other = (data_config(config, run, Trial(amounts(config)[0], seed)) for seed in (11, 12))
    assert changed(one, other) == {"seed", "sft.seed", "reward.seed"}


def study(**section: Any) -> Config:
    base: Mapping[str, Any] = {"run": "x", "base": {"model": "x"}, "critique": {"count": 10}}
    return build({**base, "study": {"seeds": [1], **section}})


def test_amounts_are_shares_of_the_critiques_ascending() -> None:
    assert [arm.critiques for arm in amounts(study(shares=[1, 0, 0.5]))] == [0, 5, 10]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"shares": [0.5, 1]}, "shares must hold 0"),
        ({"seeds": [1, 1]}, "seeds: each one once"),
        ({"kinds": ["prm"]}, "primary.kind 'orm' is not among kinds"),
        ({"primary": {"kind": "orm", "measure": "step_f1"}}, "scores no steps"),
        ({"ablations": {"x": {"reward.seed": 3}}}, "the study itself sets reward.seed"),
        ({"ablations": {"x": {"study.seeds": [3]}}}, "the study itself sets study.seeds"),
        ({"ablations": {"x": {"reward": {"seed": 3}}}}, "the study itself sets reward.seed"),
        ({"ablations": {"x": {"problems.test.limit": 3}}}, "the study itself sets problems.test.limit"),
        ({"ablations": {"x": {"critique.count": 3}}}, "the study itself sets critique.count"),
        ({"ablations": {"minos": {"reward.lr": 3}}}, "'minos' is the name of another arm"),
        ({"ablations": {"critiques-000010": {}}}, "'critiques-000010' is the name of another arm"),
        ({"from_base": ["x"]}, "'x' is not among ablations"),
        (
            {"from_base": ["x"], "ablations": {"x": {"sft.lr": 1}}},
            "ablations.x has no stage 1, so that sft.lr means nothing",
        ),
        ({"versus": {"x": "y"}}, "'x' is not among ablations"),
        ({"ablations": {"Not A Folder": {}}}, "ablations"),
        ({"ablations": {"x": {}}}, "x: name the keys that it changes"),
        ({"ablations": {"x": {"reward": {}}}}, "x: name the keys that it changes"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        study(**section)
    assert "\n" not in str(caught.value)


def test_a_section_in_an_ablation_changes_the_keys_that_it_has_alone(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    config = study(ablations={"x": {"reward": {"lm_weight": 0.5}}})
    minos, own = (trial_config(config, run, Trial(arm, 1)) for arm in arms(config)[-2:])
    assert changed(minos, own) == {"reward.lm_weight"}


def test_an_ablation_may_have_a_section_that_is_not_there(tmp_path: Path) -> None:
    config = study(ablations={"lora": {"reward.lora.rank": 8}})
    minos, own = (trial_config(config, Run(str(tmp_path)), Trial(arm, 1)) for arm in arms(config)[-2:])
    assert minos.reward.lora is None and own.reward.lora is not None and own.reward.lora.rank == 8


def test_check_tells_what_a_study_could_not_do(tmp_path: Path) -> None:
    config = load_config(SHIPPED, [f"run={tmp_path}/run", "study.ablations.blind={sft.agreing: false}"])
    told = [line for line in findings(config, Run(config.run)) if "study" in line]
    assert len(told) == 1 and told[0].startswith("study.ablations.blind: unknown config key 'sft.agreing'")


def test_arms_with_the_same_changes_of_data_share_them(tmp_path: Path) -> None:
    config, run = load_config(SHIPPED), Run(str(tmp_path))
    places = {arm.name: data_run(run, Trial(arm, 11)).root.rpartition("/")[2] for arm in arms(config)}
    assert places["blind"] == places["blind-unfiltered"] != places["inserted"] != "seed-11"
    assert {places[name] for name in places if name not in ("blind", "blind-unfiltered", "inserted")} == {"seed-11"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"study": {"seeds": []}}, "study.seeds is empty"),
        ({"critique": {"count": 1}}, "are not as many different amounts"),
        ({"critique": {"count": 0}}, "are not as many different amounts"),
        ({"sft": {"source": "both"}}, "study: sft.rows must be empty and sft.source 'critiques'"),
        ({"sft": {"source": "critiques", "rows": 5}}, "study: sft.rows must be empty"),
        ({"study": {"seeds": [1], "ablations": {"x": {"sft.agreing": 0}}}}, "study.ablations.x: unknown .*'agreeing'"),
        ({"study": {"seeds": [1], "ablations": {"x": {"critique.prompt": "no:f"}}}}, "'no:f' does not name a function"),
    ],
)  # fmt: skip
def test_what_no_trial_could_do_is_refused_before_any_work(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    plain: dict[str, Any] = {"critique": {"count": 10}, "sft": {"source": "critiques"}, "study": {"seeds": [1]}}
    config = build({"run": str(tmp_path / "run"), "base": {"model": "x"}, **plain, **values})
    with pytest.raises(UserError, match=told) as caught:
        run_study(config, Run(config.run))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
