"""GRPO with a verifier as reward, on a run's problems: gold accuracy and the verifier's own score on the same axes.

python benchmarks/grpo.py RUN --reward orm-minos --out DIR [--read lowest] [--kl 0.05] [--steps 60] [--seed 0]
python benchmarks/grpo.py RUN --reward gold --out DIR     # the labels as reward: the ceiling
python benchmarks/grpo.py --draw DIR [DIR ...]            # DIR/grpo.svg of all results there, and a table

Needs TRL (the extra `bench`). RUN has problems, a generator and `models/<reward>`. The generator learns its own
solutions of the train problems by TRL's GRPOTrainer (2402.03300), with rewards by `minos_ray.rewards`. Every `--every`
steps the policy samples `--samples` solutions of each test problem: `gold` is the share of right answers, `proxy` the
mean reward of the same solutions. A proxy that rises while gold does not is a hacked reward.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minos_ray.config.load import Config, resolve
from minos_ray.evaluation.statistics import student
from minos_ray.pipeline import saved_config
from minos_ray.report.figures import GROUPS, drawn, grid
from minos_ray.steps.encoding import question_text
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reward = Callable[..., list[float]]
BATCH = 512  # test solutions that are sampled at once
LIGHT = {"currentColor": "#1d2127", "var(--card)": "#ffffff"}


def gold_reward(config: Config) -> Reward:
    """1 for a right answer, 0 for any other; `gold` is the data set's column."""
    grader = resolve(config.label.grader)

    def gold(prompts: Sequence[str], completions: Sequence[str], gold: Sequence[str], **_: Any) -> list[float]:
        return [float(grader(*pair).correct) for pair in zip(gold, completions, strict=True)]

    return gold


def reward_of(name: str, read: str, config: Config, run: Run) -> Reward:
    """The labels, or a verifier of the run."""
    if name == "gold":
        return gold_reward(config)
    from minos_ray.rewards import VerifierReward

    length = config.resources.score.max_model_len
    return VerifierReward(run.at(f"models/{name}"), read, aggregation=config.score.aggregation, max_length=length)


def rows_of(run: Run, split: str) -> dict[str, list[str]]:
    """Columns of a split: prompt, question and gold answer."""
    table = run.artefact("problems").read(["problem_id", "split", "question", "answer"]).sort_by("problem_id")
    rows = [row for row in table.to_pylist() if row["split"] == split]
    columns = {"question": [row["question"] for row in rows], "gold": [row["answer"] for row in rows]}
    return {"prompt": [question_text(question) for question in columns["question"]], **columns}


def solutions(model: Any, tokenizer: Any, prompts: Sequence[str], settings: argparse.Namespace) -> Iterator[str]:
    """One solution of each prompt by the policy."""
    import torch

    for first in range(0, len(prompts), BATCH):
        batch = tokenizer(list(prompts[first : first + BATCH]), return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            ids = model.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=settings.temperature,
                top_k=0,
                max_new_tokens=settings.max_tokens,
            )
        yield from tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def measured(model: Any, tokenizer: Any, test: dict[str, list[str]], rewards: list[Reward], settings: Any) -> dict:
    """Gold accuracy and mean reward of the policy's solutions of the test problems, which are drawn alike each time."""
    import torch

    columns = {name: [value for value in values for _ in range(settings.samples)] for name, values in test.items()}
    state, training = torch.get_rng_state(), model.training
    torch.manual_seed(settings.seed)
    model.eval()
    texts = list(solutions(model, tokenizer, columns["prompt"], settings))
    model.train(training)
    torch.set_rng_state(state)
    columns["prompts"] = columns.pop("prompt")
    gold, proxy = (reward(completions=texts, **columns) for reward in rewards)
    lines = [text.count("\n") + 1 for text in texts]
    return {"gold": float(np.mean(gold)), "proxy": float(np.mean(proxy)), "lines": float(np.mean(lines))}


