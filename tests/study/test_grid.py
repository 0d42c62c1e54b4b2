"""Trials of a sweep and of a study differ from each other in what their arms say, and in nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.load import Config, build, leaves, load_config
from minos_ray.errors import UserError
from minos_ray.graph.specs import sections_of, specs
from minos_ray.pipeline import findings
from minos_ray.store.run import Run
from minos_ray.study.grid import Arm, Trial, study_grid, sweep_grid
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
    grid = study_grid(load_config(SHIPPED), Run("x"))
    names = {grid.name(trial) for trial in grid.trials}
    assert len(names) == len(grid.trials) == len(grid.arms) * len(grid.config.study.seeds)
    first = grid.trials[: len(grid.amounts) * len(grid.config.study.seeds)]
    assert {trial.arm.name for trial in first} == {arm.name for arm in grid.amounts}


def test_arms_of_a_seed_differ_in_what_they_say_alone(tmp_path: Path) -> None:
    grid = study_grid(load_config(SHIPPED), Run(str(tmp_path)))
    minos = grid.trial_config(Trial(grid.amounts[-1], 12))
    for arm in grid.arms:
        own = grid.trial_config(Trial(arm, 12))
        if arm.changes:
            from_base = {"reward.verifiers"} if arm.name in grid.config.study.from_base else set()
            assert changed(minos, own) == set(arm.changes) | from_base, arm.name
        elif arm.critiques == 0:
            assert changed(minos, own) == {"reward.verifiers"}
            assert own.reward.verifiers == ("orm-base", "prm-base")
        elif arm != grid.amounts[-1]:
            assert changed(minos, own) == {"sft.rows"} and own.sft.rows == arm.critiques
        assert {own.seed, own.sft.seed, own.reward.seed} == {12}


def test_seeds_differ_in_their_seeds_alone(tmp_path: Path) -> None:
    grid = study_grid(load_config(SHIPPED), Run(str(tmp_path)))
    one, other = (grid.data_config(Trial(grid.amounts[0], seed)) for seed in (11, 12))
    assert changed(one, other) == {"seed", "sft.seed", "reward.seed"}


def study(**section: Any) -> Config:
    base: Mapping[str, Any] = {"run": "x", "base": {"model": "x"}, "critique": {"count": 10}}
    return build({**base, "study": {"seeds": [1], **section}})


def test_amounts_are_shares_of_the_critiques_ascending() -> None:
    assert [arm.critiques for arm in study_grid(study(shares=[1, 0, 0.5]), Run("x")).amounts] == [0, 5, 10]


def test_amounts_of_labels_are_arms_of_base_and_of_minos_and_make_nothing_stale() -> None:
    config = build({**study().model_dump(mode="json"), "reward": {"rows": 1000}})
    other = study(labels=[0.25, 2, 1]).study
    labelled = config.model_copy(update={"study": other})
    grid = study_grid(labelled, Run("x"))
    assert [count for count, *_ in grid.labels] == [250, 1000, 2000]
    assert grid.labels[1][1:] == (grid.amounts[0], grid.amounts[-1])
    names = [arm.name for arm in grid.arms[len(grid.amounts) :]]
    assert names == ["labels-000250-base", "labels-000250-minos", "labels-002000-base", "labels-002000-minos"]
    base, minos = (grid.trial_config(Trial(arm, 1)) for arm in grid.arms[len(grid.amounts) :][:2])
    assert changed(base, minos) == {"reward.verifiers"} and base.reward.rows == 250
    plain = grid.trial_config(Trial(grid.amounts[-1], 1))
    assert changed(plain, minos) == {"reward.rows"}
    # A study from before the key is what it was; one with amounts of labels is another.
    spec = next(spec for spec in specs(config) if spec.stage == "study")
    assert "labels" not in sections_of(config, spec)["study"]
    assert sections_of(labelled, spec)["study"]["labels"] == [0.25, 2, 1]


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
        (
            {"from_base": ["x"], "ablations": {"x": {"refine.rounds": 1}}},
            "ablations.x has no stage 1, so that refine.rounds means nothing",
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
    grid = study_grid(study(ablations={"x": {"reward": {"lm_weight": 0.5}}}), Run(str(tmp_path)))
    minos, own = (grid.trial_config(Trial(arm, 1)) for arm in grid.arms[-2:])
    assert changed(minos, own) == {"reward.lm_weight"}


def test_an_ablation_may_have_a_section_that_is_not_there(tmp_path: Path) -> None:
    grid = study_grid(study(ablations={"lora": {"reward.lora.rank": 8}}), Run(str(tmp_path)))
    minos, own = (grid.trial_config(Trial(arm, 1)) for arm in grid.arms[-2:])
    assert minos.reward.lora is None and own.reward.lora is not None and own.reward.lora.rank == 8


def test_check_tells_what_a_study_could_not_do(tmp_path: Path) -> None:
    config = load_config(SHIPPED, [f"run={tmp_path}/run", "study.ablations.blind={sft.agreing: false}"])
    told = [line for line in findings(config, Run(config.run)) if "study" in line]
    assert len(told) == 1 and told[0].startswith("study.ablations.blind: unknown config key 'sft.agreing'")


def test_arms_with_the_same_changes_of_data_share_them(tmp_path: Path) -> None:
    grid = study_grid(load_config(SHIPPED), Run(str(tmp_path)))
    places = {arm.name: grid.data_run(Trial(arm, 11)).root.rpartition("/")[2] for arm in grid.arms}
    assert places["blind"] == places["blind-unfiltered"] != places["inserted"] != "seed-11"
    assert {places[name] for name in places if name not in ("blind", "blind-unfiltered", "inserted")} == {"seed-11"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"study": {"seeds": []}}, "study.seeds is empty"),
        ({"critique": {"count": 1}}, "are not as many different amounts"),
        ({"critique": {"count": 0}}, "are not as many different amounts"),
        ({"study": {"seeds": [1], "labels": [2]}}, r"study.labels are times reward.rows, which is empty; give it"),
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


def shared(**sections: object) -> Config:
    return build({"run": "runs/x", "base": {"model": "some/hub-model"}, **sections})


def amount(critiques: int) -> Arm:
    return Arm(f"critiques-{critiques:06d}", critiques, {})


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 3)))
def test_every_amount_with_every_seed_is_one_trial(amounts: list[int], seeds: list[int]) -> None:
    grid = sweep_grid(shared(sweep={"critiques": amounts, "seeds": seeds}), Run("x"))
    pairs = [(trial.arm.critiques, trial.seed) for trial in grid.trials]
    assert sorted(pairs) == sorted({(amount, seed) for amount in amounts for seed in seeds})
    assert len({grid.name(trial) for trial in grid.trials}) == len(pairs)
    assert [amount for amount, _ in pairs] == sorted((amount for amount, _ in pairs), reverse=True)


def test_without_critiques_verifiers_start_from_the_base() -> None:
    grid = sweep_grid(shared(sweep={"kinds": ["orm", "prm", "orm"]}), Run("x"))
    assert grid.verifiers(amount(0)) == ["orm-base", "prm-base"]
    assert grid.verifiers(amount(10)) == ["orm-minos", "prm-minos"]


def test_a_trial_differs_from_the_run_in_seed_verifiers_and_place_only(tmp_path: Path) -> None:
    whole = shared(sft={"lr": 0.5}, reward={"rows": 7})
    grid, trial = sweep_grid(whole, Run(str(tmp_path))), Trial(amount(5000), 3)
    own = grid.trial_config(trial)
    assert own.run == grid.trial_run(trial).path == f"{tmp_path}/sweep/trials/critiques-005000-seed-3"
    assert (own.sft.seed, own.reward.seed, own.reward.verifiers, own.score.judge) == (3, 3, ("orm-minos",), None)
    back = own.model_copy(update={"run": whole.run, "sft": whole.sft, "reward": whole.reward, "score": whole.score})
    assert back == whole
    assert own.sft.lr == 0.5
    assert own.reward.rows == 7


def test_trials_of_one_seed_train_stage_2_on_the_same_terms(tmp_path: Path) -> None:
    grid = sweep_grid(shared(), Run(str(tmp_path)))
    base, minos = (grid.trial_config(Trial(amount(count), 2)).reward for count in (0, 9))
    assert base.model_copy(update={"verifiers": minos.verifiers}) == minos


def test_a_relative_base_directory_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    grid = sweep_grid(shared(base={"model": "model"}), Run(str(tmp_path)))
    own = grid.trial_config(Trial(amount(0), 0))
    assert own.base.model == str(tmp_path / "model")
