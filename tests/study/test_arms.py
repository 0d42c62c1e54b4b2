"""Trials of a study differ from each other in what their arms say, and in nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config import Config, build, leaves, load_config
from minos_ray.errors import UserError
from minos_ray.store import Run
from minos_ray.study.arms import Arm, Trial, amounts, arms, data_config, trial_config, trials

SHIPPED = "miniature-study"


def values(config: Config) -> dict[str, Any]:
    return {key: str(value) for key, value in leaves(config.model_dump(mode="json"))}


def changed(one: Config, other: Config) -> set[str]:
    """Keys in which two configs differ, but for their run directories."""
    before, now = values(one), values(other)
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - {"run"}


def test_every_arm_with_every_seed_once() -> None:
    config = load_config(SHIPPED)
    planned = trials(config)
    assert len({trial.name for trial in planned}) == len(planned) == len(arms(config)) * len(config.study.seeds)
    assert [trial.seed for trial in planned] == sorted(trial.seed for trial in planned)


def test_arms_of_a_seed_differ_in_what_they_say_alone(tmp_path: Path) -> None:
    config, run = load_config(SHIPPED), Run(str(tmp_path))
    minos = trial_config(config, run, Trial(amounts(config)[-1], 12))
    for arm in arms(config):
        own = trial_config(config, run, Trial(arm, 12))
        if arm.changes:
            assert changed(minos, own) == set(arm.changes), arm.name
        elif arm.critiques == 0:
            assert changed(minos, own) == {"reward.verifiers"}
            assert own.reward.verifiers == ("orm-base", "prm-base")
        elif arm != amounts(config)[-1]:
            assert changed(minos, own) == {"sft.rows"} and own.sft.rows == arm.critiques
        assert {own.seed, own.sft.seed, own.reward.seed} == {12}


def test_seeds_differ_in_their_seeds_alone(tmp_path: Path) -> None:
    config, run = load_config(SHIPPED), Run(str(tmp_path))
    one, other = (data_config(config, run, seed) for seed in (11, 12))
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
        ({"ablations": {"Not A Folder": {}}}, "ablations"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        study(**section)
    assert "\n" not in str(caught.value)


def test_an_ablation_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown config key 'sft\.agreing'; did you mean 'agreeing'"):
        trial_config(study(), Run(str(tmp_path)), Trial(Arm("x", 10, {"sft.agreing": False}), 1))
