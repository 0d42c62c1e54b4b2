"""The map of the pipeline: which change makes which artefacts again, and which changes make none."""

import json
from pathlib import Path

import pytest

from minos_ray.config.load import MOVED, Config, load_config, resolve
from minos_ray.config.resources import Resources
from minos_ray.errors import UserError
from minos_ray.graph import specs as stages
from minos_ray.graph.specs import FUNCTIONS, begin, fresh, specs
from minos_ray.graph.state import difference, status
from minos_ray.pipeline import open_run, run_stage, saved_config
from minos_ray.store.columns import table
from minos_ray.store.run import Run, fingerprint

CONFIG = """
run: {run}
problems:
  train: {{loader: "minos_ray.problems.loaders:gsm8k", path: train.jsonl}}
  test: {{loader: "minos_ray.problems.loaders:gsm8k", path: test.jsonl}}
generator: {{model: run:models/base}}
base: {{model: run:models/base}}
pretrain: {{corpus: "a:b"}}
"""

BASE = {"models/base"}
PROBLEMS = {"problems"}
CANDIDATES = {"candidates"}
LABELS = {"labels"}
CRITIQUES = {"critiques"}
CRITIC = {"models/critic"}
PLAIN = {"models/orm-base", "models/prm-base"}
MINOS = {"models/orm-minos", "models/prm-minos"}
SCORES = {"scores/orm-base", "scores/prm-base", "scores/orm-minos", "scores/prm-minos"}
MINOS_SCORES = {"scores/orm-minos", "scores/prm-minos"}
JUDGED = {"scores/critic"}
END = {"evaluation.json", "report.html"}
SWEEP = {"sweep/results.parquet"}
SWEEP_END = SWEEP | {"report.html"}
FROM_CRITIC = CRITIC | MINOS | MINOS_SCORES | JUDGED | END | SWEEP
FROM_LABELS = CRITIQUES | PLAIN | SCORES | FROM_CRITIC
FROM_CANDIDATES = LABELS | FROM_LABELS

# What is made again by `minos run` and `minos sweep` after a change of one key.
STALE = {
    "seed=1": PROBLEMS | CANDIDATES | FROM_CANDIDATES,
    "pretrain.layers=3": BASE | CANDIDATES | FROM_CANDIDATES,
    "problems.test.limit=5": PROBLEMS | CANDIDATES | FROM_CANDIDATES,
    "sample.n_test=128": CANDIDATES | FROM_CANDIDATES,
    "sample.min_p=0.1": CANDIDATES | FROM_CANDIDATES,
    "sample.chat_template_kwargs={enable_thinking: false}": CANDIDATES | FROM_CANDIDATES,
    "sample.repetition_penalty=1": set(),
    "resources.sample.extra={quantization: fp8}": CANDIDATES | FROM_CANDIDATES,
    "resources.sample.extra={max_num_batched_tokens: 9000}": set(),
    "resources.judge.extra={kv_cache_dtype: fp8}": JUDGED | END,
    "resources.score={engine: vllm, extra: {quantization: fp8}}": SCORES | END | SWEEP,
    "resources.score={extra: {quantization: fp8}}": set(),
    "generator.model=other": CANDIDATES | FROM_CANDIDATES,
    "label.timeout_s=9": FROM_CANDIDATES,
    "critique.count=10": CRITIQUES | FROM_CRITIC,
    "critique.model=other": CRITIQUES | FROM_CRITIC,
    "critique.max_usd=5": set(),
    "critique.api_key_env=OTHER_KEY": set(),
    "critique.base_url=http://10.0.0.7:41231/v1": set(),
    "critique.token_limit=max_completion_tokens": set(),
    "critique.extra_headers={X-Org: minos}": set(),
    "critique.base_url=offline": CRITIQUES | FROM_CRITIC,
    "critique.top_p=0.9": CRITIQUES | FROM_CRITIC,
    "critique.reasoning_effort=low": CRITIQUES | FROM_CRITIC,
    "critique.extra_body={seed: 1}": CRITIQUES | FROM_CRITIC,
    "sft.epochs=1": FROM_CRITIC,
    "refine.keep=1": set(),
    "score.judge.soft=false": set(),
    "reward.calibration=none": set(),
    "reward.calibration=platt": PLAIN | MINOS | SCORES | END | SWEEP,
    "reward.lr=0.5": PLAIN | MINOS | SCORES | END | SWEEP,
    "reward.eval_rows=9": FROM_CRITIC | PLAIN | MINOS | SCORES | END | SWEEP,
    "base.encoding.name=chat": CRITIC | PLAIN | MINOS | SCORES | JUDGED | END | SWEEP,
    "base.encoding={name: lines, system: null}": set(),
    "base.revision=x": CRITIC | PLAIN | MINOS | SCORES | JUDGED | END | SWEEP,
    "score.aggregation=mean": SCORES | END | SWEEP,
    "score.judge.max_tokens=9": JUDGED | END | SWEEP,
    "evaluate.trials=9": END | SWEEP,
    "sweep.seeds=[0, 1]": SWEEP_END,
    "dpo.beta=0.5": set(),
    "teach.samples=4": set(),
    "report.title=x": {"report.html"},
}


