"""One training as data: what the driver hands to the workers, and the card (README.md) of the model that comes out."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from minos_ray import __version__
from minos_ray.config.resources import Observe, Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import BINARY, Dpo, Kind, Pretrain, Reward, Sft, StepEncoding, Teach, Train
from minos_ray.steps import encoding
from minos_ray.steps.encoding import REQUEST
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run, fingerprint
from minos_ray.training import rows
from minos_ray.training.batches import total_steps
from minos_ray.training.rows import Data

PIPELINES: dict[Kind, str] = {"lm": "text-generation", "orm": "text-classification", "prm": "token-classification"}
OTHER: dict[Kind, Kind] = {"lm": "lm", "orm": "prm", "prm": "orm"}
DESCRIPTION: dict[Kind, str] = {
    "lm": "It writes a critique, step by step, of a solution of a mathematics problem.",
    "orm": "Its one logit at the last token scores a whole solution: the sigmoid is the chance that it is right.",
    "prm": "Its one logit, read at the last token of each step, scores that step.",
}
EVERY_TOKEN = "It was trained at every token, so it may be read after each step as well.\n"
RANKED: dict[Kind, str] = {
    "orm": "Its one logit at the last token ranks the solutions of a problem.",
    "prm": "Its one logit, read at the last token of each step, ranks steps.",
}
ADAPTER = (
    "Only a LoRA adapter was trained, with a verifier's head: it is merged into these weights, and lies alone in "
    "`adapter/` (format of peft).\n"
)


class Table(BaseModel):
    """Tokenised rows that lie in `train/NAME-train.parquet` and `train/NAME-held-out.parquet`, and their digests.

    `right_share` is that of the held-out problems before their solutions were balanced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    rows: int
    groups: int | None = None  # of solutions that a loss compares
    held_out_rows: int
    train: str
    held_out: str
    dropped: dict[str, int]
    sources: dict[str, int] = {}
    right_share: float | None = None


class Job(BaseModel):
    """A model to be trained: from what, on which rows, how, and as which artefact it is saved.

    `key` names the artefact's inputs and the rows: a checkpoint with another key is of another training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str
    kind: Kind
    start: Model
    table: Table
    section: Pretrain | Sft | Dpo | Teach | Reward
    workers: Workers
    key: str
    observe: Observe = Observe()
    encoding: StepEncoding = encoding.LINES

    @property
    def name(self) -> str:
        """Last part of the artefact's name: `critic`, `orm-base`."""
        return self.artefact.rpartition("/")[2]

    @property
    def units(self) -> int:
        """What an epoch goes through: rows, or groups of them."""
        return self.table.groups or self.table.rows

    @property
    def batch(self) -> int:
        """Rows of a step, or as many groups as have about so many rows."""
        return max(1, round(self.section.batch_rows * self.units / self.table.rows))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return total_steps(self.units, self.section.epochs, self.batch)

    @property
    def lm_weight(self) -> float:
        """Weight of a verifier's language loss on right solutions."""
        return self.section.lm_weight if isinstance(self.section, Reward) else 0.0

    @property
    def beta(self) -> float | None:
        """Beta of a training on preferences, None of any other."""
        return self.section.beta if isinstance(self.section, Dpo) else None

    @property
    def loss(self) -> str:
        """The name of a verifier's loss."""
        return self.section.loss if isinstance(self.section, Reward) else BINARY

    @property
    def dropout(self) -> float:
        """Dropout on what a PRM's head reads; others have none."""
        return self.section.dropout if isinstance(self.section, Reward) and self.kind == "prm" else 0.0

    @property
    def calibrated(self) -> bool:
        """Whether a verifier is calibrated after its training, for which its head needs a bias."""
        return isinstance(self.section, Reward) and self.section.calibration != "none"

    @property
    def every_token(self) -> bool:
        """Whether an ORM is trained at every token of a solution, and not only at its last."""
        every = isinstance(self.section, Reward) and self.section.orm_positions == "every_token"
        return every and self.kind == "orm"


