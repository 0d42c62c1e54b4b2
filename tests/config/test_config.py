"""The configuration: what is refused, with which line, and what is read."""

import os
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from minos_ray.config.load import build, leaves, load_config, read_yaml, resolve, secret, shipped
from minos_ray.config.schema import Config
from minos_ray.errors import UserError

MINIMAL = {"run": "runs/x", "base": {"model": "tiny"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, yaml.safe_dump(MINIMAL))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_config_loads_and_survives_being_written(name: str) -> None:
    config = load_config(name)
    assert build(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_overrides_reach_any_depth_and_are_typed_as_yaml(minimal: Path) -> None:
    given = [
        "sample.temperature=0",
        "resources.sample.actors=3",
        "sweep.critiques=[0, 10]",
        "score.judge=null",
        "sft.lr=1e-3",
    ]
    config = load_config(minimal, given)
    assert config.sample.temperature == 0.0
    assert config.resources.sample.actors == 3
    assert config.sweep.critiques == (0, 10)
    assert config.score.judge is None
    assert config.sft.lr == 1e-3
    assert load_config(minimal).sample.temperature == 0.7


def test_an_override_may_hold_an_equals_sign_and_make_a_section(minimal: Path) -> None:
    config = load_config(
        minimal, ["generator.model=a=b", "problems.train.path=t.jsonl", "problems.test={path: e.jsonl}"]
    )
    assert config.generator is not None
    assert config.generator.model == "a=b"
    assert config.problems is not None
    assert (config.problems.train.path, config.problems.test.path) == ("t.jsonl", "e.jsonl")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sample.temprature=1", ["'sample.temprature'", "did you mean 'temperature'"]),
        ("smaple.n_test=1", ["'smaple'", "did you mean 'sample'"]),
        ("resources.sample.actor=1", ["'resources.sample.actor'", "did you mean 'actors'"]),
        ("score.judge.sample=1", ["'score.judge.sample'", "did you mean 'samples'"]),
        ("sweep.xyzzy=1", ["'sweep.xyzzy'", "valid keys: critiques, kinds, seeds"]),
        ("sample.n_test=0", ["'sample.n_test'", "= 0", "greater than or equal to 1"]),
        ("sample.n_test=many", ["'sample.n_test'", "'many'", "integer"]),
        ("reward.verifiers=[orm-mino]", ["'reward.verifiers.0'", "'orm-mino'", "'orm-minos'"]),
        ("resources.train.zero=4", ["'resources.train.zero'", "= 4", "0, 1, 2 or 3"]),
        ("sample=3", ["'sample'", "= 3"]),
        ("run.x=3", ["'run.x'", "'run' is a value, not a section"]),
        ("sample.n_test", ["'sample.n_test'", "key=value"]),
        ("sample.n_test=[1", ["'sample.n_test=[1'", "not YAML"]),
        ("base={}", ["'base.model' is missing"]),
        ("base.model=run:models/base", ["base.model", "'pretrain'"]),
        ("=1", ["unknown config key ''"]),
        ("sft.lr=-1", ["'sft.lr'", "= -1", "greater than 0"]),
        ("seed=-1", ["'seed'", "= -1", "greater than or equal to 0"]),
        ("seed=18446744073709551616", ["'seed'", "less than 4294967296"]),
        ("sft.seed=-1", ["'sft.seed'", "= -1"]),
        ("sweep.seeds=[0, -1]", ["'sweep.seeds.1'", "= -1"]),
        ("study.seeds=[-1]", ["'study.seeds.0'", "= -1"]),
        ("sweep.critiques=[-5]", ["'sweep.critiques.0'", "= -5"]),
        ("sample.prompt=[]", ["'sample.prompt'", "valid string"]),
        ("sample.top_k=-2", ["'sample.top_k'", "= -2"]),
        ("sample.temperature=.nan", ["'sample.temperature'", "finite"]),
        ("sft.lr=.inf", ["'sft.lr'", "finite"]),
        ("resources.sample.max_model_len=-1", ["'resources.sample.max_model_len'", "= -1"]),
        ("resources.wait_s=.inf", ["'resources.wait_s'", "finite"]),
    ],
)
def test_a_wrong_override_gets_one_line_with_key_and_value(minimal: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(minimal, [override])
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: [", ["is not YAML", "line 1"]),
        ("", ["holds no mapping"]),
        ("- a\n- b", ["holds no mapping"]),
        ("base: {model: x}", ["'run' is missing"]),
        ("run: a\nbase: {model: x}\nsampel: {}", ["'sampel'", "did you mean 'sample'"]),
        ("run: a\nbase: {model: x}\n1: 2", ["config"]),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not YAML"):
        load_config(path)


def test_neither_file_nor_shipped_names_what_there_is() -> None:
    with pytest.raises(UserError, match="gsm8k-mistral-7b"):
        read_yaml("no-such-config")


def sections(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all sections that a config always has."""
    found = [prefix]
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name != "base":
            found += sections(kind, (*prefix, name))
    return found


@given(st.sampled_from(sections(Config)), st.text(string.ascii_lowercase, min_size=1, max_size=12))
def test_no_section_takes_an_unknown_key(where: tuple[str, ...], key: str) -> None:
    section = build(MINIMAL)
    for name in where:
        section = getattr(section, name)
    values = dict(MINIMAL)
    inner = values
    for name in where:
        inner = inner.setdefault(name, {})
    inner[key] = 1
    assume(key not in type(section).model_fields)
    with pytest.raises(UserError, match="unknown config key"):
        build(values)


def numbers(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Sections and keys of all numbers of a config that nothing bounds."""
    schema = model.model_json_schema()
    for name, section in {"Config": schema, **schema["$defs"]}.items():
        for key, field in section.get("properties", {}).items():
            for kind in [field, *field.get("anyOf", []), *([field["items"]] if "items" in field else [])]:
                bound = {"minimum", "exclusiveMinimum", "enum", "const"} & set(kind)
                if kind.get("type") in ("integer", "number") and not bound:
                    yield name, key


def test_every_number_has_a_bound() -> None:
    assert list(numbers(Config)) == []


def test_resolve() -> None:
    assert resolve("os.path:join") is os.path.join
    for name in ("os.path", "os.path:", "os.path:nothing", "no.such.module:f", ":f"):
        with pytest.raises(UserError, match=r"package\.module:function"):
            resolve(name)


@pytest.mark.parametrize("text", ["def f(:", "f = nothing", "import sys\nsys.exit('bye')"])
def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "failing_functions.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'failing_functions:f': importing \w+ ends in (Syntax|Name|SystemExit)"):
        resolve("failing_functions:f")


def test_leaves_are_the_values_under_dotted_keys() -> None:
    assert dict(leaves({"a": {"b": 1, "c": {"d": [2]}}, "e": {}})) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_a_missing_key_is_named_and_a_present_one_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "value")
    assert secret("SOME_KEY") == "value"
    monkeypatch.setenv("SOME_KEY", "")
    with pytest.raises(UserError, match="SOME_KEY"):
        secret("SOME_KEY")