SAMPLING = ("candidates", "samples", "temperature", "max_tokens")


def load(folder: Path, *overrides: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(run=folder / "run"))
    return load_config(path, overrides)


def make_all(config: Config) -> list[str]:
    """Makes what is missing or stale, in order, as empty artefacts; returns what was made."""
    run = Run(config.run)
    made = []
    for spec in specs(config):
        if not fresh(config, run, spec.artefact):
            begin(config, run, spec.artefact).complete({"rows": 0})
            made.append(spec.artefact)
    return made


@pytest.mark.parametrize(("override", "stale"), STALE.items())
def test_a_change_makes_exactly_what_depends_on_it_again(tmp_path: Path, override: str, stale: set[str]) -> None:
    everything = [spec.artefact for spec in specs(load(tmp_path))]
    assert make_all(load(tmp_path)) == everything
    assert make_all(load(tmp_path)) == []
    assert set(make_all(load(tmp_path, override))) == stale
    assert set(make_all(load(tmp_path))) == stale


def test_a_tracker_makes_nothing_stale(tmp_path: Path) -> None:
    everything = make_all(load(tmp_path))
    assert everything and make_all(load(tmp_path, "observe.tracker=some.module:function")) == []


@pytest.mark.parametrize("key", Resources.model_fields)
def test_resources_make_nothing_stale(tmp_path: Path, key: str) -> None:
    other = {"address": "x:1", "num_cpus": 7, "wait_s": 5, "search_pools": 2, "wandb": True}
    override = f"resources.{key}={other[key]}" if key in other else f"resources.{key}={{{pool_change(key)}}}"
    changed = load(tmp_path, override)
    assert changed.resources != load(tmp_path).resources
    make_all(load(tmp_path))
    assert make_all(changed) == []


def pool_change(key: str) -> str:
    return {"client": "concurrency: 3", "train": "workers: 5"}.get(key, "actors: 5")


def test_later_keys_that_are_not_set_are_in_no_fingerprint(tmp_path: Path) -> None:
    made = stages.inputs(load(tmp_path), Run(str(tmp_path)), stages.spec(load(tmp_path), "candidates"))
    before = {"n_train", "n_test", "unit", "temperature", "top_p", "top_k", "max_tokens", "stop", "prompt"}
    assert set(made["config"]["sample"]) == before
    assert set(made) == {"config", "needs", "versions", "package"}
    rounds = load(tmp_path, "refine.rounds=1")
    for name, keys in (("models/critic-1", {"keep", "start", "method"}), ("sampled/critic", set(SAMPLING))):
        assert set(stages.sections_of(rounds, stages.spec(rounds, name))["refine"]) == keys
    longer = load(tmp_path, "refine.rounds=1", "refine.epochs=3")
    assert stages.sections_of(longer, stages.spec(longer, "models/critic-1"))["refine"]["epochs"] == 3


