"""Our sampling worker against vLLM's own LLM.generate, and against one request per candidate; one engine for all.

python benchmarks/sampling.py [--problems 8] [--rounds 3]
"""

import argparse
import random

from common import alternate, show

from minos_ray.candidates.engine import Generator, Request
from minos_ray.candidates.prompts import plain
from minos_ray.models import load_tokenizer, locate
from minos_ray.problems.miniature.maker import draw
from minos_ray.sections import Engine, Model
from minos_ray.store import Run

N = 256
MODEL = Model(model="package:problems/miniature/model")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = locate(MODEL, Run("."))
    generator = Generator(path, MODEL, Engine(max_model_len=512, dtype="float32", kv_cache_gb=0.5))
    from vllm import SamplingParams

    rng, tokenizer = random.Random(0), load_tokenizer(path)
    prompts = [plain(draw(rng).question, tokenizer) for _ in range(arguments.problems)]
    sampling = {"temperature": 0.7, "max_tokens": 120}
    units = [Request(prompt, 64) for prompt in prompts for _ in range(N // 64)]
    whole = [{"prompt_token_ids": prompt} for prompt in prompts]
    single = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(N)]
    seconds = alternate(
        {
            "minos_ray, units of 64": lambda: generator.generate(units, sampling, "benchmark"),
            "vllm generate, n = 256": lambda: generator.llm.generate(
                whole, SamplingParams(n=N, **sampling), use_tqdm=False
            ),
            "vllm generate, prompts repeated": lambda: generator.llm.generate(
                single, SamplingParams(n=1, **sampling), use_tqdm=False
            ),
        },
        arguments.rounds,
    )
    show("sampling, 256 candidates a problem", N * arguments.problems, "candidates", seconds)


if __name__ == "__main__":
    main()