def write_table(run: Run, name: str, data: Data) -> Table:
    """Writes tokenised rows where every worker can read them."""
    train = rows.write(run, f"{name}-train", rows.as_table(data.train))
    held_out = rows.write(run, f"{name}-held-out", rows.as_table(data.held_out))
    return Table(
        name=name,
        rows=len(data.train),
        groups=data.train[-1]["group"] + 1 if data.train and "group" in data.train[-1] else None,
        held_out_rows=len(data.held_out),
        train=train,
        held_out=held_out,
        dropped=dict(data.dropped),
        sources={f"from_{source}": count for source, count in data.sources.items()},
        right_share=data.right_share,
    )


def make_job(
    run: Run,
    artefact: str,
    kind: Kind,
    start: Model,
    table: Table,
    section: Pretrain | Sft | Dpo | Teach | Reward,
    config: Config,
) -> Job:
    """The training of a table of rows; the artefact must have been begun. UserError when LoRA cannot be used."""
    if section.lora is not None:
        from minos_ray.training import memory, models

        key = f"{type(section).__name__.lower()}.lora"
        models.require_peft(key)
        models.require_targets(key, section.lora, memory.shape_of(start, run).linears)
    inputs = {"artefact": run.artefact(artefact).begun(), "train": table.train, "held_out": table.held_out}
    return Job(
        artefact=artefact,
        kind=kind,
        start=absolute(start),
        table=table,
        section=section,
        workers=config.resources.train,
        key=fingerprint(inputs),
        observe=config.tracking,
        encoding=encoding.LINES if isinstance(section, Pretrain) else config.base.encoding,
    )


def card(job: Job, details: dict[str, Any], own_class: bool = True) -> str:
    """Markdown with the YAML head that model hubs read; numbers as the manifest has them.

    `own_class`: a verifier is saved as the class of its kind, not as the other one (`heads.own_class`).
    """
    pipeline = PIPELINES[job.kind if own_class else OTHER[job.kind]]
    head = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["minos_ray", "math-minos"]}
    description, lora = DESCRIPTION[job.kind], job.section.lora
    if isinstance(job.section, Teach):
        description = f"It writes solutions of mathematics problems, taught its own best ones ({job.section.judge})."
    if job.loss != BINARY and "scale" not in details.get("calibration", {}):
        description = f"{RANKED[job.kind]} The sigmoid is no calibrated chance, for the loss was `{job.loss}`."
    settings = job.section.model_dump(include=set(Train.model_fields) - {"lora"})
    settings |= {"lm_weight": job.lm_weight, "dropout": job.dropout, "weights of step": details["weights_of_step"]}
    settings |= {"beta": job.beta} if job.beta is not None else {}
    if lora is not None:
        values = lora.model_dump() | {"targets": ", ".join(lora.targets)}
        settings |= {f"lora {key}": value for key, value in values.items()}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {job.name}\n",
            f"{description} Trained with minos_ray {__version__} from `{job.start.model}`.\n",
            *([EVERY_TOKEN] if job.every_token else []),
            *([ADAPTER] if lora else []),
            input_of(job.encoding, job.kind),
            *(["## Calibration\n", calibration_lines(details["calibration"])] if "calibration" in details else []),
            *(["## Use\n", scoring_lines(job.kind, own_class, job.encoding)] if job.kind != "lm" else []),
            "## Data\n",
            two_columns({"rows": job.table.rows, "held out": job.table.held_out_rows, **job.table.dropped}),
            "## Settings\n",
            two_columns(settings),
            "## On the held-out rows\n",
            first_and_last(details.get("curve") or []),
        ]
    )


def input_of(layout: StepEncoding, kind: Kind) -> str:
    """Markdown: what the model reads."""
    if layout.name == "lines":
        return (
            f"Input: step encoding `{encoding.NAME}` version {encoding.VERSION}: `Question: ...`, `Answer:`, then a "
            "line for each step, every line tokenised on its own. Where the tokenizer has a BOS token it stands first, "
            f"also where a call of the tokenizer adds none.{' It has no chat template.' if kind == 'lm' else ''}\n"
        )
    request = f" The user's next turn asks for the critique: `{REQUEST}`" if kind == "lm" else ""
    return (
        f"Input: step encoding `{encoding.CHAT}` version {encoding.CHAT_VERSION}: the question as the user's turn in "
        f"the chat template (system turn: {f'`{layout.system}`' if layout.system else 'none'}), then, as the "
        f"assistant's answer, a line for each step, every line tokenised on its own.{request}\n"
    )


