"""Finding models: what is there is found, what is missing is named in one line."""

from pathlib import Path

import pytest

from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory."""
    return Path(tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run directory."""
    return Run(str(tmp_path / "run"))


def copy_without(directory: Path, target: Path, *names: str) -> Path:
    """A copy of a model directory without some of its files."""
    target.mkdir()
    for file in directory.iterdir():
        if file.name not in names:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_directory_is_found_and_its_tokenizer_loads(directory: Path, run: Run) -> None:
    path = locate(Model(model=str(directory)), run)
    assert path == str(directory)
    assert load_tokenizer(path).eos_token == "</s>"


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (["tokenizer.json"], "no tokenizer"),
        (["model.safetensors"], "no weights"),
        (["config.json"], "no config.json"),
    ],
)
def test_an_incomplete_directory_is_refused(
    directory: Path, tmp_path: Path, run: Run, removed: list[str], said: str
) -> None:
    broken = copy_without(directory, tmp_path / "broken", *removed)
    with pytest.raises(UserError, match=said) as caught:
        locate(Model(model=str(broken)), run)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_of_gguf_files_is_told_what_would_do(directory: Path, tmp_path: Path, run: Run) -> None:
    other = copy_without(directory, tmp_path / "other", "model.safetensors")
    (other / "model-Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"as GGUF only; .*gguf_file=NAME"):
        locate(Model(model=str(other)), run)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str, run: Run) -> None:
    with pytest.raises(UserError, match="there is no directory"):
        locate(Model(model=name), run)


def test_a_hub_id_that_cannot_be_had_is_one_line(run: Run) -> None:
    with pytest.raises(UserError, match="neither a directory nor") as caught:
        locate(Model(model="nobody-of-that-name/no-such-model"), run)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_named(directory: Path, tmp_path: Path) -> None:
    broken = copy_without(directory, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{not json")
    with pytest.raises(UserError, match="does not load"):
        load_tokenizer(str(broken))


def test_a_model_of_the_run_must_be_complete(directory: Path, run: Run) -> None:
    artefact = run.artefact("models/critic")
    artefact.begin({"made": "here"})
    copy = Path(artefact.path)
    for file in directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="not complete"):
        locate(Model(model="run:models/critic"), run)
    artefact.complete({"rows": 1})
    assert locate(Model(model="run:models/critic"), run) == artefact.path


def test_a_model_of_a_remote_run_is_copied_here_once(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    run = Run(str(tmp_path / "run"))
    artefact = run.artefact("models/critic")
    artefact.begin({"made": "here"})
    for file in directory.iterdir():
        (Path(artefact.path) / file.name).write_bytes(file.read_bytes())
    artefact.complete({"rows": 1})
    run.fs, run.root = SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "run"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not run.local
    path = Path(locate(Model(model="run:models/critic"), run))
    assert path.is_relative_to(tmp_path / "cache")
    assert (path / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert locate(Model(model="run:models/critic"), run) == str(path)
    assert {found.name for found in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


def test_a_folder_of_the_package_that_is_not_there_is_named(run: Run) -> None:
    with pytest.raises(UserError, match="package:problems/nothing"):
        locate(Model(model="package:problems/nothing"), run)
