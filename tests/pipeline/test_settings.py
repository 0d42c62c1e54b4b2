"""What `minos check` and the stages say of settings that cannot go together, before any work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minos_ray.config.load import Config, assign, build
from minos_ray.config.resources import Engine
from minos_ray.critiques.stage import critique
from minos_ray.errors import UserError
from minos_ray.graph.lengths import limit, positions
from minos_ray.pipeline import findings
from minos_ray.store.run import Run
from minos_ray.training.reward import reward
from tests.runs import make_run
from tests.tiny import tiny_model

SHIPPED = "package:miniature/model"
GOLD = {"steps": "minos_ray.miniature.step_labels:label_steps"}
MINIATURE = {split: {"loader": "minos_ray.miniature:load", "limit": 4} for split in ("train", "test")}
JUDGE = {"judge": {"max_tokens": 160}}
OFFLINE = {"base_url": "offline", "count": 4}


def config(folder: Path, **sections: object) -> Config:
    """A run of the miniature from nothing that nothing is wrong with but what `sections` say."""
    model = {"model": SHIPPED}
    values = {"run": str(folder / "run"), "problems": MINIATURE, "generator": model, "base": model, "label": GOLD}
    return build({**values, "critique": OFFLINE, "score": JUDGE, "resources": {"num_cpus": 2}, **sections})


def found(made: Config, stages: set[str] | None = None) -> list[str]:
    return list(findings(made, Run(made.run), stages))


def test_nothing_is_found_in_what_is_right(tmp_path: Path) -> None:
    assert found(config(tmp_path)) == []
    assert found(config(tmp_path, label={"rollouts": {}})) == []
    assert found(config(tmp_path, label={}, reward={"verifiers": ["orm-base", "orm-minos"]})) == []


def test_prms_without_step_labels_are_found_and_refused(tmp_path: Path) -> None:
    made = config(tmp_path, label={})
    [line] = found(made)
    assert line.startswith("reward.verifiers: prm-base, prm-minos need")
    assert "label.steps" in line and "label.rollouts" in line and "[orm-base, orm-minos]" in line
    assert found(made, {"sample"}) == [], "a stage asks for its own only"
    assert found(made, {"reward"}) == [line]
    with pytest.raises(UserError, match=re.escape(line)):
        reward(made, Run(made.run))


def test_a_sweep_and_a_study_of_prms_too(tmp_path: Path) -> None:
    made = config(tmp_path, label={}, sweep={"kinds": ["prm"]}, reward={"verifiers": ["orm-base"]})
    assert [line.partition(":")[0] for line in found(made, {"sweep"})] == ["sweep.kinds"]
    assert found(made) == []
    study = config(tmp_path, label={}, study={"seeds": [1]}, sft={"source": "critiques"}, reward={"verifiers": []})
    assert [line.partition(":")[0] for line in found(study) if "step labels" in line] == ["study.kinds"]


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_that_were_imported_are_looked_at(tmp_path: Path, labelled: bool) -> None:
    make_run(tmp_path / "run", [3, 3], labelled=labelled)
    made = config(tmp_path, problems=None, label={})
    assert found(made, {"reward"}) == [] if labelled else len(found(made, {"reward"})) == 1


def test_error_analysis_without_wrong_steps_is_found_before_critiques_are_bought(tmp_path: Path) -> None:
    wanted = {"label": {}, "error_analysis": {"count": 5}, "reward": {"verifiers": ["orm-base"]}}
    made = config(tmp_path, **wanted)
    [line] = found(made)
    assert line.startswith("error_analysis.count = 5:") and "inserted.count" in line
    with pytest.raises(UserError, match=re.escape(line)):
        critique(made, Run(made.run))
    assert not Run(made.run).exists("cache")
    assert found(config(tmp_path, **wanted, inserted={"count": 5})) == []


def test_the_examples_of_the_readme_are_right(tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(run: .*?)^```", Path("README.md").read_text(), re.M | re.S)
    assert len(examples) == 2
    for example in examples:
        made = build({**yaml.safe_load(example), "run": str(tmp_path / "run")})
        assert [line for line in found(made, {"reward", "label"}) if "step" in line] == []


def test_more_tokens_than_the_engine_has_are_found(tmp_path: Path) -> None:
    engine = {"num_cpus": 2, "sample": {"max_model_len": 500}, "judge": {"max_model_len": 256}}
    made = config(tmp_path, sample={"max_tokens": 500}, score={"judge": {"max_tokens": 300}}, resources=engine)
    first, second = found(made)
    assert (
        first.startswith("sample.max_tokens = 500 leaves no room") and "resources.sample.max_model_len = 500" in first
    )
    assert second.startswith("score.judge.max_tokens = 300") and "resources.judge.max_model_len" in second
    fits = config(tmp_path, sample={"max_tokens": 499}, score={"judge": {"max_tokens": 255}}, resources=engine)
    assert found(fits) == []


def test_more_tokens_than_the_model_has_are_found(tmp_path: Path) -> None:
    model = Path(tiny_model(tmp_path / "model"))
    own = {"generator": {"model": str(model)}, "base": {"model": str(model)}, "score": {"judge": None}}
    assert found(config(tmp_path, **own, sample={"max_tokens": 1023})) == []
    [line] = found(config(tmp_path, **own, sample={"max_tokens": 1024}))
    assert f"the model {model} has 1024 positions" in line and "max_model_len" not in line


def test_positions_are_stated_under_several_names() -> None:
    assert positions({"n_positions": 512}) == 512
    assert positions({"max_seq_len": 128, "max_position_embeddings": 2048}) == 128
    assert positions({"text_config": {"max_position_embeddings": 256}}) == 256
    assert positions({"max_position_embeddings": 8192, "model_max_length": 131072}) == 131072
    assert positions({}) == 2**31
    assert limit(Engine(max_model_len=100, extra={"max_model_len": 300}), None) == 300
    assert limit(Engine(max_model_len=100, extra={"max_model_len": -1}), None) == 2**31


@pytest.mark.parametrize("told", ["x", -2, 0, True, 1.5])
def test_a_length_that_is_none_is_named(told: object) -> None:
    with pytest.raises(UserError, match=rf"extra\.max_model_len = {told!r} is no number of tokens"):
        limit(Engine(extra={"max_model_len": told}), None)


@pytest.mark.parametrize(
    ("key", "name", "why"),
    [
        ("label.grader", "minos_ray.steps.split:lines", "that is no grader"),
        (
            "label.splitter",
            "minos_ray.grading.graders:math",
            "it cannot be called so (missing a required argument: 'text')",
        ),
        ("label.splitter", "builtins:len", "on an example it gives"),
        ("label.splitter", "minos_ray.steps.split:re", "that is no function"),
        ("label.steps", "minos_ray.steps.split:lines", "it cannot be called so (too many positional arguments)"),
        ("sample.prompt", "minos_ray.critiques.prompts:blind", "it cannot be called so"),
        ("critique.prompt", "minos_ray.steps.split:lines", "it fails on an example (AttributeError"),
        ("critique.prompt", "minos_ray.candidates.prompts:plain", "it cannot be called so"),
        ("critique.prompt", "minos_ray.steps.split:nothing", "does not name a function"),
        ("problems.train.loader", "minos_ray.steps.split:lines", "it cannot be called so"),
        ("problems.test.options", {"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_function_of_another_kind_is_found(tmp_path: Path, key: str, name: object, why: str) -> None:
    values = json.loads(config(tmp_path).model_dump_json())
    assign(values, key.split("."), name)
    [line] = found(build(values))
    assert line.startswith(key.replace("options", "loader")) and why in line, line


def test_functions_of_ones_own_kind_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_functions.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"label": {key: f"own_functions:{key}" for key in ("splitter", "steps", "grader")}}
    own |= {"critique": {**OFFLINE, "prompt": "own_functions:picky"}, "sample": {"prompt": "own_functions:prompt"}}
    assert found(config(tmp_path, **own)) == []


OWN = """
from functools import partial
from minos_ray.grading.graders import Grader

splitter = partial(str.split, sep=". ")
grader = Grader(str.strip, str.__eq__)

def steps(question, solution, steps, *, strict=False):
    raise ValueError("never called by a check")

def picky(case):
    if case.solution is None:
        raise ValueError("this one needs solutions")
    return [{"role": "user", "content": case.question}]

def prompt(question, tokenizer, **more):
    return tokenizer.encode(question)
"""


@pytest.mark.parametrize("place", ["here", "beside"])
def test_functions_in_the_working_directory_and_beside_the_config_are_found(tmp_path: Path, place: str) -> None:
    folders = {"here": tmp_path, "beside": tmp_path / "configs"}
    (tmp_path / "configs").mkdir()
    (folders[place] / "my_prompt.py").write_text("def ask(question, tokenizer):\n    return [1]\n")
    made = config(tmp_path, sample={"prompt": "my_prompt:ask"})
    (tmp_path / "configs/my.yaml").write_text(yaml.safe_dump(json.loads(made.model_dump_json())))
    # -P: as the script `minos`, which does not look in the working directory by itself
    command = [sys.executable, "-P", "-m", "minos_ray", "check", "configs/my.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
