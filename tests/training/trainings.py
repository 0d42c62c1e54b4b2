"""Trainings that several files look at, by one group of workers for each number of workers: starting one is dear.

Each file takes its own trainings out of `Trained`; only those of the files that run are made.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minos_ray.config.resources import Observe, Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Dpo, Lora
from minos_ray.imports import bring
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import Job, read, train_questions, write_table
from minos_ray.training.engine import complete_checkpoints
from minos_ray.training.results import Record, read_log
from minos_ray.training.reward import reward_data, verifier_jobs
from minos_ray.training.sft import critic_job, preference_data, preference_job
from minos_ray.training.trainer import fit
from tests.training.holding import held_at
from tests.training.world import world

KINDS = ("lm", "orm", "prm")
# Name: workers, ZeRO stage, tokens of a pass (512 holds a quarter of a step), precision.
LAYOUTS: dict[str, tuple[int, int, int, str]] = {
    "one rank, one pass": (1, 0, 8192, "fp32"),
    "accumulated": (1, 0, 512, "fp32"),
    "one rank, one pass, bf16": (1, 0, 8192, "bf16"),
    "accumulated, bf16": (1, 0, 128, "bf16"),
    "two ranks": (2, 0, 8192, "fp32"),
    "two ranks, ZeRO 1": (2, 1, 8192, "fp32"),
    "two ranks, ZeRO 2": (2, 2, 8192, "fp32"),
    "two ranks, ZeRO 3": (2, 3, 8192, "fp32"),
    "two ranks, ZeRO 3, accumulated": (2, 3, 512, "fp32"),
    "two ranks, bf16": (2, 0, 8192, "bf16"),
    "two ranks, ZeRO 2, bf16": (2, 2, 8192, "bf16"),
    "two ranks, ZeRO 3, bf16": (2, 3, 8192, "bf16"),
}
# A PRM is trained in all of them; what the others do not share with it (rows, targets, head) shows in these.
SOME = (
    "one rank, one pass", "accumulated", "one rank, one pass, bf16", "two ranks", "two ranks, ZeRO 3, accumulated",
    "two ranks, ZeRO 3, bf16",
)  # fmt: skip
LAYOUTS_OF = {"lm": SOME, "orm": SOME, "prm": tuple(LAYOUTS)}
# Bases beside the plain one: a tokenizer that pads with EOS, and weights in many files.
BASES = ("pad-is-eos", "sharded")
OFFLOADED = {"offloaded": {"zero": 2, "offload": "optimizer"}, "all-offloaded": {"zero": 3, "offload": "all"}}
WITH_LANGUAGE = {"language": 512, "language-accumulated": 128}  # tokens of a pass
# Four epochs of some 240 rows: 124 steps.
LONG = {"batch_rows": 8, "epochs": 4.0, "eval_every": 20, "lr": 2e-3}
ADAPTER = {"rank": 4, "alpha": 8}
TRACKER = "tests.training.test_tracker:recording"
KILLED = (0, 3)  # ZeRO stages of the trainings with LoRA of which a worker is killed, when it has made so many steps
KILLED_AT = 10


class Trained(NamedTuple):
    """The run with all models, its config, and the names of the weights in the last checkpoint of each killed
    training."""

    config: Config
    run: Run
    folder: Path
    checkpointed: dict[str, list[str]]


def train(folder: Path, files: set[str]) -> Trained:
    """The trainings that test files of these names look at: two groups of workers, one of them started again after
    each kill."""
    section = {"batch_rows": 32, "epochs": 1.5, "lr": 1e-3}
    config, run = world(folder, sft=section, reward=section, resources={"num_cpus": 2})
    bases(folder)
    trained = Trained(config, run, folder, {})
    likes = {kind: start(config, run, kind) for kind in KINDS}
    # By name: some files look at the same trainings.
    jobs = {job.name: job for name, plan in PLANS.items() if name in files for job in plan(trained, likes)}
    names = [f"killed{zero}" for zero in KILLED if "test_lora" in files]
    killer = threading.Thread(target=kill_each, args=(run, names, KILLED_AT, trained.checkpointed), daemon=True)
    killer.start()
    for workers in (1, 2):
        # The first job says how often the group may be started again; those that are killed come last.
        group = [job for job in jobs.values() if job.workers.workers == workers]
        group.sort(key=lambda job: job.name.startswith(("whole", "killed")))
        if group:
            fit(config, run, f"group-{workers}", group)
    killer.join(1)
    return trained


def bases(folder: Path) -> None:
    """Writes the `BASES`."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(f"{folder}/base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.save_pretrained(folder / "sharded", max_shard_size="100KB")
    tokenizer.save_pretrained(folder / "sharded")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 3
    tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(folder / "pad-is-eos")
    tokenizer.save_pretrained(folder / "pad-is-eos")


def start(config: Config, run: Run, kind: str) -> Job:
    """The training of that kind, from the base model."""
    name = "critic" if kind == "lm" else f"{kind}-base"
    run.artefact(f"models/{name}").begin({"for": "test"})
    return critic_job(config, run) if kind == "lm" else verifier_jobs(config, run, [name])[0]


