"""Trials, their configs and how many run at once: pure logic."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.store.run import Run
from minos_ray.study.space import Trial, trial_config, trial_run, trials, verifiers


def config(**sections: object) -> Config:
    return build({"run": "runs/x", "base": {"model": "some/hub-model"}, **sections})


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 3)))
def test_every_amount_with_every_seed_is_one_trial(amounts: list[int], seeds: list[int]) -> None:
    found = trials(config(sweep={"critiques": amounts, "seeds": seeds}))
    assert sorted(found) == sorted({(amount, seed) for amount in amounts for seed in seeds})
    assert len({trial.name for trial in found}) == len(found)
    assert [trial.critiques for trial in found] == sorted((t.critiques for t in found), reverse=True)


def test_without_critiques_verifiers_start_from_the_base() -> None:
    both = config(sweep={"kinds": ["orm", "prm", "orm"]})
    assert verifiers(both, Trial(0, 1)) == ("orm-base", "prm-base")
    assert verifiers(both, Trial(10, 1)) == ("orm-minos", "prm-minos")


def test_a_trial_differs_from_the_run_in_seed_verifiers_and_place_only(tmp_path: Path) -> None:
    whole = config(sft={"lr": 0.5}, reward={"rows": 7})
    run = Run(str(tmp_path))
    own = trial_config(whole, run, Trial(5000, 3))
    assert own.run == trial_run(run, Trial(5000, 3)).path == f"{tmp_path}/sweep/trials/critiques-005000-seed-3"
    assert (own.sft.seed, own.reward.seed, own.reward.verifiers, own.score.judge) == (3, 3, ("orm-minos",), None)
    back = own.model_copy(update={"run": whole.run, "sft": whole.sft, "reward": whole.reward, "score": whole.score})
    assert back == whole
    assert own.sft.lr == 0.5
    assert own.reward.rows == 7


def test_trials_of_one_seed_train_stage_2_on_the_same_terms(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    base, minos = (trial_config(config(), run, Trial(amount, 2)).reward for amount in (0, 9))
    assert base.model_copy(update={"verifiers": minos.verifiers}) == minos


def test_a_relative_base_directory_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    own = trial_config(config(base={"model": "model"}), Run(str(tmp_path)), Trial(0, 0))
    assert own.base.model == str(tmp_path / "model")
