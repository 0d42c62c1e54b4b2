"""The history of a training and its measures: JSONL in `logs/`, TensorBoard in `logs/tb/`, a tracker on request."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minos_ray.observe.trackers import Tracking
from minos_ray.store.run import Run

Record = dict[str, Any]
REMOTE_S = 15.0  # an object store cannot append: there the file is written anew, at most this often


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
                file.write(line(record))
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
        self.run.write_bytes(log_name(self.name), "".join(map(line, self.history)).encode())
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


def line(record: Record) -> str:
    """One line of JSON."""
    return json.dumps(record) + "\n"


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
