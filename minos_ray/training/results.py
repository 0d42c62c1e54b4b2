"""What comes out of a training beside its weights: its history and measures (JSONL in `logs/`, TensorBoard in
`logs/tb/`, a tracker on request), the calibration of a verifier, and the card (README.md) of the model.

Platt scaling is a line through a verifier's logits, so that their sigmoids are chances of being right. It is fitted on
the rows that stage 2 holds out (Platt 1999; for networks Guo et al. 2017, 1706.04599). The weight of the head is then
multiplied by `scale`, its bias too and moved by `shift`. So transformers, vLLM and every command read calibrated logits
from the saved model and need to know nothing of it. The order of scores stays, up to the rounding of the head to
`reward.precision`; log loss and Brier score are those of the line before that.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from minos_ray import __version__
from minos_ray.config.training import BINARY, Kind, StepEncoding, Teach, Train
from minos_ray.errors import UserError
from minos_ray.observe.trackers import Tracking
from minos_ray.steps import encoding
from minos_ray.steps.encoding import REQUEST
from minos_ray.store.columns import Row
from minos_ray.store.run import Run
from minos_ray.training.data import Job

Record = dict[str, Any]
REMOTE_S = 15.0  # an object store cannot append: there the file is written anew, at most this often
LEAST = 50  # held-out solutions
MARGIN = float(np.finfo(np.float32).eps)  # scores are stored in single precision: a log-odds must stay finite
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


def log_name(name: str) -> str:
    """The JSONL of a model, inside the run directory."""
    return f"logs/{name}.jsonl"


def read_log(run: Run, name: str) -> list[Record]:
    """Records so far, without a last line that is still being written."""
    if not run.exists(log_name(name)):
        return []
    lines = run.read_bytes(log_name(name)).decode().split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Log:
    """Written by rank 0. `history` travels in checkpoints, so that a resumed training has all of it.

    `note` is shown to the user at the start: why rows are not packed, how many workers there are. `tracking` gets all
    numbers.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        history: list[Record],
        tracking: Tracking | None = None,
        note: str | None = None,
        workers: int = 1,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        last = history[-1]["step"] if history else None
        steps = sum(record["event"] == "train" for record in history)
        text = {} if note is None else {"text": note}
        history.append({"event": "start", "step": steps, "pid": os.getpid(), "workers": workers, **text})
        self.run, self.name, self.history = run, name, history
        # The start is written at once: a reader takes the last start in the file for the current one.
        self.write()
        self.folder = f"{run.root}/logs/tb/{name}" if run.local else tempfile.mkdtemp(prefix="minos-")
        self.events = SummaryWriter(self.folder, purge_step=last)
        self.tracking, self.warned = tracking, False

    def add(self, record: Record) -> None:
        """Adds a record with `event` (train, eval, tracker), `step` and numbers, or a `text` for the user."""
        self.history.append(record)
        if self.run.local:
            with open(f"{self.run.root}/{log_name(self.name)}", "a") as file:
                file.write(json.dumps(record) + "\n")
        elif record["event"] != "train" or time.monotonic() - self.written > REMOTE_S:
            self.write()
        numbers = {f"{record['event']}/{key}": value for key, value in record.items() if isinstance(value, float)}
        for key, value in numbers.items():
            self.events.add_scalar(key, value, record["step"])
        if self.tracking is not None and numbers:
            if record["event"] == "train":
                numbers["train/tokens_per_s"] = record["tokens"] / max(record["seconds"], 1e-4)
            self.tracking.log(numbers, record["step"])
            self.warn(record["step"])

    def warn(self, step: int) -> None:
        """Adds, once, what went wrong with the tracker."""
        if self.tracking is not None and self.tracking.warning and not self.warned:
            self.warned = True
            self.add({"event": "tracker", "step": step, "text": self.tracking.warning})

    def write(self) -> None:
        """Writes the file anew."""
        self.run.write_bytes(
            log_name(self.name), "".join(json.dumps(record) + "\n" for record in self.history).encode()
        )
        self.written = time.monotonic()

    def close(self) -> dict[str, Any]:
        """Writes what is still missing into the run directory; returns what the manifest says of the tracker."""
        self.events.close()
        tracked = self.tracking.close() if self.tracking is not None else {}
        self.warn(self.history[-1]["step"])
        if not self.run.local:
            self.write()
            self.run.upload(self.folder, f"logs/tb/{self.name}")
            shutil.rmtree(self.folder)
        return tracked