def asked_lines(layout: StepEncoding) -> str:
    """Python: the texts' token ids as `pieces`, the question's first."""
    if layout.name == "lines":
        return """texts = [f"Question: {question}\\nAnswer:\\n", *(f"{step}\\n" for step in steps)]
pieces = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
pieces[0] = [tokenizer.bos_token_id] * (tokenizer.bos_token_id is not None) + pieces[0]"""
    system = f'{{"role": "system", "content": {layout.system!r}}}, ' if layout.system else ""
    values = dict(layout.chat_template_kwargs)
    date = f"strftime_now=lambda _: {values.pop('strftime_now')!r}" if "strftime_now" in values else ""
    options = ", ".join(
        filter(None, ["add_generation_prompt=True, return_dict=False", date, f"**{values}" if values else ""])
    )
    return f"""turns, texts = [{system}{{"role": "user", "content": question}}], [f"{{step}}\\n" for step in steps]
pieces = [tokenizer.apply_chat_template(turns, {options})]
pieces += tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]"""


def scoring_lines(kind: Kind, own_class: bool, layout: StepEncoding = encoding.LINES) -> str:
    """Markdown: how transformers alone scores a solution with a verifier of this kind and class."""
    by_token = (kind == "prm") == own_class
    name = "AutoModelForTokenClassification" if by_token else "AutoModelForSequenceClassification"
    ids = "torch.tensor([sum(pieces, [])])"
    logits = {
        ("prm", True): f"model({ids}).logits[0, ends, 0]",
        ("prm", False): f"model.score(model.base_model({ids}).last_hidden_state)[0, ends, 0]",
        ("orm", True): f"model({ids}).logits[0, ends[-1:], 0]",
        ("orm", False): f"model({ids}).logits[0]",
    }[kind, by_token]
    return f"""```python
import torch
from transformers import {name}, AutoTokenizer

folder, question, steps = ".", "Tom has 3 pens and buys 4. How many has he?", ["3 + 4 = 7", "The answer is: 7"]
tokenizer, model = AutoTokenizer.from_pretrained(folder), {name}.from_pretrained(folder).eval()
{asked_lines(layout)}
ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)[1:] - 1
with torch.no_grad():
    scores = torch.sigmoid({logits}).tolist()  # of {"each step" if kind == "prm" else "the solution"}
```
"""


def calibration_lines(facts: dict[str, Any]) -> str:
    """Markdown: what Platt scaling did to the head, or why it was left out."""
    if "left_out" in facts:
        return f"Asked for, and left out: {facts['left_out']}. The scores are those of the training.\n"
    before, after = facts["log_loss"]
    return (
        f"Platt scaling, fitted on {facts['rows']} held-out solutions, is part of the head: a logit is "
        f"{facts['scale']:.4g} times the trained one {facts['shift']:+.4g}. Log loss there: {before:.4f} before, "
        f"{after:.4f} after. The order of scores is the trained one, up to rounding.\n"
    )


def two_columns(values: dict[str, Any]) -> str:
    """A Markdown table without a head: key and value."""
    return "| | |\n|---|---|\n" + "".join(f"| {key.replace('_', ' ')} | {value} |\n" for key, value in values.items())


def first_and_last(curve: list[dict[str, Any]]) -> str:
    """The first and the last point of the convergence curve as a Markdown table, to four decimals."""
    if not curve:
        return "No rows were held out.\n"
    start, end = curve[0], curve[-1]
    rows = [
        f"| {name} | " + " | ".join("" if x is None else f"{x:.4f}" for x in (start.get(name), end[name])) + " |"
        for name in end
        if name != "step"
    ]
    return "\n".join([f"| | step 0 | step {end['step']} |", "|---|---|---|", *rows, ""])
