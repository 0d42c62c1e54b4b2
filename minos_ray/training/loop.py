"""The one train loop: pre-training, critic, ORM and PRM are the same steps on other rows.

Runs in every Ray Train worker. What a step computes does not depend on the number of workers or on the layout:
its rows are a function of (seed, step) and its loss is divided by the number of targets in the whole step.
"""

import math
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from minos_ray.config.load import resolve
from minos_ray.errors import UserError
from minos_ray.observe.trackers import Tracking
from minos_ray.store import model_files
from minos_ray.store.run import Run
from minos_ray.training import data, engine, models, results
from minos_ray.training.base import head_name, own_class
from minos_ray.training.data import Job, Rows
from minos_ray.training.elastic import NodeLeaves, Spares, hang, watched
from minos_ray.training.engine import Checkpoints, from_rank_0, gathered
from minos_ray.training.objective import Losses, Objective, choose_way, disable_dropout, restore_dropout
from minos_ray.training.packing import longest_together, pack
from minos_ray.training.results import Log, Record, card, classification, curve, held_out_losses, losses, pair_accuracy
from minos_ray.training.verifier_losses import computed

# Pairs' rows whose reference is stored at once: what a kill can cost.
REFERENCE_ROWS = 8192
# A file beside the checkpoints: what ended the last attempt, a hang or a node that is to go, to be told by the next.
END = "end.txt"