def test_a_study_depends_on_rounds_of_the_critic_where_an_arm_has_them(tmp_path: Path) -> None:
    for ablations, stale in (("{}", set()), ("{refined: {refine.rounds: 1}}", {"study/results.parquet"})):
        study = ("study.seeds=[1]", f"study.ablations={ablations}")
        make_all(load(tmp_path, *study))
        assert set(make_all(load(tmp_path, *study, "refine.keep=1"))) == stale
        assert set(make_all(load(tmp_path, *study, "refine.keep=1", "dpo.beta=0.5"))) == stale


def test_rounds_of_the_critic_go_on_and_what_no_round_made_is_not_needed(tmp_path: Path) -> None:
    everything, run = make_all(load(tmp_path)), Run(str(tmp_path / "run"))
    assert make_all(load(tmp_path, "refine.keep=1")) == [], "off"
    round_1 = {"held-out/critic", "sampled/critic", "models/critic-1", "held-out/critic-1"}
    after = MINOS | MINOS_SCORES | JUDGED | END
    assert set(make_all(load(tmp_path, "refine.rounds=1"))) == round_1 | {"refine.json"} | after
    assert set(make_all(load(tmp_path, "refine.rounds=1", "refine.start_round=1"))) == after
    round_2 = {"sampled/critic-1", "models/critic-2", "held-out/critic-2"}
    two = load(tmp_path, "refine.rounds=2")
    assert set(make_all(two)) == round_2 | {"refine.json"} | after
    kept = set(make_all(load(tmp_path, "refine.rounds=2", "refine.keep=1")))
    assert kept == (round_1 | round_2) - {"held-out/critic", "sampled/critic"} | {"refine.json"} | after
    make_all(two)
    for name in round_2:
        run.delete(name)
    manifest = begin(two, run, "refine.json").complete({"rounds": 1})
    assert manifest and {s.artefact: s.state for s in status(two, run) if s.stage == "refine"} == dict.fromkeys(
        [*round_1, *round_2, "refine.json"], "done"
    )
    run.delete("held-out/critic-1")
    assert {s.artefact for s in status(two, run) if s.state == "missing"} == {"held-out/critic-1"}
    assert set(make_all(load(tmp_path, "score.judge.soft=true"))) >= {"scores/critic", "scores/critic-soft"}
    assert everything[0] == "models/base"


def test_every_needed_artefact_comes_earlier_and_every_stage_has_its_function(tmp_path: Path) -> None:
    made: set[str] = set()
    for spec in specs(load(tmp_path)):
        assert made >= {*spec.needs}
        assert spec.stage in FUNCTIONS
        made.add(spec.artefact)


def test_a_new_prompt_version_makes_critiques_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(load(tmp_path))
    monkeypatch.setitem(stages.VERSIONS, "critique_prompt", 999)
    assert set(make_all(load(tmp_path))) == CRITIQUES | FROM_CRITIC
    monkeypatch.setitem(stages.VERSIONS, "step_encoding", 999)
    expected = CRITIC | PLAIN | MINOS | SCORES | JUDGED | END
    assert set(make_all(load(tmp_path))) >= expected


