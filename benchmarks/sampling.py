"""Sampling n = 256 a problem: our worker and our stage against vLLM's own ways and against ray.data.llm.

python benchmarks/sampling.py engine [--problems 8] [--rounds 3]   one engine in this process, four ways to ask it
python benchmarks/sampling.py stage [--problems 64] [--rounds 3] [--only OURS]   whole pipelines on Ray, one actor

A pipeline is run with a small and with a large load; the rate is that of the difference, so starting up is apart.
Starts vary by seconds: the large load must take far longer.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from common import alternate, show

from minos_ray.candidates.engine import Generator, Request, arguments, set_environment
from minos_ray.candidates.prompts import plain
from minos_ray.candidates.stage import sample
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine, Resources
from minos_ray.config.schema import Model, Sample
from minos_ray.miniature import draw
from minos_ray.store import columns
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

N, UNIT, SMALL = 256, 64, 4
MODEL = Model(model="package:miniature/model")
ENGINE = Engine(max_model_len=512, dtype="float32", kv_cache_gb=0.5)
SAMPLING = {"temperature": 0.7, "max_tokens": 120}


def questions(number: int) -> list[str]:
    """Questions of the miniature."""
    rng = random.Random(0)
    return [draw(rng).question for _ in range(number)]


def in_process(problems: int, rounds: int) -> None:
    """One engine, asked by us, by `LLM.generate` with n = 256, with units of 64, and with repeated prompts."""
    path = locate(MODEL, Run("."))
    generator, tokenizer = Generator(path, MODEL, ENGINE), load_tokenizer(path)
    from vllm import SamplingParams

    prompts = [plain(question, tokenizer) for question in questions(problems)]
    units = [Request(prompt, UNIT) for prompt in prompts for _ in range(N // UNIT)]

    def generate(n: int) -> Callable[[], object]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(N // n)]
        return lambda: generator.llm.generate(asked, SamplingParams(n=n, **SAMPLING), use_tqdm=False)

    contenders = {
        "minos_ray, units of 64 as finished": lambda: list(generator.stream(units, SAMPLING, "benchmark")),
        "vllm generate, n = 256": generate(N),
        "vllm generate, n = 64": generate(UNIT),
        "vllm generate, prompts repeated": generate(1),
    }
    show("sampling in one process", N * problems, "candidates", alternate(contenders, rounds))


def our_stage(problems: int) -> int:
    """Our stage from problems to a complete artefact; returns the number of candidates."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        artefact = run.artefact("problems")
        artefact.begin({"import": "benchmark"})
        common = {"dataset": "miniature", "split": "test", "answer": "0", "solution": None}
        rows = [{"problem_id": f"p{i}", "question": q, **common} for i, q in enumerate(questions(problems))]
        artefact.write_part("0", columns.table("problems", rows))
        artefact.complete({"problems": len(rows)})
        settings = Sample(n_train=0, n_test=N, unit=UNIT, **SAMPLING)
        resources = Resources(sample=ENGINE)
        manifest = sample(Config(run=folder, base=MODEL, generator=MODEL, sample=settings, resources=resources), run)
        return manifest.counts["candidates"]


def ray_data_llm(problems: int) -> int:
    """The same with `ray.data.llm`, which keeps one output of a row: so every problem is 256 rows."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    path = locate(MODEL, Run("."))
    tokenizer = load_tokenizer(path)
    engine = {k: v for k, v in arguments(path, MODEL, ENGINE).items() if k != "worker_extension_cls"}
    config = vLLMEngineProcessorConfig(
        model_source=path,
        engine_kwargs={**engine, "seed": 0},
        batch_size=512,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        runtime_env={"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "tokenized_prompt": row["ids"],
            "sampling_params": {**SAMPLING, "detokenize": True},
            "name": row["name"],
        },
        postprocess=lambda row: {"name": row["name"], "text": row["generated_text"]},
    )
    prompts = [plain(question, tokenizer) for question in questions(problems)]
    rows = [{"name": f"p{p}/{i}", "ids": prompt} for p, prompt in enumerate(prompts) for i in range(N)]
    random.Random(0).shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        processor(ray.data.from_items(rows)).write_parquet(folder)
        return ray.data.read_parquet(folder).count()


PIPELINES: dict[str, Callable[[int], int]] = {"minos_ray": our_stage, "ray.data.llm": ray_data_llm}


def timed(pipeline: Callable[[int], int], problems: int) -> float:
    """Seconds of one run, whose rows are counted."""
    start = time.perf_counter()
    assert pipeline(problems) == problems * N
    return time.perf_counter() - start


def whole_pipelines(problems: int, rounds: int, names: list[str]) -> None:
    """Medians of the time that the load adds, over alternating rounds."""
    connect()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append((timed(PIPELINES[name], SMALL), timed(PIPELINES[name], problems)))
            print(
                f"  {name}: {found[name][-1][0]:.1f} s for {SMALL} problems, {found[name][-1][1]:.1f} s for {problems}"
            )
    added = (problems - SMALL) * N
    print(f"whole pipeline, {added:,} candidates more: medians of {rounds} alternating runs")
    for name, pairs in found.items():
        seconds = statistics.median(large - small for small, large in pairs)
        whole = statistics.median(large for _, large in pairs)
        print(f"  {name:14} {added / seconds:8.0f} candidates/s; {whole:.1f} s in all with its start")


def connect() -> None:
    """Starts Ray on this machine, with the settings of every engine in its environment."""
    from minos_ray.cluster import connect as cluster

    set_environment(ENGINE)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    cluster.join(Config(run=".", base=MODEL).resources)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["engine", "stage"])
    parser.add_argument("--problems", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(PIPELINES))
    options: Any = parser.parse_args()
    if options.what == "engine":
        in_process(options.problems or 8, options.rounds)
    else:
        whole_pipelines(options.problems or 64, options.rounds, [options.only] if options.only else list(PIPELINES))


if __name__ == "__main__":
    main()