def curve(history: list[Record]) -> list[Record]:
    """The convergence curve: measures on held-out rows by step."""
    return [
        {key: value for key, value in record.items() if key != "event"}
        for record in history
        if record["event"] == "eval"
    ]


def held_out_losses(history: list[Record]) -> dict[int, float]:
    """Loss on the held-out rows by step."""
    return {record["step"]: record["loss"] for record in history if record["event"] == "eval"}


def losses(history: list[Record], points: int = 200) -> list[Record]:
    """The training loss by step, thinned to about `points`."""
    train = [{"step": record["step"], "loss": record["loss"]} for record in history if record["event"] == "train"]
    return train[:: max(1, len(train) // points)]


def first_at(points: Sequence[Mapping[str, float]], goal: float) -> int | None:
    """The first step of a verifier's curve whose F1 is at least `goal`."""
    return next((int(p["step"]) for p in points if p["f1"] >= goal), None)


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Accuracy, F1 of the class `correct` and AUC of logits [n] against labels [n] in 0..1.

    The verdict is `correct` when the logit is above 0. AUC is None when only one class occurs, F1 is 0 without hits.
    """
    verdicts, truth = logits > 0, labels > 0.5
    hits = int((verdicts & truth).sum())
    positives = int(verdicts.sum()) + int(truth.sum())
    return {
        "accuracy": float((verdicts == truth).mean()),
        "f1": 2 * hits / positives if positives else 0.0,
        "auc": auc(logits, truth),
    }


def auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney U).

    `scores` and `truth` (bool) are [n]; None unless both classes occur.
    """
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    if not len(positives) or not len(negatives):
        return None
    # Sorted values are also looked up in a fraction of the time.
    below = sum(int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return below / 2 / (len(positives) * len(negatives))


def pair_accuracy(scores: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> float | None:
    """Probability that a right solution scores above a wrong one of its group: the mean over groups that have both.

    `scores`, `truth` (bool) and the numbers `groups` are [n]. Of one pair a group it is the accuracy of reward models.
    """
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    chances = [chance for part in parts if (chance := auc(scores[part], truth[part])) is not None]
    return float(np.mean(chances)) if chances else None


class Platt(NamedTuple):
    """A calibrated logit is `scale * logit + shift`."""

    scale: float
    shift: float

    def before(self, scores: np.ndarray) -> np.ndarray:
        """The scores that a verifier gave without it, from its calibrated ones; both in 0..1, NaN stays."""
        scores = np.clip(scores.astype(np.float64), MARGIN, 1 - MARGIN)
        with np.errstate(invalid="ignore"):
            return sigmoid((np.log(scores) - np.log1p(-scores) - self.shift) / self.scale)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In double precision, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def require_enough(name: str, held_out: Sequence[Row]) -> None:
    """UserError unless `LEAST` solutions are held out, with right and wrong targets among them."""
    targets = {target > 0.5 for row in held_out for target in row["targets"]}
    if len(held_out) < LEAST or len(targets) < 2:
        lack = "all right or all wrong" if len(targets) < 2 else f"fewer than {LEAST}"
        raise UserError(
            f"reward.calibration = platt: the {len(held_out)} held-out solutions of {name} are {lack}: no line is "
            "fitted on; set reward.eval_rows higher, label more candidates, or set it to none"
        )


def natural_weights(correct: np.ndarray, right_share: float | None) -> np.ndarray:
    """[rows]: what a held-out solution counts, so that the share of right ones is what it was before balancing.

    Otherwise a verifier whose rows were balanced by `reward.wrong_share` would be calibrated to that share.
    """
    share = correct.mean()
    if right_share is None or share in (0, 1):
        return np.ones(len(correct))
    return np.where(correct, right_share / share, (1 - right_share) / (1 - share))


def fit_platt(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Platt:
    """The line with the lowest cross-entropy; all arrays are [targets], targets 0 or 1.

    Targets are Platt's (N + 1) / (N + 2) and 1 / (N + 2), which keep it finite where the logits separate the classes.
    """
    from scipy.optimize import minimize

    right = targets > 0.5
    positives, negatives = weights[right].sum(), weights[~right].sum()
    smooth = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        calibrated = line[0] * logits + line[1]
        slope = weights * (sigmoid(calibrated) - smooth)
        entropy = weights @ (np.logaddexp(0.0, calibrated) - smooth * calibrated)
        return entropy / weights.sum(), np.array([slope @ logits, slope.sum()]) / weights.sum()

    scale, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Platt(float(scale), float(shift))


def calibrate(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: int) -> dict[str, Any]:
    """What the manifest and the model's config say of it: the line, and log loss and Brier score [before, after].

    A line that falls would turn the ranking around: such a verifier is worse than chance, and stays as it is.
    """
    facts: dict[str, Any] = {"method": "platt", "rows": rows, "targets": len(targets)}
    facts["right_share"] = float(np.average(targets > 0.5, weights=weights))
    if not np.isfinite(logits).all():
        return facts | {"left_out": "a held-out logit is not finite"}
    platt = fit_platt(logits, targets, weights)
    if not platt.scale > 0:
        return facts | {"left_out": f"the fitted scale {platt.scale:.4g} is not above 0"}
    both = (logits, platt.scale * logits + platt.shift)
    losses = [np.average(np.logaddexp(0.0, x) - targets * x, weights=weights) for x in both]
    squares = [np.average((sigmoid(x) - targets) ** 2, weights=weights) for x in both]
    return facts | {**platt._asdict(), "log_loss": list(map(float, losses)), "brier": list(map(float, squares))}


def platt_of(facts: Mapping[str, Any] | None) -> Platt | None:
    """The line from what `calibrate` said; None for a verifier that has none."""
    return Platt(facts["scale"], facts["shift"]) if facts and "scale" in facts else None


def fold(weights: dict[str, Any], head: str, platt: Platt) -> None:
    """Makes the line a part of the head of that name, in the tensors to be saved."""
    weight, bias = f"{head}.weight", f"{head}.bias"
    weights[weight] = weights[weight] * platt.scale
    weights[bias] = weights[bias] * platt.scale + platt.shift


def card(job: Job, details: dict[str, Any], own_class: bool = True) -> str:
    """Markdown with the YAML head that model hubs read; numbers as the manifest has them.

    `own_class`: a verifier is saved as the class of its kind, not as the other one (`base.own_class`).
    """
    pipeline = PIPELINES[job.kind if own_class else OTHER[job.kind]]
    head = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["minos_ray", "math-minos"]}
    description, lora = DESCRIPTION[job.kind], job.section.lora
    if isinstance(job.section, Teach):
        description = f"It writes solutions of mathematics problems, taught its own best ones ({job.section.judge})."
    if job.verifier.loss != BINARY and "scale" not in details.get("calibration", {}):
        description = f"{RANKED[job.kind]} The sigmoid is no calibrated chance, for the loss was `{job.verifier.loss}`."
    settings = job.section.model_dump(include=set(Train.model_fields) - {"lora"})
    settings |= {"lm_weight": job.verifier.lm_weight, "dropout": job.dropout}
    settings["weights of step"] = details["weights_of_step"]
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