def test_what_an_earlier_version_made_is_fresh_though_its_inputs_name_the_address(tmp_path: Path) -> None:
    """Its fingerprint covers keys that are neutral now, and none of those that came later."""
    run, everything = Run(load(tmp_path).run), make_all(load(tmp_path))
    for name in everything:
        artefact = run.artefact(name)
        manifest = artefact.manifest()
        critique = manifest.inputs["config"].get("critique")
        if critique:
            critique |= {"base_url": "http://127.0.0.1:32993/v1", "token_limit": "max_tokens"}
        old = {"inputs": manifest.inputs, "fingerprint": fingerprint(manifest.inputs)}
        changed = manifest.model_copy(update=old if critique else {})
        run.write_bytes(artefact.manifest_name, changed.model_dump_json().encode())
    critic = run.artefact("models/critic")
    needs = {**critic.manifest().inputs["needs"], "critiques": run.artefact("critiques").manifest().fingerprint}
    inputs = {**critic.manifest().inputs, "needs": needs}
    changed = critic.manifest().model_copy(update={"inputs": inputs, "fingerprint": fingerprint(inputs)})
    run.write_bytes(critic.manifest_name, changed.model_dump_json().encode())
    states = {state.artefact: state for state in status(load(tmp_path), run)}
    assert (states["critiques"].state, states["models/critic"].state) == ("done", "done")
    states = {state.artefact: state for state in status(load(tmp_path, "critique.count=10"), run)}
    assert states["critiques"].why == "critique.count: 30000 -> 10"


def test_a_base_without_an_encoding_is_in_no_fingerprint(tmp_path: Path) -> None:
    """Runs from before there was one stay valid; the version of a chat encoding is in those that use it."""
    plain, chat = load(tmp_path), load(tmp_path, "base.encoding.name=chat")
    made = [stages.inputs(config, Run(config.run), stages.spec(config, "models/critic")) for config in (plain, chat)]
    assert made[0]["config"]["base"] == {"model": "run:models/base", "revision": None, "trust_remote_code": False}
    assert [inputs["versions"] for inputs in made] == [{"step_encoding": 2}, {"step_encoding": 2, "chat_encoding": 1}]


def test_keys_that_came_later_are_in_no_fingerprint_at_their_defaults(tmp_path: Path) -> None:
    for overrides, named in ((), False), (("reward.calibration=platt",), True):
        config = load(tmp_path, *overrides)
        section = stages.sections_of(config, stages.spec(config, "models/orm-base"))["reward"]
        assert ("calibration" in section) == named
    pairwise = "reward.loss=minos_ray.training.verifier_losses:pairwise"
    for overrides, named in ((), False), ((pairwise,), True):  # a binary loss makes no groups
        config = load(tmp_path, "reward.group_rows=4", *overrides)
        assert ("group_rows" in stages.sections_of(config, stages.spec(config, "models/orm-base"))["reward"]) == named


def test_names_of_an_earlier_version_make_nothing_stale(tmp_path: Path) -> None:
    """Modules have moved since: what was made, or begun, under their former names stays."""
    run, everything = Run(load(tmp_path).run), make_all(load(tmp_path))
    replaced, renamed = {today: former for former, today in MOVED.items()}, 0
    for name in everything:
        artefact = run.artefact(name)
        manifest = artefact.manifest()
        text = json.dumps(manifest.inputs)
        for today, former in replaced.items():
            renamed += text.count(today) if today in MOVED.values() else 0
            text = text.replace(today, former)
        inputs = json.loads(text)
        replaced[manifest.fingerprint] = fingerprint(inputs)
        changed = manifest.model_copy(update={"inputs": inputs, "fingerprint": fingerprint(inputs)})
        run.write_bytes(artefact.manifest_name, changed.model_dump_json().encode())
        run.write_bytes(
            artefact.begun_name, json.dumps({"fingerprint": fingerprint(inputs), "inputs": inputs}).encode()
        )
    assert renamed and {state.state for state in status(load(tmp_path), run)} == {"done"}
    labels = run.artefact("labels")
    run.delete(labels.manifest_name)
    labels.write_part("0", table("labels", []))
    begin(load(tmp_path), run, "labels")
    assert labels.part_names() == ["0"]


