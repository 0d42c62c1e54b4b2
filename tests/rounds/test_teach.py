"""`minos teach`: which solutions are learned, real rounds with vLLM and DeepSpeed, and a stop in the middle."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.candidates import stage as sampling
from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.config.training import Teach
from minos_ray.errors import UserError
from minos_ray.graph.specs import specs
from minos_ray.graph.state import status
from minos_ray.pipeline import run_stage
from minos_ray.rounds import teach as stage
from minos_ray.rounds.teach import chosen_solutions, solution_rows
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Run
from tests.tiny import tiny_model
from tests.training.world import world


def solution(problem: str, index: int, score: float, text: str | None = None, reason: str = "stop") -> dict[str, Any]:
    text = text or f"solution {index}"
    return {"problem_id": problem, "index": index, "score": score, "text": text, "finish_reason": reason}


SOLUTIONS = [
    solution("b", 0, 0.4),
    solution("b", 1, 0.9, "the best"),
    solution("b", 2, 0.9, "the best"),
    solution("b", 3, 0.95, reason="length"),
    solution("b", 4, 0.7),
    solution("a", 0, 0.0),
    solution("a", 1, 0.3),
    solution("a", 2, 0.3),
]


@pytest.mark.parametrize(
    ("most", "threshold", "chosen", "dropped"),
    [
        (1, 0.0, [("a", 1), ("b", 1)], {"over_most": 3}),
        (9, 0.5, [("b", 1), ("b", 4)], {"below_threshold": 3}),
        (2, 0.35, [("b", 1), ("b", 4)], {"below_threshold": 2, "over_most": 1}),
    ],
)
def test_the_best_of_each_problem_are_chosen_and_all_others_counted(
    most: int, threshold: float, chosen: list[tuple[str, int]], dropped: dict[str, int]
) -> None:
    counts: Counter[str] = Counter()
    rows = chosen_solutions(SOLUTIONS, Teach(most=most, threshold=threshold), counts)
    assert [(row["problem_id"], row["index"]) for row in rows] == chosen
    assert counts == {"not_ended_length": 1, "same_text": 1, "rejected": 1, **dropped}


def run_of(folder: Path, **teach: Any) -> tuple[Config, Run]:
    """A run with problems, and a random ORM in the place of a trained one."""
    config, run = world(folder, problems=20, candidates=1)
    orm = run.artefact("models/orm-base")
    orm.begin({"import": "test"})
    tiny_model(f"{run.root}/models/orm-base", "orm", spread=0.5)
    orm.complete({})
    training = {"lr": 3e-3, "batch_rows": 8, "precision": "fp32", "epochs": 20.0, "max_length": 256, "eval_every": 4}
    amounts = {"rounds": 2, "judge": "orm-base", "samples": 8, "test_samples": 32, "problems": 12}
    values = config.model_dump(mode="json") | {
        "generator": {"model": config.base.model},
        "sample": {"max_tokens": 16, "stop": ["e"], "unit": 4},
        "teach": {**training, **amounts, **teach},
        # Nothing that a random model writes is right by chance.
        "label": {**config.model_dump(mode="json")["label"], "grader": "minos_ray.grading.graders:gsm8k_marked"},
    }
    values["resources"] |= {"num_cpus": 2, "sample": {"max_model_len": 256, "kv_cache_gb": 0.1, "dtype": "float32"}}
    return build(values), run


def test_a_config_without_rounds_has_nothing_to_teach_and_one_needs_a_judge(tmp_path: Path) -> None:
    config, run = run_of(tmp_path, rounds=0)
    assert "teach" not in {spec.stage for spec in specs(config)}
    with pytest.raises(UserError, match=r"nothing for stage 'teach' to make; give teach.rounds, such as 3"):
        run_stage(config, run, "teach")
    with pytest.raises(UserError, match=r"teach.judge 'prm-base' is not among reward.verifiers; name one of them"):
        run_of(tmp_path / "other", judge="prm-base")
    # What a finished run was made from does not depend on a section that came later.
    assert "teach" not in json.dumps([spec.sections for spec in specs(config)])


def test_rows_go_on_from_the_prompt_of_sampling(tmp_path: Path) -> None:
    config, run = run_of(tmp_path)
    tokenizer, dropped = load_tokenizer(config.base.model), Counter[str]()
    rows = solution_rows(config, run, tokenizer, [solution("p000", 0, 1.0, "3 + 4 = 7")], dropped)
    assert tokenizer.decode(rows[0]["ids"]) == "<s>Question: What is the sum of set 0?\nAnswer:\n3 + 4 = 7</s>"
    assert tokenizer.decode(rows[0]["ids"][rows[0]["first"] :]) == "3 + 4 = 7</s>" and not dropped


def contents(run: Run) -> tuple[list[dict[str, Any]], list[str], bytes]:
    """The candidates of round 1 and their parts, and the policy made of them."""
    candidates = run.artefact("teach/round-1/candidates")
    policy = run.read_bytes("teach/round-2/models/policy-2/model.safetensors")
    return candidates.read().to_pylist(), candidates.part_names(), policy


@pytest.mark.slow
def test_rounds_raise_the_judges_score_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_of_ray: None
) -> None:
    """Real engines. The labels say that nothing is right, and the judge's score rises: what the artefact must show."""
    config, run = run_of(tmp_path)
    monkeypatch.setattr(sampling, "GROUP_CANDIDATES", 128)
    train = stage.train_policy

    def killed(config: Config, run: Run, number: int, dropped: Counter[str]) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return train(config, run, number, dropped)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "train_policy", killed)
        run_stage(config, run, "teach")
    weights = run.read_bytes("teach/round-1/models/policy-1/model.safetensors")
    sampled = run.artefact("teach/round-1/candidates").manifest()
    manifest = run_stage(config, run, "teach")
    assert run.read_bytes("teach/round-1/models/policy-1/model.safetensors") == weights
    assert run.artefact("teach/round-1/candidates").manifest() == sampled
    rows = pq.read_table(f"{run.root}/teach/results.parquet").to_pylist()
    assert [row["round"] for row in rows] == [0, 1, 2] and manifest.details["policies"] == rows
    assert [row["gold"] for row in rows] == [0, 0, 0] and rows[2]["proxy"] > rows[0]["proxy"] + 0.02
    assert all(row["proxy_low"] <= row["proxy"] <= row["proxy_high"] for row in rows)
    learned, solutions = sum(row["rows"] for row in rows), 2 * 12 * 8
    assert 0 < learned == manifest.counts["rows"] and learned + sum(manifest.dropped.values()) <= solutions
    assert {state.artefact: state.state for state in status(config, run)}["teach/results.parquet"] == "done"
    assert run_stage(config, run, "teach") == manifest
    # As a kill leaves it while policy 1 samples: some groups are stored. The others are drawn as they would have been.
    texts, names, policy = contents(run)
    for name in ("labels", "scores", "candidates/manifest.json", f"candidates/part-{names[1]}.parquet"):
        run.delete(f"teach/round-1/{name}")
    for name in ("round-2", "results.parquet", "results.parquet.manifest.json"):
        run.delete(f"teach/{name}")
    assert len(names) > 2 and run_stage(config, run, "teach").details["policies"] == rows
    assert contents(run) == (texts, names, policy)
    # Another judge: the rounds are made again, from the start.
    other = build(
        {**config.model_dump(mode="json"), "teach": {**config.teach.model_dump(mode="json"), "judge": "gold"}}
    )
    with pytest.raises(UserError, match=r"teach: none of 96 solutions of policy 0 is kept \(.*rejected"):
        run_stage(other, run, "teach")
    assert not run.exists("teach/round-1")
