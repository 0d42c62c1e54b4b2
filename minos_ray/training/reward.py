"""Stage 2: verifiers, from the base model or from the critic; nothing else differs between the two."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import accumulate
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Model
from minos_ray.config.training import Kind, Reward, StepEncoding, Verifier
from minos_ray.critiques.prompts import EXAMPLE
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, critic_chosen, fresh
from minos_ray.labels.stage import require_for_prms
from minos_ray.problems.split import NOT_DRAWN, count_rows, drawn, parts_of_problems, rows_of_problems
from minos_ray.steps import encoding
from minos_ray.steps.split import first_error
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import (
    Data,
    Job,
    Table,
    encoded,
    held_out_order,
    make_job,
    require_rows,
    sampled,
    split_by_problem,
    train_questions,
    usable_rows,
    write_table,
)
from minos_ray.training.results import require_enough
from minos_ray.training.trainer import finished, fit
from minos_ray.training.verifier_losses import check_loss, compares_solutions, in_groups, require_groups, resolve_loss

# Candidates among which rows are chosen: they are Python objects, of 2 kB each.
MOST = 1 << 21
COLUMNS = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels", "step_scores"]


def reward(config: Config, run: Run) -> Manifest:
    """Trains every verifier of the config that is missing, in one worker group; returns the last one's manifest."""
    names = config.reward.verifiers
    require_for_prms(config, run, "reward.verifiers", names)
    missing = [name for name in names if not fresh(config, run, f"models/{name}")]
    for name in missing:
        begin(config, run, f"models/{name}")
    fit(config, run, "reward", verifier_jobs(config, run, missing))
    return finished(run, f"models/{names[-1]}")


def verifier_jobs(config: Config, run: Run, names: list[Verifier]) -> list[Job]:
    """The trainings of these verifiers; those of one kind read the same table of rows."""
    tokenizer, layout = base_tokenizer(config, run) if names else None, config.base.encoding
    critic = critic_chosen(config, run) if any(name.endswith("minos") for name in names) else ""
    if critic and run.artefact(critic).manifest():
        saved = json.loads(run.read_bytes(f"{critic}/config.json"))
        encoding.require_same(saved.get("step_encoding"), tokenizer, layout, critic, critic=True)
    tables: dict[str, Table] = {}
    for kind in sorted({name.partition("-")[0] for name in names}):
        check_loss(config.reward, [cast(Kind, kind)])
        data = reward_data(run, tokenizer, config.reward, kind, layout)
        require_rows("reward", data)
        require_groups(config, data)
        if config.reward.calibration != "none":
            require_enough(kind.upper(), data.held_out)
        tables[kind] = write_table(run, kind, data)
    jobs = []
    for name in names:
        kind, _, start = name.partition("-")
        model = Model(model=f"run:{critic}") if start == "minos" else config.base
        jobs.append(make_job(run, f"models/{name}", cast(Kind, kind), model, tables[kind], config.reward, config))
    return jobs


def reward_data(run: Run, tokenizer: Any, section: Reward, kind: str, layout: StepEncoding = encoding.LINES) -> Data:
    """Labelled train candidates for an `orm` or a `prm`; held-out rows are of problems never trained on."""
    *parts, dropped = reward_rows(run, section, kind)
    right_share = float(np.mean([bool(row["correct"]) for row in parts[1]])) if parts[1] else None
    compares, limits = compares_solutions(resolve_loss(section)), (section.rows, section.eval_rows)
    # Limits and groups are of rows that can be used; where all are taken `verifier_rows` drops what is too long, and
    # nothing is tokenised twice.
    short = [
        [row for row, _ in within_length(tokenizer, part, section, dropped, layout)]
        if compares or section.wrong_share is not None or (limit is not None and limit < len(part))
        else part
        for part, limit in zip(parts, limits, strict=True)
    ]
    if compares:
        train, held_out = in_groups(short, section, dropped)
    else:
        train, held_out = (
            balanced(part, section.wrong_share, limit, section.seed, dropped)
            for part, limit in zip(short, limits, strict=True)
        )
    # Held-out rows are judged by hard labels at the positions that are scored, whatever is trained on.
    plain = section.model_copy(update={"soft_labels": False, "orm_positions": "last"})
    return Data(
        list(verifier_rows(tokenizer, train, kind, section, dropped, layout)),
        list(verifier_rows(tokenizer, held_out, kind, plain, dropped, layout)),
        dropped,
        right_share=right_share,
    )