def changed(run: Run, like: Job, name: str, base: str | None = None, section: Any = None, **workers: Any) -> Job:
    """The job as another artefact, from another base, with changes of its section and its workers."""
    run.artefact(f"models/{name}").begin({"for": name})
    changes: dict[str, Any] = {
        "artefact": f"models/{name}",
        "key": name,
        "section": like.section.model_copy(update=section or {}),
        "workers": Workers(**{"workers": 2, "micro_tokens": 512, "max_failures": len(KILLED), **workers}),
    }
    return like.model_copy(update=changes | ({"start": Model(model=base)} if base else {}))


def layout_name(kind: str, layout: str) -> str:
    """The model of a kind in one of the `LAYOUTS`."""
    return f"{kind}-{layout.replace(' ', '-').replace(',', '')}"


def in_layout(run: Run, like: Job, kind: str, layout: str) -> Job:
    """The same training in one of the `LAYOUTS`."""
    workers, zero, tokens, precision = LAYOUTS[layout]
    settings = {"workers": workers, "zero": zero, "micro_tokens": tokens}
    return changed(run, like, layout_name(kind, layout), section={"precision": precision}, **settings)


def layouts(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """Every kind in its layouts, and an ORM offloaded and with a language loss."""
    for kind, names in LAYOUTS_OF.items():
        for layout in names:
            yield in_layout(trained.run, likes[kind], kind, layout)
    for name, settings in OFFLOADED.items():
        yield changed(trained.run, likes["orm"], name, **settings)
    for name, tokens in WITH_LANGUAGE.items():
        yield changed(trained.run, likes["orm"], name, section={"lm_weight": 0.5}, zero=3, micro_tokens=tokens)


# Layouts whose models are read in every engine.
WAYS = {"plain": "two ranks", "zero3": "two ranks, ZeRO 3, accumulated", "bf16": "two ranks, ZeRO 3, bf16"}


def artefacts(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """Every kind from every base, and in those layouts whose models are read."""
    for kind in KINDS:
        for base in BASES:
            yield changed(trained.run, likes[kind], f"{kind}-{base}", f"{trained.folder}/{base}", zero=3)
        for layout in WAYS.values():
            yield in_layout(trained.run, likes[kind], kind, layout)
    yield from calibrated(trained, likes)


def calibrated(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """A PRM as in the layout `two ranks`, and an ORM with ZeRO 3, on the PRM's rows: a few steps teach where in a
    solution labels are right, and nothing of outcomes."""
    platt = {"calibration": "platt"}
    yield changed(trained.run, likes["prm"], "prm-calibrated", section=platt, zero=0, micro_tokens=8192)
    orm = likes["orm"].model_copy(update={"table": likes["prm"].table})
    yield changed(trained.run, orm, "orm-calibrated", section=platt, zero=3)


def adapters(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """Critics and verifiers with LoRA by two workers, one of each by a worker alone; two trainings are killed."""
    run, lora = trained.run, {"lora": Lora(**ADAPTER), "weight_decay": 0.1, "lr": 5e-3, "epochs": 1.0}
    dropout = lora | {"batch_rows": 8, "lora": Lora(**ADAPTER, dropout=0.2)}
    for zero in range(4):
        yield changed(run, likes["lm"], f"critic-zero{zero}", section=lora, zero=zero)
    yield changed(run, likes["lm"], "critic-recomputed", section=lora, zero=3, gradient_checkpointing=True)
    yield changed(run, likes["orm"], "orm-zero3", section=lora, zero=3)
    yield changed(run, likes["prm"], "prm", section=lora, zero=2)
    for zero in KILLED:
        yield changed(run, likes["orm"], f"whole{zero}", section=dropout, zero=zero)
        killed = changed(run, likes["orm"], f"killed{zero}", section=dropout, zero=zero, save_every=4)
        yield killed.model_copy(update={"observe": held_at(KILLED_AT, trained.folder / killed.name)})
    yield changed(run, likes["lm"], "critic-alone", section=lora, workers=1)
    yield changed(run, likes["orm"], "orm-alone", section=lora, workers=1)


def long_ones(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """Trainings long enough to be stopped, here never stopped; of the last the loss on held-out rows rises again."""
    yield changed(trained.run, likes["orm"], "straight", section=LONG, workers=1, save_every=10)
    yield changed(trained.run, likes["orm"], "straight-zero2", section=LONG, zero=2, save_every=10)
    rising = LONG | {"lr": 3e-2, "eval_every": 5, "pick": "best"}
    yield changed(trained.run, likes["orm"], "best", section=rising, zero=3, save_every=1000)


def tracked(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """One whose tracker kills the worker at step 12, and one whose tracker fails; see `tests.training.test_tracker`."""
    run, section = trained.run, LONG | {"epochs": 1.0}
    # The killed one begins anew: a tracker may lag, and what it had not taken before a checkpoint would be lost.
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        "tracked": (5, {"bad": [3, 4]}),
        "killed-tracked": (100, {"kill_at": 12}),
    }
    for name, (save_every, options) in ways.items():
        job = changed(run, likes["orm"], name, section=section, workers=1, save_every=save_every)
        observe = Observe(tracker=TRACKER, options={"path": f"{trained.folder}/{name}.jsonl", **options})
        yield job.model_copy(update={"observe": observe})


# Workers, tokens of a pass, packing.
COMPARED: dict[str, tuple[int, int, str]] = {
    "one": (1, 8192, "auto"),
    "two": (2, 512, "auto"),
    "padded": (2, 512, "off"),
}


def comparing(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """Losses that compare, in several layouts; an ORM from imported pairs."""
    config, run = trained.config, trained.run
    pairs = Run(f"{trained.folder}/pairs")
    asked = [f"What is {a} + {a + 1}?" for a in range(40)]
    rows = [{"question": q, "chosen": f"It is {2 * a + 1}.", "rejected": f"It is {a}."} for a, q in enumerate(asked)]
    file = trained.folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bring("pairs", str(file), pairs)
    for name, (kind, source, layouts) in {
        "pairwise": ("orm", run, COMPARED),
        "step_ranking": ("prm", run, COMPARED),
        "pairs": ("orm", pairs, ["one"]),
    }.items():
        loss = f"minos_ray.training.verifier_losses:{'pairwise' if name == 'pairs' else name}"
        section = config.reward.model_copy(update={"loss": loss, "eval_rows": 20})
        data = reward_data(source, base_tokenizer(config, run), section, kind)
        like = likes[kind].model_copy(update={"table": write_table(run, name, data)})
        changes = {"loss": loss, "epochs": 8.0 if name == "pairs" else 1.5}
        for layout in layouts:
            workers, tokens, packing = COMPARED[layout]
            settings = {"workers": workers, "micro_tokens": tokens, "packing": packing}
            yield changed(run, like, f"{name}-{layout}", section=changes, **settings)


def preferring(trained: Trained, likes: dict[str, Job]) -> Iterator[Job]:
    """DPO in several layouts, and by a worker that its tracker kills at step 12, after two checkpoints."""
    config, run, start = trained.config, trained.run, f"{trained.folder}/base"
    questions = train_questions(run)
    pairs = [
        {**row, "question": questions[row["problem_id"]], "chosen": verdict(row, True), "rejected": verdict(row, False)}
        for row in read(run, "labels", ["candidate_id", "problem_id", "steps"])
        if row["problem_id"] in questions
    ]
    section = Dpo(epochs=1.0, lr=1e-3, batch_rows=16, max_length=256, precision="fp32", eval_every=10, beta=0.5)
    data = preference_data(base_tokenizer(config, run, critic=True), pairs, section)
    run.artefact("models/dpo").begin({"for": "test"})
    like = preference_job(run, "models/dpo", Model(model=start), data, config.model_copy(update={"dpo": section}))
    alone = {"workers": 1, "save_every": 5}
    yield changed(run, like, "dpo-one", **alone, micro_tokens=8192)
    yield changed(run, like, "dpo-straight", **alone)
    killed = changed(run, like, "dpo-killed", **alone)
    options = {"path": f"{trained.folder}/dpo-killed.jsonl", "kill_at": 12}
    yield killed.model_copy(update={"observe": Observe(tracker=TRACKER, options=options)})
    yield changed(run, like, "dpo-padded", packing="off")
    yield changed(run, like, "dpo-zero3", zero=3)
    yield changed(run, like, "dpo-adapter", section={"lora": Lora(**ADAPTER)}, zero=2)


def verdict(row: dict[str, Any], says: bool) -> str:
    """A critique; those of some pairs differ from the first word on, and in length."""
    lines = 1 + int(says and row["candidate_id"].endswith("3"))
    text = f"{says}: " if row["candidate_id"].endswith("4") else "So it is. This step is correct.\n" * lines
    return f"{text}The final answer is {says}."


PLANS = {
    "test_dpo": preferring,
    "test_invariants": layouts,
    "test_artefacts": artefacts,
    "test_lora": adapters,
    "test_resume": long_ones,
    "test_tracker": tracked,
    "test_verifier_losses": comparing,
}


def kill_each(run: Run, names: Iterable[str], step: int, checkpointed: dict[str, list[str]]) -> None:
    """Kills the worker of each training as soon as its log has that step, and looks into the checkpoint left."""
    for name in names:
        while not (records := read_log(run, name)) or records[-1]["step"] < step:
            time.sleep(0.01)
        os.kill(next(r["pid"] for r in records if r["event"] == "start"), signal.SIGKILL)
        checkpoint = complete_checkpoints(run, f"checkpoints/group-2/{name}", name)[-1]
        file = next((Path(run.path) / checkpoint.folder).rglob("*model_states.pt"))
        checkpointed[name] = list(torch.load(file, weights_only=False)["module"])


def records(run: Run, name: str, event: str) -> list[Record]:
    """What the log of a model has of one event."""
    return [record for record in read_log(run, name) if record["event"] == event]


def losses(run: Run, name: str) -> list[float]:
    """Losses of all steps, then those on held-out rows."""
    return [record["loss"] for event in ("train", "eval") for record in records(run, name, event)]
