"""Rows kept only where critic and step labels find the same first error, against a loop written another way."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.schema import Config
from minos_ray.config.training import Reward
from minos_ray.errors import UserError
from minos_ray.graph.specs import spec
from minos_ray.pipeline import findings
from minos_ray.store.columns import table
from minos_ray.store.run import Run
from minos_ray.study.grid import SharedData, sweep_grid
from minos_ray.training.base import base_tokenizer
from minos_ray.training.reward import in_consensus, require_blind, reward_data, reward_rows
from tests.training.world import world

BLIND = "minos_ray.critiques.prompts:blind"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run, Any]:
    """A run whose blind critic sees most first errors, misses some, and left some candidates out."""
    config, run = world(tmp_path_factory.mktemp("consensus"))
    labels = {row["candidate_id"]: row for row in run.artefact("labels").read().to_pylist()}
    rows = []
    for number, critique in enumerate(run.artefact("critiques").read().to_pylist()):
        step_labels = [max(0, label) for label in labels[critique["candidate_id"]]["step_labels"]]
        seen = step_labels if number % 3 else [1, 1, int(critique["final_verdict"])]
        status = "ok" if number % 11 else "refused"
        critique |= {"prompt_version": f"{BLIND}@1", "status": status, "step_verdicts": seen if status == "ok" else []}
        if number % 7:
            rows.append(critique)
    put(run, rows)
    return config, run, base_tokenizer(config, run)


def put(run: Run, critiques: list[dict[str, Any]]) -> None:
    artefact = run.artefact("critiques")
    artefact.begin({"import": "test"})
    artefact.write_part("all", table("critiques", critiques))
    artefact.complete({})


def section(**changes: Any) -> Reward:
    return Reward(**{"eval_rows": 40, "max_length": 256, "consensus": True, **changes})


def test_kept_are_the_rows_with_the_same_first_error(judged: tuple[Config, Run, Any]) -> None:
    _, run, _ = judged
    rows = run.artefact("labels").read().to_pylist()
    critiques = {row["candidate_id"]: row for row in run.artefact("critiques").read().to_pylist()}
    wanted: dict[str, list[str]] = {"kept": [], "other": [], "status": [], "none": []}
    for row in rows:
        critique = critiques.get(row["candidate_id"])
        if set(row["step_labels"]) == {-1}:
            wanted["kept"].append(row["candidate_id"])
        elif critique is None:
            wanted["none"].append(row["candidate_id"])
        elif critique["status"] != "ok":
            wanted["status"].append(row["candidate_id"])
        else:
            texts = ["".join(map(str, some)) for some in (row["step_labels"], critique["step_verdicts"])]
            same = texts[0].find("0") == texts[1].find("0")
            wanted["kept" if same else "other"].append(row["candidate_id"])
    dropped: Counter[str] = Counter()
    assert [row["candidate_id"] for row in in_consensus(run, rows, dropped)] == wanted["kept"]
    assert all(wanted.values()), "every reason occurs"
    assert dropped == {
        "no_consensus": len(wanted["other"]),
        "consensus_critique_refused": len(wanted["status"]),
        "consensus_no_critique": len(wanted["none"]),
    }


def test_prm_rows_are_filtered_and_counted_orm_rows_are_not(judged: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = judged
    data = {kind: reward_data(run, tokenizer, section(), kind) for kind in ("orm", "prm")}
    for made in data.values():
        assert len(made.train) + len(made.held_out) + sum(made.dropped.values()) == 36 * 8
    assert data["prm"].dropped["no_consensus"] > 0 and data["prm"].dropped["consensus_no_critique"] > 0
    assert not any("consensus" in reason for reason in data["orm"].dropped)
    kept, everything = (
        {row["candidate_id"] for part in reward_rows(run, its, "prm")[:2] for row in part}
        for its in (section(), section(consensus=False))
    )
    assert kept < everything


def test_beyond_the_bound_what_agrees_is_trained_on_and_the_same_problems_held_out(
    judged: tuple[Config, Run, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, tokenizer = judged
    whole = reward_data(run, tokenizer, section(), "prm")
    agreeing = len(whole.train) + len(whole.held_out)
    assert agreeing < 200 < 36 * 8
    for most, drawn in ((200, False), (30, True)):
        monkeypatch.setattr("minos_ray.training.reward.MOST", most)
        data = reward_data(run, tokenizer, section(), "prm")
        assert data.held_out == whole.held_out and len(data.train) + len(data.held_out) + data.dropped.total() == 36 * 8
        ids = [row["ids"] for row in whole.train]
        assert all(row["ids"] in ids for row in data.train)
        assert (len(data.train) < len(ids)) == (data.dropped["problem_not_drawn"] > 0) == drawn
        assert data.dropped["consensus_no_critique"] > 0 and data.dropped["no_consensus"] > 0


@pytest.mark.parametrize("prompt", ["minos_ray.critiques.prompts:label_aware"])
def test_a_critic_that_was_told_the_labels_is_no_second_opinion(prompt: str) -> None:
    with pytest.raises(UserError, match=r"reward\.consensus.*label_aware.*blind"):
        require_blind(prompt)


def test_prompts_without_labels_and_imports_pass() -> None:
    require_blind(BLIND)
    require_blind("genrm-round-0")


def test_told_critiques_are_refused_before_training(judged: tuple[Config, Run, Any], tmp_path: Path) -> None:
    config, run = world(tmp_path)
    told = "minos_ray.critiques.prompts:label_aware@1"
    put(run, [{**row, "prompt_version": told} for row in run.artefact("critiques").read().to_pylist()])
    with pytest.raises(UserError, match="shows the critic the step labels"):
        reward_data(run, base_tokenizer(config, run), section(), "prm")


def test_the_check_says_so_before_anything_is_bought(judged: tuple[Config, Run, Any], tmp_path: Path) -> None:
    config, run, _ = judged
    config = config.model_copy(update={"reward": section()})
    fresh = Run(str(tmp_path))
    said = [line for line in findings(config, fresh) if line.startswith("reward.consensus")]
    assert len(said) == 1 and "label_aware" in said[0]
    blind = config.model_copy(update={"critique": config.critique.model_copy(update={"prompt": BLIND})})
    assert not any(line.startswith("reward.consensus") for line in findings(blind, fresh))
    assert not any(line.startswith("reward.consensus") for line in findings(config, run)), "imported critiques"


def test_only_prms_depend_on_the_critiques(judged: tuple[Config, Run, Any]) -> None:
    config, _, _ = judged
    config = config.model_copy(update={"reward": section(verifiers=("orm-base", "prm-base"))})
    needs = {name: spec(config, f"models/{name}").needs for name in config.reward.verifiers}
    assert "critiques" in needs["prm-base"] and "critiques" not in needs["orm-base"]


def test_a_sweep_refuses_consensus(judged: tuple[Config, Run, Any]) -> None:
    config, run, _ = judged
    with pytest.raises(UserError, match=r"reward\.consensus must be false"):
        SharedData(sweep_grid(config.model_copy(update={"reward": section()}), run))