def train(settings: argparse.Namespace) -> None:
    """One policy by one reward; writes its measures beside the settings."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    run = Run(settings.run)
    config = saved_config(run)
    path = locate(config.generator or config.base, run)
    torch.manual_seed(settings.seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), load_tokenizer(path)
    reward = reward_of(settings.reward, settings.read, config, run)
    rewards, test, points = [gold_reward(config), reward], rows_of(run, "test"), []
    start = time.monotonic()

    def measure(step: int) -> None:
        point = {"step": step, **measured(model, tokenizer, test, rewards, settings)}
        points.append({**point, "seconds": round(time.monotonic() - start, 1)})
        print(json.dumps(points[-1]), flush=True)

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % settings.every == 0 or state.global_step == settings.steps:
                measure(state.global_step)

    measure(0)
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(settings.out),
            max_steps=settings.steps,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            warmup_steps=0,
            beta=settings.kl,
            num_generations=settings.group,
            per_device_train_batch_size=settings.group * settings.prompts,
            max_completion_length=settings.max_tokens,
            temperature=settings.temperature,
            top_k=0,
            seed=settings.seed,
            logging_steps=10,
            report_to="none",
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(rows_of(run, "train")),
        processing_class=tokenizer,
        callbacks=[Measure()],
    )
    trainer.train()
    result = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
    read = f"-{settings.read}" if settings.read != "outcome" else ""
    name = f"{settings.reward}{read}-kl-{settings.kl:g}-seed-{settings.seed}.json"
    (settings.out / name).write_text(json.dumps({**result, "points": points, "log": trainer.state.log_history}))


def label(result: dict[str, Any]) -> str:
    """What a result is called: its reward, how it is read, the weight of KL."""
    read = f", {result['read']}" if result["read"] != "outcome" else ""
    return f"{result['reward']}{read}" + (f", KL {result['kl']:g}" if result["kl"] else "")


def draw(folders: Sequence[Path]) -> None:
    """The picture of all results in the folders, and a table of the last step; the picture lies in the first one."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(file for folder in folders for file in folder.glob("*-seed-*.json")):
        result = json.loads(file.read_text())
        by_name.setdefault(label(result), []).append(result)
    print("| reward | seeds | gold before | gold after | proxy before | proxy after |\n|---|---|---|---|---|---|")
    for name, results in by_name.items():
        ends = {
            (measure, place): 100 * np.mean([result["points"][place][measure] for result in results])
            for measure in ("gold", "proxy")
            for place in (0, -1)
        }
        print(f"| {name} | {len(results)} | " + " | ".join(f"{value:.1f}" for value in ends.values()) + " |")
    last = {name: {r["seed"]: 100 * r["points"][-1]["gold"] for r in results} for name, results in by_name.items()}
    first, *others = last
    for name in others:
        seeds = sorted(last[first].keys() & last[name].keys())
        if len(seeds) > 1:
            gains = np.array([last[name][seed] - last[first][seed] for seed in seeds])
            low, high = student(gains).values()
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            print(f"gold, {name} minus {first}: {gains.mean():+.1f} [{low:.1f}, {high:.1f}] ({each})")
    text = str(picture(by_name))
    for variable, colour in LIGHT.items():
        text = text.replace(variable, colour)
    end = text.index(">") + 1
    (folders[0] / "grpo.svg").write_text(f'{text[:end]}<rect width="100%" height="100%" fill="#ffffff"/>{text[end:]}')


@drawn
def picture(by_name: dict[str, list[dict[str, Any]]]) -> "tuple[Figure, str]":
    """A panel for each reward: each seed faint, the means over seeds."""
    columns = min(3, len(by_name))
    figure, axes = grid(-(-len(by_name) // columns), columns, height=2.3, sharey=True)
    for axis in axes[len(by_name) :]:
        axis.remove()
    for axis, (name, results) in zip(axes, by_name.items(), strict=False):
        steps = [point["step"] for point in results[0]["points"]]
        for measure, colour, title in (("gold", "other", "gold accuracy"), ("proxy", "base", "the reward's own score")):
            values = 100 * np.array([[point[measure] for point in result["points"]] for result in results])
            axis.plot(steps, values.T, color=GROUPS[colour], alpha=0.2, linewidth=0.9)
            axis.plot(steps, values.mean(axis=0), "o-", color=GROUPS[colour], label=title)
        axis.set_title(name)
        axis.set_xlabel("steps of GRPO", fontsize=8)
        axis.set_ylabel("%", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7.5, loc="lower center", ncol=2)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure, "Gold accuracy and the reward's own score of the policy over the steps of GRPO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run directory")
    parser.add_argument("--draw", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--reward", default="gold", help="gold, or a verifier of the run")
    parser.add_argument("--read", default="outcome", choices=("outcome", "lowest"), help="lowest: the worst step (PRM)")
    parser.add_argument("--kl", type=float, default=0.0, help="weight of the KL divergence from the generator")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps between measurements")
    parser.add_argument("--samples", type=int, default=4, help="solutions of each test problem")
    parser.add_argument("--prompts", type=int, default=8, help="problems of a step")
    parser.add_argument("--group", type=int, default=8, help="solutions of each of them")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    if settings.draw:
        draw(settings.draw)
        return
    if not settings.run or not settings.out:
        parser.error("give RUN and --out, or --draw")
    settings.out.mkdir(parents=True, exist_ok=True)
    train(settings)


if __name__ == "__main__":
    main()