class Training:
    """One model in training on this rank."""

    def __init__(self, run: Run, place: str, job: Job, spares: Spares | None = None) -> None:
        """`spares`: those of this attempt, where Ray watches for nodes that are to go."""
        self.run, self.job, self.section, self.spares = run, job, job.section, spares
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        path = model_files.locate(job.start, run)
        options = {"revision": job.start.revision, "trust_remote_code": job.start.trust_remote_code}
        self.tokenizer = model_files.load_tokenizer(path, job.start.trust_remote_code)
        self.model = self.load(path, options)
        self.dropout_rates = disable_dropout(self.model)
        vocabulary = models.vocabulary_head(self.model, path) if job.verifier.lm_weight else None
        self.loss = resolve(job.verifier.loss)
        objective = Objective(self.model, job.kind, vocabulary, job.dropout, self.loss, job.beta)
        self.engine = engine.start(objective, job.section, job.workers)
        self.slower = choose_way(self.forward, objective, job.workers.packing, job.start.model)
        padded, together = not objective.way.packed, longest_together(self.model.config.get_text_config())
        self.room = data.Room(job.workers.micro_tokens, padded, together)
        self.train, self.held_out = (Rows.read(run, f"{job.table.name}-{part}") for part in ("train", "held-out"))
        if self.train.groups is not None and self.train.lengths.max() > together:
            section = "reward" if job.beta is None else "dpo"
            raise UserError(
                f"{section}.max_length: model '{job.start.model}' encodes rows of more than {together} tokens "
                "otherwise than shorter ones beside them, so that they cannot be compared; lower it to that"
            )
        self.steps, self.reference = job.steps, f"train/reference/{job.key}"
        if job.beta is not None:
            for part, rows in (("train", self.train), ("held-out", self.held_out)):
                self.refer(rows, part)
        self.checkpoints = Checkpoints(run, place, job)
        self.first, self.history = self.checkpoints.resume(self.engine)
        self.now, self.longest_s, self.leaving = self.first, 0.0, False
        elastic = job.workers.least < job.workers.most
        size = f"{self.world} of {job.workers.workers} workers, from step {self.first + 1}" if elastic else None
        notes = "; ".join(filter(None, [self.slower, size, self.last_end()])) or None
        self.log = Log(run, job.name, self.history, self.tracking(), notes, self.world) if self.rank == 0 else None
        # transformers loads in the mode for evaluation, in which nothing is checkpointed or dropped.
        self.engine.train()

    def tracking(self) -> Tracking | None:
        """The tracker of the config, told what is trained on what and how."""
        job = self.job
        if job.observe.tracker is None:
            return None
        settings = {"kind": job.kind, "start": job.start.model, "rows": job.table.rows, "steps": self.steps}
        settings |= {"workers": self.world, "zero": job.workers.zero, **job.section.model_dump(mode="json")}
        return Tracking(job.observe, self.run, job.name, job.key, settings)

    def last_end(self) -> str | None:
        """What ended the attempt before this one, if it said so."""
        name = f"{self.checkpoints.place}/{END}"
        if self.rank or not self.run.exists(name):
            return None
        text = f"goes on from step {self.first}: {self.run.read_bytes(name).decode()}"
        self.run.delete(name)
        return text

    def load(self, path: str, options: dict[str, Any]) -> Any:
        """The model to start from; with ZeRO 3 each rank has its shard only."""
        job = self.job
        arguments = (path, job.kind, job.section.precision, job.section.seed, options)
        if job.workers.zero < 3:
            return models.load(*arguments, job.calibrated)
        return models.load_partitioned(*arguments, engine.settings(job.section, job.workers), job.calibrated)

    def fit(self) -> None:
        """Every step that is still to be done, with evaluations and checkpoints on the way, then the model.

        NodeLeaves when it stops before, at a checkpoint, because the node of a worker is to go.
        """
        for step in range(self.first, self.steps):
            self.now, start = step, time.monotonic()
            if step % self.section.eval_every == 0:
                self.evaluate(step)
            noticed, leave = not self.leaving and self.notice(), self.leaving and self.hand_over()
            saving = time.monotonic()
            if step > self.first:
                self.save(step, noticed or leave)
            if noticed:
                leave = self.wait_for_checkpoint(saving)
            if leave:
                self.leave()
            self.step(step)
            self.longest_s = max(self.longest_s, time.monotonic() - start)
        self.evaluate(self.steps)
        self.finish()

    def notice(self) -> bool:
        """Whether the node of a worker is to go: spares then start. Every rank must ask; where Ray does not watch,
        nobody does.
        """
        import ray.train

        if self.spares is None or (info := ray.train.get_preemption_info()) is None:
            return False
        nodes = gathered(ray.get_runtime_context().get_node_id())
        if self.rank == 0:
            self.spares.begin(info, nodes)
        self.leaving = True
        return True

    def hand_over(self) -> bool:
        """Whether this attempt ends here, as rank 0 decides."""
        import ray.train

        info = ray.train.get_preemption_info()
        return from_rank_0(bool(self.rank == 0 and self.spares and self.spares.hand_over(info, self.longest_s)))

    def wait_for_checkpoint(self, since: float) -> bool:
        """Waits until all ranks have stored the checkpoint of the notice; then `hand_over`, for which it is timed.

        From now on the node can take only the steps after it.
        """
        self.checkpoints.wait()
        dist.barrier()
        if self.spares:
            self.spares.saving_s = time.monotonic() - since
        return self.hand_over()

    def leave(self) -> NoReturn:
        """Ends this attempt, whose last step is saved; the next one says why."""
        self.checkpoints.wait()
        reason = "the node of a worker is to go: its last step is saved, others go on"
        if self.rank == 0 and self.spares:
            self.run.write_bytes(f"{self.checkpoints.place}/{END}", reason.encode())
            self.spares.forget()
        dist.barrier()  # the first of these errors ends all workers
        raise NodeLeaves(reason)

    def save(self, step: int, needed: bool) -> None:
        """A checkpoint when it is needed or due, or when the weights are the best so far and these are asked for."""
        losses = self.evaluated()
        loss = losses.get(step)
        is_best = self.section.pick == "best" and loss is not None and loss <= min(losses.values())
        if needed or step % self.job.workers.save_every == 0 or is_best:
            self.checkpoints.save(self.engine, step, self.history, loss)

    def step(self, step: int) -> None:
        """One optimizer step: all micro-batches of this rank, then the update."""
        start = time.monotonic()
        section = self.section
        units = data.step_rows(self.job.units, section.epochs, self.job.batch, section.seed, step)
        chosen = self.train.of_groups(units)
        micros = self.micro_batches(self.train, chosen)
        count = self.count(self.train, micros) or 1
        lm_tokens = max(int(self.train.language_counts[chosen].sum()), 1)
        salt = section.seed * 1_000_003 + step
        torch.manual_seed(salt * self.world + self.rank)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = data.learning_rate(step, self.steps, section.lr, section.warmup_ratio)
        total = torch.zeros(2, device=self.engine.device)
        for micro in micros[self.rank]:
            sums = self.forward(self.train, micro, salt)
            # DeepSpeed averages gradients over ranks; the loss of a step is the mean over all that it counts.
            loss = sums.main / count + sums.language * (self.job.verifier.lm_weight / lm_tokens)
            self.engine.backward(loss * self.world)
            total += torch.stack([sums.main.detach(), sums.language.detach()])
        engine.update(self.engine)
        dist.all_reduce(total)
        main, language = total.tolist()
        numbers = {"loss": main / count} | ({"lm_loss": language / lm_tokens} if self.job.verifier.lm_weight else {})
        tokens = int(self.train.lengths[chosen].sum())
        self.record("train", step + 1, start, **numbers, lr=group["lr"], tokens=tokens)

    def micro_batches(self, rows: Rows, chosen: np.ndarray) -> list[list[np.ndarray]]:
        """The packs of each rank, of the chosen rows."""
        lengths = rows.lengths if self.room.padded else rows.lengths - rows.shared
        return data.layout(chosen, lengths, self.world, self.room, rows.groups)

    @torch.no_grad()
    def refer(self, rows: Rows, part: str) -> None:
        """Gives pairs the start model's log-probabilities as targets, which the first call stores block by block."""
        rows.targets, rows.target_starts = np.zeros(len(rows.positions), np.float32), rows.position_starts
        for first in range(0, len(rows), REFERENCE_ROWS):
            last = min(first + REFERENCE_ROWS, len(rows))
            block, name = slice(*rows.position_starts[[first, last]]), f"{self.reference}/{part}-{first}.float32"
            if not from_rank_0(self.run.exists(name)):
                _, chosen, logs = self.judge(rows, np.arange(first, last))
                of_row = np.split(logs, np.cumsum(rows.position_counts[chosen])[:-1])
                for row, values in zip(chosen, of_row, strict=True):
                    rows.targets[rows.position_starts[row] : rows.position_starts[row + 1]] = values
                if self.rank == 0:
                    self.run.write_bytes(name, rows.targets[block].tobytes())
                dist.barrier()
            rows.targets[block] = np.frombuffer(self.run.read_bytes(name), np.float32)

    def count(self, rows: Rows, micros: list[list[np.ndarray]]) -> float:
        """What the loss of these packs of all ranks is divided by: trained positions, or what a verifier's loss counts.

        It is known before any pass: a loss counts by targets and numbers alone.
        """
        if self.job.beta is not None:
            return sum(len(micro) for rank in micros for micro in rank) // 2
        if self.job.kind == "lm":
            return int(sum(rows.position_counts[micro].sum() for rank in micros for micro in rank))
        total = 0.0
        for micro in (micro for rank in micros for micro in rank):
            batch = pack(rows, micro)
            labels = (torch.from_numpy(array) for array in (batch.targets, batch.rows, batch.problems))
            total += float(computed(self.loss, torch.zeros(len(batch.targets)), *labels)[1])
        return total

    def forward(self, rows: Rows, micro: np.ndarray, salt: int = 0) -> Losses:
        """Summed losses and logits of a micro-batch."""
        return self.engine(*(torch.from_numpy(array).to(self.engine.device) for array in pack(rows, micro, salt)))

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Loss on the held-out rows, and for verifiers accuracy, F1 and AUC."""
        if not len(self.held_out) or step in held_out_losses(self.history):
            return
        start = time.monotonic()
        loss, rows, logits = self.judge(self.held_out, np.arange(len(self.held_out)))
        self.record("eval", step, start, loss=loss, **self.measures(rows, logits))

    @torch.no_grad()
    def judge(self, rows: Rows, chosen: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The mean loss on the chosen rows, these rank by rank, and their logits (of pairs, log-probabilities)."""
        self.engine.eval()
        layout = self.micro_batches(rows, chosen)
        micros, needed = layout[self.rank], self.job.kind != "lm" or self.job.beta is not None
        total, logits = torch.zeros((), device=self.engine.device), []
        for micro in micros:
            sums = self.forward(rows, micro)
            total += sums.main
            logits.append(sums.logits.cpu().numpy() if needed else np.zeros(0))
        self.engine.train()
        dist.all_reduce(total)
        parts = gathered((np.concatenate(micros), np.concatenate(logits)))
        return total.item() / (self.count(rows, layout) or 1), *map(np.concatenate, zip(*parts, strict=True))

    def held_out_targets(self, rows: np.ndarray) -> np.ndarray:
        """The targets of these held-out rows, one row after the other, as their logits are."""
        counts, starts = self.held_out.position_counts[rows], self.held_out.position_starts[rows]
        return np.concatenate([self.held_out.targets[s : s + n] for s, n in zip(starts, counts, strict=True)])

    def measures(self, rows: np.ndarray, logits: np.ndarray) -> dict[str, float | None]:
        """Metrics of a verifier on held-out rows; for a PRM also of its lowest step against the outcome."""
        if self.job.kind == "lm" and self.job.beta is None:
            return {}
        counts = self.held_out.position_counts[rows]
        if self.job.beta is not None:
            sums = np.add.reduceat(logits - self.held_out_targets(rows), np.cumsum(counts) - counts)
            margins = self.job.beta * (sums[::2] - sums[1::2])
            return {"accuracy": float((margins > 0).mean()), "margin": float(margins.mean())}
        measures = classification(logits, self.held_out_targets(rows))
        lowest, correct = np.minimum.reduceat(logits, np.cumsum(counts) - counts), self.held_out.correct[rows]
        if self.job.kind == "prm":
            outcome = classification(lowest, correct.astype(float))
            measures |= {f"solution_{key}": value for key, value in outcome.items()}
        if self.held_out.groups is not None:
            measures["pair_accuracy"] = pair_accuracy(lowest, correct.astype(bool), self.held_out.groups[rows])
        return measures

    def record(self, event: str, step: int, start: float, **numbers: float | int | None) -> None:
        """Adds to the history of every rank, on rank 0 also to the log."""
        entry: Record = {"event": event, "step": step, **numbers, "seconds": round(time.monotonic() - start, 4)}
        if self.log is None:
            self.history.append(entry)
        else:
            self.log.add(entry)

    def finish(self) -> None:
        """Saves the model as its artefact, the manifest last."""
        weights_of = self.pick()
        facts = self.calibrate() if self.job.calibrated else None
        weights = engine.full_weights(self.engine, self.job.workers.zero)
        if self.log is not None:
            details = self.details(weights_of) | ({"calibration": facts} if facts else {})
            if platt := results.platt_of(facts):
                results.fold(weights, head_name(self.model), platt)
                self.model.config.calibration = facts
            artefact = self.run.artefact(self.job.artefact)
            with tempfile.TemporaryDirectory() as folder:
                if self.section.lora is not None:
                    base = (model_files.public_name(self.job.start, self.run), self.job.start.revision)
                    models.save_adapter(self.model, weights, self.section.lora, self.job.kind, base, folder)
                    weights = models.merged(weights, self.section.lora)
                restore_dropout(self.dropout_rates)
                models.save(
                    self.model, weights, self.tokenizer, self.job.kind, folder, self.job.every_token, self.job.encoding
                )
                (Path(folder) / "README.md").write_text(card(self.job, details, own_class(self.model, self.job.kind)))
                self.run.upload(folder, artefact.name)
            tracked = self.log.close()
            table = self.job.table
            counts = {"rows": table.rows, "held_out": table.held_out_rows, **table.sources}
            artefact.complete(counts, table.dropped, details | tracked)
            self.run.delete(self.reference)
        self.checkpoints.close()
        self.engine.destroy()

    def calibrate(self) -> dict[str, Any]:
        """`results.calibrate` of the weights that are saved, on the held-out rows; the same on every rank."""
        _, rows, logits = self.judge(self.held_out, np.arange(len(self.held_out)))
        weights = results.natural_weights(self.held_out.correct[rows].astype(bool), self.job.table.right_share)
        of_target = np.repeat(weights, self.held_out.position_counts[rows])
        return results.calibrate(logits.astype(np.float64), self.held_out_targets(rows), of_target, len(rows))

    def pick(self) -> int:
        """Leaves the weights to be saved in the engine, those of the last step or the best ones; returns their step."""
        losses = self.evaluated()
        if self.section.pick == "last" or min(losses, key=losses.__getitem__, default=self.steps) == self.steps:
            return self.steps
        return self.checkpoints.load_best(self.engine)

    def evaluated(self) -> dict[int, float]:
        """The loss on held-out rows after each evaluated step, where it is a number."""
        losses = held_out_losses(self.history)
        return {step: loss for step, loss in losses.items() if step and math.isfinite(loss)}

    def details(self, weights_of: int) -> dict[str, Any]:
        """The training in the manifest of its model."""
        train = [record for record in self.history if record["event"] == "train"]
        tokens, seconds = sum(r["tokens"] for r in train), sum(r["seconds"] for r in train)
        return {
            "kind": self.job.kind,
            "start": self.job.start.model,
            "data": self.job.table.train,
            "steps": self.steps,
            "weights_of_step": weights_of,
            "workers": self.world,
            "zero": self.job.workers.zero,
            "rows": self.slower or ("padded" if self.room.padded else "packed"),
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "final_loss": train[-1]["loss"] if train else None,
            "curve": curve(self.history),
            "loss": losses(self.history),
        }