def reward_rows(run: Run, section: Reward, kind: str) -> tuple[list[Row], list[Row], Counter[str]]:
    """(train, held out, dropped) before balancing, of rows that have the labels that the kind reads."""
    questions = train_questions(run)
    candidates = count_rows(run.artefact("labels"), questions.keys())
    if sum(candidates.values()) > MOST:
        return rows_of_many(run, section, kind, questions, candidates)
    rows, dropped = labelled(run)
    if section.consensus and kind == "prm":
        rows = in_consensus(run, rows, dropped)
    if kind == "prm":
        usable = []
        for row in rows:
            steps, labels = row["steps"], row["step_labels"]
            if len(labels) != len(steps):
                dropped["labels_unlike_steps"] += 1
            elif steps and all(label < 0 for label in labels):  # one without steps is dropped later, for that reason
                dropped["no_step_labels"] += 1
            else:
                usable.append(row)
        rows = usable
    return *split_by_problem(rows, section.eval_rows, section.wrong_share, section.seed), dropped


def rows_of_many(
    run: Run, section: Reward, kind: str, questions: Mapping[str, str], candidates: Mapping[str, int]
) -> tuple[list[Row], list[Row], Counter[str]]:
    """`reward_rows` of a run with more than `MOST` train `candidates`, without the rows of all problems in memory.

    Problems are held out of all that have rows with labels: stage 1 and each verifier leave out the same ones, whatever
    is trained on. Of the others some are trained on, each of whose rows has the problem's `layer`. Of equal solutions
    the first with labels is taken.
    """
    labels, critiqued, agreeing = run.artefact("labels"), None, None
    if section.consensus and kind == "prm":
        critiqued = run.artefact("critiques").read(["candidate_id"])["candidate_id"].combine_chunks()
        rows = labels.read_where("candidate_id", critiqued.to_pylist(), COLUMNS).to_pylist()
        agreeing = pa.array([row["candidate_id"] for row in in_consensus(run, rows, Counter())], pa.string())

    def read(names: Set[str], dropped: Counter[str]) -> dict[str, list[Row]]:
        parts = usable_parts(labels, names, kind, critiqued, dropped)
        rows = distinct(pa.concat_tables([labels.empty_table(COLUMNS), *parts]), questions, dropped)
        by_problem: dict[str, list[Row]] = {}
        for row in rows if critiqued is None else in_consensus(run, rows, dropped):
            by_problem.setdefault(row["problem_id"], []).append(row)
        return by_problem

    usable: Counter[str] = Counter()
    for part in usable_parts(labels, questions.keys(), kind, agreeing, Counter()):
        usable.update({row["values"]: row["counts"] for row in pc.value_counts(part["problem_id"]).to_pylist()})
    held_out = held_out_of_many(usable, lambda names: read(names, Counter()), section)
    others = {name: usable[name] for name in usable.keys() - set(held_out)}
    layers = layers_of(others, section.rows)
    not_drawn = others.keys() - layers.keys()
    dropped = Counter({NOT_DRAWN: sum(candidates[name] for name in not_drawn)})
    by_problem = read(questions.keys() - not_drawn, dropped)
    chosen = [row for name in held_out for row in by_problem.pop(name, [])]
    train = [{**row, "layer": layers[name]} for name in sorted(by_problem) for row in by_problem[name]]
    return train, chosen, +dropped


def held_out_of_many(
    usable: Mapping[str, int], read: Callable[[Set[str]], Mapping[str, list[Row]]], section: Reward
) -> list[str]:
    """The first problems, in the order of smaller runs, whose rows suffice; `usable` counts those of each with labels.

    How many rows are of use is known when they are `read`: of as many problems as could do, then of twice as many.
    """
    order, size = held_out_order(usable, section.seed), 0
    could_do = 1 + sum(total < section.eval_rows for total in accumulate(usable[name] for name in order))
    held_out: list[str] = []
    rows: list[Row] = []
    while usable_rows(rows, section.wrong_share) < section.eval_rows and size < len(order):
        size = max(2 * size, could_do)
        by_problem, held_out, rows = read(set(order[:size])), [], []
        for name in order[:size]:
            if usable_rows(rows, section.wrong_share) >= section.eval_rows:
                break
            held_out.append(name)
            rows += by_problem.get(name, [])
    return held_out


