"""The model card (README.md) beside a trained model: what it is, from what, on what, and how good it was."""

from typing import Any

import yaml

from minos_ray import __version__
from minos_ray.config.training import Kind, Lora
from minos_ray.steps import encoding
from minos_ray.training.job import Job

PIPELINES: dict[Kind, str] = {"lm": "text-generation", "orm": "text-classification", "prm": "token-classification"}
OTHER: dict[Kind, Kind] = {"lm": "lm", "orm": "prm", "prm": "orm"}
WHAT: dict[Kind, str] = {
    "lm": "It writes a critique, step by step, of a solution of a mathematics problem. It goes on from the text and "
    "has no chat template.",
    "orm": "Its one logit at the last token scores a whole solution: the sigmoid is the chance that it is right.",
    "prm": "Its one logit, read at the last token of each step, scores that step.",
}

EVERY_TOKEN = "It was trained at every token, so it may be read after each step as well.\n"

ADAPTER = (
    "Only a LoRA adapter was trained, with a verifier's head: it is merged into these weights, and lies alone in "
    "`adapter/` (format of peft).\n"
)


def card(job: Job, details: dict[str, Any], own_class: bool = True) -> str:
    """Markdown with the YAML head that model hubs read; numbers as the manifest has them.

    `own_class`: a verifier is saved as the class of its kind, not as the other one (`heads.own_class`).
    """
    pipeline = PIPELINES[job.kind if own_class else OTHER[job.kind]]
    head = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["minos_ray", "math-minos"]}
    curve, lora = details.get("curve") or [], job.section.lora
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {job.name}\n",
            f"{WHAT[job.kind]} Trained with minos_ray {__version__} from `{job.start.model}`.\n",
            *([EVERY_TOKEN] if job.every_token else []),
            *([ADAPTER] if lora else []),
            f"Input: step encoding `{encoding.NAME}` version {encoding.VERSION}: `Question: ...`, `Answer:`, then a "
            "line for each step, every line tokenised on its own. Where the tokenizer has a BOS token it stands first, "
            "also where a call of the tokenizer adds none.\n",
            "## Data\n",
            table({"rows": job.table.rows, "held out": job.table.held_out_rows, **job.table.dropped}),
            "## Settings\n",
            table(job.section.model_dump(exclude={"lora"}) | settings(job, details) | adapter(lora)),
            "## On the held-out rows\n",
            measures(curve),
        ]
    )


def settings(job: Job, details: dict[str, Any]) -> dict[str, Any]:
    """What is told beside the section of the config."""
    return {"lm_weight": job.lm_weight, "dropout": job.dropout, "weights of step": details["weights_of_step"]}


def adapter(lora: Lora | None) -> dict[str, Any]:
    """Settings of LoRA, one a row; nothing without it."""
    values = lora.model_dump() | {"targets": ", ".join(lora.targets)} if lora else {}
    return {f"lora {key}": value for key, value in values.items()}


def table(values: dict[str, Any]) -> str:
    """Two columns."""
    return "| | |\n|---|---|\n" + "".join(f"| {key.replace('_', ' ')} | {value} |\n" for key, value in values.items())


def measures(curve: list[dict[str, Any]]) -> str:
    """The first and the last point of the convergence curve."""
    if not curve:
        return "No rows were held out.\n"
    names = [name for name in curve[-1] if name != "step"]
    rows = [f"| {name} | {shown(curve[0].get(name))} | {shown(curve[-1][name])} |" for name in names]
    return "\n".join([f"| | step 0 | step {curve[-1]['step']} |", "|---|---|---|", *rows, ""])


def shown(value: float | None) -> str:
    """Four places; nothing when there is no value."""
    return "" if value is None else f"{value:.4f}"