def train_all(config: dict[str, Any]) -> None:
    """The function of a Ray Train worker: one model after the other, without those that are complete."""
    run = Run(config["run"])
    place = config["checkpoints"]
    jobs = [Job.model_validate(values) for values in config["jobs"]]
    spares = Spares(jobs[0].workers) if watched() else None
    try:
        for job in jobs:
            engine.prepare(job.workers.gpu)
            if run.artefact(job.artefact).manifest() is None:
                train_one(run, place, job, spares)
    finally:
        if spares:
            spares.forget()


def train_one(run: Run, place: str, job: Job, spares: Spares | None) -> None:
    """As `Training.fit`. WorkStopped, which says who was waited for, when a collective takes longer than its limit."""
    import ray

    training, limit_s = None, job.workers.collective_timeout_s
    # Of groups that are made later (DeepSpeed's); that of all workers has its limit from Ray. DeepSpeed 0.19 gives
    # `new_group` no limit, so that it takes torch's default.
    limit = timedelta(seconds=limit_s)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit
    nodes = gathered(ray.util.get_node_ip_address())
    try:
        training = Training(run, place, job, spares)
        training.fit()
    except Exception as error:
        step = f"of step {training.now + 1}" if training else "before the first step"
        late = hang(error, limit_s, nodes, f"{step} of {job.name}")
        if late is None:
            raise
        run.write_bytes(f"{place}/{job.name}/{END}", str(late).encode())
        raise late from error