def layers_of(rows: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """The problems to train on, all or those that are `drawn`, each with the draw that has it first.

    1 is the draw of `MOST` rows. A `limit` (`reward.rows`) above a quarter of that doubles it: 2, 4, ...
    """
    layers: dict[str, int] = {}
    most = MOST
    while len(layers) < len(rows):
        for name in drawn(rows, most)[0]:
            layers.setdefault(name, most // MOST)
        if most >= 4 * (limit or 0):
            break
        most *= 2
    return layers


def usable_parts(
    labels: Artefact, problem_ids: Set[str], kind: str, among: pa.Array | None, dropped: Counter[str]
) -> Iterator[pa.Table]:
    """The rows of these problems that have the labels that the kind reads, part by part; others are counted by reason.

    For a consensus rows with steps are those of candidates `among` these: the ones with a critique.
    """
    for part in parts_of_problems(labels, COLUMNS, problem_ids):
        for status in pc.value_counts(part["status"]).to_pylist():
            if status["values"] not in GRADED:
                dropped[f"label_{status['values']}"] += status["counts"]
        part = part.filter(pc.is_in(part["status"], value_set=pa.array(GRADED)))
        if kind == "prm" and part.num_rows:
            steps, marks = part["steps"].combine_chunks(), part["step_labels"].combine_chunks()
            lengths = pc.list_value_length(marks).to_numpy()
            unlike = lengths != pc.list_value_length(steps).to_numpy()
            owners = pc.list_parent_indices(marks).to_numpy()[marks.flatten().to_numpy() >= 0]
            unknown = ~unlike & (lengths > 0) & (np.bincount(owners, minlength=part.num_rows) == 0)
            dropped["labels_unlike_steps"] += int(unlike.sum())
            dropped["no_step_labels"] += int(unknown.sum())
            usable = ~unlike & ~unknown
            if among is not None:
                apart = usable & (lengths > 0) & ~pc.is_in(part["candidate_id"], value_set=among).to_numpy()
                dropped["consensus_no_critique"] += int(apart.sum())
                usable &= ~apart
            part = part.filter(pa.array(usable))
        yield part


def labelled(run: Run, problem_ids: Set[str] | None = None) -> tuple[list[Row], Counter[str]]:
    """Train-split candidates with a certain outcome and their questions, each distinct solution of a problem once.

    Of these problems (None: of all); of more than `MOST` candidates those of some of the problems, see `drawn`.
    """
    questions, artefact = train_questions(run), run.artefact("labels")
    names = questions.keys() if problem_ids is None else questions.keys() & problem_ids
    names, not_drawn = drawn(count_rows(artefact, names), MOST)
    dropped = Counter({NOT_DRAWN: not_drawn} if not_drawn else {})
    return distinct(rows_of_problems(artefact, COLUMNS, names), questions, dropped), dropped


def distinct(labels: pa.Table, questions: Mapping[str, str], dropped: Counter[str]) -> list[Row]:
    """Rows with a certain outcome, with their questions, each distinct solution of a problem once, by candidate id."""
    seen: set[tuple[str, ...]] = set()
    rows = []
    for row in labels.sort_by("candidate_id").to_pylist():
        text = (row["problem_id"], *row["steps"])
        if row["status"] not in GRADED:
            dropped[f"label_{row['status']}"] += 1
        elif text in seen:
            dropped["same_text"] += 1
        else:
            seen.add(text)
            rows.append({**row, "question": questions[row["problem_id"]]})
    return rows


def within_length(
    tokenizer: Any, rows: Sequence[Row], section: Reward, dropped: Counter[str], layout: StepEncoding
) -> Iterator[tuple[Row, encoding.Encoded]]:
    """Rows and their tokens; what is too long or has no steps is counted in `dropped`."""
    solutions = encoded(rows, lambda row: (row["question"], row["steps"]), encoding.encode_solutions, tokenizer, layout)
    for row, solution in solutions:
        if reason := encoding.refusal(solution, section.max_length):
            dropped[reason] += 1
        else:
            yield row, solution


def balanced(
    rows: list[Row], wrong_share: float | None, limit: int | None, seed: int, dropped: Counter[str]
) -> list[Row]:
    """A seeded sample of at most `limit` rows, a fraction `wrong_share` of them wrong; as they come when it is None."""
    if wrong_share is None:
        return sampled(rows, limit, seed, "over_limit", dropped)
    size = min(usable_rows(rows, wrong_share), len(rows) if limit is None else limit)
    wrong = round(size * wrong_share)
    chosen: list[Row] = []
    for correct, count in ((False, wrong), (True, size - wrong)):
        side = [row for row in rows if bool(row["correct"]) is correct]
        chosen += sampled(side, count, seed, "balance", dropped)
    return sorted(chosen, key=lambda row: row["candidate_id"])


def verifier_rows(
    tokenizer: Any, rows: list[Row], kind: str, section: Reward, dropped: Counter[str], layout: StepEncoding
) -> Iterator[Row]:
    """Rows of `minos_ray.training.data` with their targets, those `within_length`.

    A PRM has each labelled step's label at the step's end. An ORM has the outcome at the last step's end, or at every
    token of the solution (Cobbe et al. 2021, section 4.2), where its score is still the last one.
    """
    for row, solution in within_length(tokenizer, rows, section, dropped, layout):
        if kind == "prm":
            labels = row["step_labels"]
            if section.soft_labels and row["step_scores"]:  # fractions of rollouts that succeed, where known
                pairs = zip(labels, row["step_scores"], strict=True)
                labels = [label if label < 0 or share is None else share for label, share in pairs]
            targets = [pair for pair in zip(solution.positions, labels, strict=True) if pair[1] >= 0]
        elif section.orm_positions == "every_token":
            targets = [(position, row["correct"]) for position in range(solution.first, len(solution.ids))]
        else:
            targets = [(solution.positions[-1], row["correct"])]
        yield {
            "problem_id": row["problem_id"],
            "ids": solution.ids,
            "positions": [position for position, _ in targets],
            "targets": [float(target) for _, target in targets],
            "first": solution.first,
            "correct": row["correct"],
            **({"group": row["group"]} if "group" in row else {}),
        }


def in_consensus(run: Run, rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """The rows whose critique finds the same first error as their step labels, or none like them (Qwen2.5-Math-PRM).

    Rows without step labels stay: they are dropped later, for that reason.
    """
    columns = ["candidate_id", "prompt_version", "status", "step_verdicts"]
    critiques = run.artefact("critiques").read(columns).to_pylist()
    for prompt in sorted({critique["prompt_version"].partition("@")[0] for critique in critiques}):
        require_blind(prompt)
    by_candidate = {critique["candidate_id"]: critique for critique in critiques}
    agreeing = []
    for row in rows:
        labels, critique = row["step_labels"], by_candidate.get(row["candidate_id"])
        if all(label < 0 for label in labels):
            agreeing.append(row)
        elif critique is None:
            dropped["consensus_no_critique"] += 1
        elif critique["status"] != "ok":
            dropped[f"consensus_critique_{critique['status']}"] += 1
        elif first_error(critique["step_verdicts"]) != first_error(labels):
            dropped["no_consensus"] += 1
        else:
            agreeing.append(row)
    return agreeing


def require_blind(prompt: str) -> None:
    """UserError when a prompt shows the step labels: a critic that was shown them agrees for that reason alone.

    The prompt is called twice, with different labels. Critiques that were imported name no prompt function.
    """
    if ":" not in prompt:
        return
    ask = resolve(prompt)
    if ask(EXAMPLE) != ask(EXAMPLE._replace(step_labels=[0, 0])):
        raise UserError(
            f"reward.consensus: the critiques were made with {prompt}, which shows the critic the step labels; make "
            "them with critique.prompt = minos_ray.critiques.prompts:blind, or set reward.consensus to false"
        )