def test_a_config_may_use_the_names_of_an_earlier_version(tmp_path: Path) -> None:
    former = load(
        tmp_path, "label.splitter=minos_ray.labels.steps:lines", "base.model=package:problems/miniature/model"
    )
    assert (former.label.splitter, former.base.model) == ("minos_ray.steps.split:lines", "package:miniature/model")
    for name in (
        "minos_ray.labels.answers:gsm8k",
        "minos_ray.labels.miniature:label_steps",
        "minos_ray.problems.gsm8k:load",
        "minos_ray.problems.math:load",
        "minos_ray.problems.table:load",
        "minos_ray.training.corpora:right_solutions",
        "minos_ray.training.tokenizer:byte_level_bpe",
    ):
        assert callable(resolve(name))


def test_a_version_that_came_later_is_all_that_is_said(tmp_path: Path) -> None:
    made = stages.spec(load(tmp_path), "labels")
    now = stages.inputs(load(tmp_path), Run(load(tmp_path).run), made)
    assert difference({**now, "versions": {}}, now) == f"versions.labels: None -> {stages.VERSIONS['labels']}"


def test_another_release_makes_everything_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = make_all(load(tmp_path))
    monkeypatch.setattr(stages, "__version__", "9.9")
    assert make_all(load(tmp_path)) == everything


def test_imported_artefacts_stay_fresh_whatever_the_config_says(tmp_path: Path) -> None:
    run = Run(load(tmp_path).run)
    for name in ("problems", "candidates", "labels", "critiques"):
        target = run.artefact(name)
        target.begin({"import": "genrm"})
        target.complete({"rows": 0})
    make_all(load(tmp_path))
    assert make_all(load(tmp_path, "sample.n_test=1", "critique.count=1")) == []


def test_fewer_verifiers_leave_the_others_fresh(tmp_path: Path) -> None:
    make_all(load(tmp_path))
    assert set(make_all(load(tmp_path, "reward.verifiers=[orm-base]"))) == END
    names = {spec.artefact for spec in specs(load(tmp_path, "reward.verifiers=[orm-base]", "score.judge=null"))}
    assert not names & (CRITIC | MINOS | JUDGED)


def test_states_say_what_is_partial_and_why_something_is_stale(tmp_path: Path) -> None:
    config = load(tmp_path)
    run = open_run(config)
    states = {s.artefact: s for s in status(config, run)}
    assert {s.state for s in states.values()} == {"missing"}
    make_all(config)
    target = begin(load(tmp_path, "sample.n_test=9"), run, "candidates")
    target.write_part("a", target.read(partial=True))
    states = {s.artefact: s for s in status(load(tmp_path, "sample.n_test=9"), run)}
    assert (states["candidates"].state, states["candidates"].why) == ("partial", "1 parts so far")
    assert (states["labels"].state, states["labels"].why) == ("stale", "candidates changed")
    other = {s.artefact: s for s in status(config, run)}["candidates"]
    assert (other.state, other.why) == ("partial", "1 parts so far, begun with sample.n_test: 9 -> 256")
    target.complete({"rows": 0})
    states = {s.artefact: s for s in status(config, run)}
    assert (states["candidates"].state, states["candidates"].why) == ("stale", "sample.n_test: 9 -> 256")


def test_a_stage_without_its_inputs_says_what_to_run_first(tmp_path: Path) -> None:
    config = load(tmp_path)
    with pytest.raises(UserError, match=r"stage 'label' needs candidates, problems; run `minos problems` first"):
        run_stage(config, Run(config.run), "label")
    with pytest.raises(UserError, match="nothing for stage 'pretrain'"):
        run_stage(load(tmp_path, "base.model=x", "generator.model=x", "pretrain=null"), Run(config.run), "pretrain")


def test_the_resolved_config_lies_in_the_run(tmp_path: Path) -> None:
    config = load(tmp_path, "sample.n_test=9")
    assert saved_config(open_run(config)) == config
    with pytest.raises(UserError, match=r"no config\.yaml"):
        saved_config(Run(str(tmp_path / "nothing")))
