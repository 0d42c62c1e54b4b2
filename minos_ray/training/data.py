"""From artefacts to tokenised rows: what stage 1 and stage 2 are trained on; rows left out are counted by reason."""

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.schema import Config
from minos_ray.config.training import Reward, Sft
from minos_ray.errors import UserError
from minos_ray.problems.split import problems_by_id, rows_of_problems
from minos_ray.steps import encoding
from minos_ray.steps.own_text import without_thinking
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run
from minos_ray.training import base_tokens
from minos_ray.training.consensus import agreed
from minos_ray.training.rows import language_row

CHUNK = 1000
# Stage 1 keeps a fiftieth of its rows (at most this many) to watch the loss on.
HELD_OUT_CRITIQUES = 200


class Data(NamedTuple):
    """Rows to train on, rows of other problems held out, how many rows were left out for each reason; stage 1 also says
    how many came from each source."""

    train: list[Row]
    held_out: list[Row]
    dropped: Counter[str]
    sources: Mapping[str, int] = MappingProxyType({})


def base_tokenizer(config: Config, run: Run, critic: bool = False) -> Any:
    """The tokenizer of the base model, which every model of a run shares; UserError when it does not fit the model."""
    return base_tokens.tokenizer_of(locate(config.base, run), config.base.trust_remote_code, critic)


def read(run: Run, artefact: str, columns: list[str]) -> list[Row]:
    """Rows of an artefact in the order of their ids (the first column), whatever the order of its parts."""
    return run.artefact(artefact).read(columns).sort_by(columns[0]).to_pylist()


def train_questions(run: Run) -> dict[str, str]:
    """Question by problem id, of the train split."""
    return {name: row["question"] for name, row in problems_by_id(run, "train", ["problem_id", "question"]).items()}


def critique_data(
    run: Run,
    tokenizer: Any,
    section: Sft,
    limit: int | None = None,
    inserted: bool = False,
    kept_out: Collection[str] = (),
) -> Data:
    """Stage 1: critiques that are whole and agree with the labels, `inserted` errors with their notes, or both, as
    `section.source` says (where it names a control: the critiques). A smaller `limit`, of rows that are short enough,
    takes a subset of a larger.

    Problems that are `kept_out` give no rows.
    """
    dropped: Counter[str] = Counter()
    asked = train_questions(run)
    rows = bought_rows(run, asked, section.agreeing, dropped) if section.source != "inserted" else []
    if section.source in ("inserted", "both") and inserted:
        rows += noted_rows(run, asked, dropped)
    kept = [row for row in rows if row["problem_id"] not in kept_out]
    if len(kept) < len(rows):
        dropped["held_out_in_stage_2"] = len(rows) - len(kept)
    short = list(language_rows(tokenizer, kept, section.max_length, dropped))
    made = sampled(short, limit, "critiques", "over_limit", dropped)
    parts = split_by_problem(made, min(HELD_OUT_CRITIQUES, len(made) // 50), None, section.seed)
    return Data(*parts, dropped, Counter(row["source"] for row in made))


def bought_rows(run: Run, asked: dict[str, str], agreeing: bool, dropped: Counter[str]) -> list[Row]:
    """Candidates with their critiques, where these can be trained on; with `agreeing` those that agree with labels."""
    critiques = read(run, "critiques", ["candidate_id", "text", "agrees", "status"])
    names = pa.array({critique["candidate_id"] for critique in critiques}, pa.string())
    solutions: dict[str, Row] = {}
    for part in run.artefact("labels").parts(["candidate_id", "problem_id", "steps"]):
        told = part.filter(pc.is_in(part["candidate_id"], value_set=names))
        solutions.update({row["candidate_id"]: row for row in told.to_pylist()})
    rows = []
    for critique in critiques:
        solution = solutions.get(critique["candidate_id"])
        reason = refused_critique(critique, solution, asked, agreeing)
        if reason:
            dropped[reason] += 1
        else:
            told = {"question": asked[solution["problem_id"]], "source": "critiques"}
            rows.append({**solution, **told, "critique": without_thinking(critique["text"])})
    return rows


def noted_rows(run: Run, asked: dict[str, str], dropped: Counter[str]) -> list[Row]:
    """Solutions with inserted errors, and right ones, with their notes; these agree with the labels by their making."""
    found = read(run, "inserted", ["candidate_id", "problem_id", "steps", "text"])
    known = [row for row in found if row["problem_id"] in asked]
    dropped["not_of_train_split"] += len(found) - len(known)
    told = {"source": "inserted"}
    return [{**row, **told, "question": asked[row["problem_id"]], "critique": row["text"]} for row in known]


def refused_critique(critique: Row, solution: Row | None, asked: dict[str, str], agreeing: bool) -> str | None:
    """Why a critique is not trained on."""
    if critique["status"] != "ok":
        return f"critique_{critique['status']}"
    if agreeing and not critique["agrees"]:
        return "critique_disagrees"
    if solution is None:
        return "critique_without_label"
    return None if solution["problem_id"] in asked else "not_of_train_split"


def language_rows(tokenizer: Any, rows: list[Row], max_length: int, dropped: Counter[str]) -> Iterator[Row]:
    """Rows of the critic: the loss is on the critique and EOS."""
    for chunk in chunks(rows):
        encoded = encoding.encode_critiques(tokenizer, [(r["question"], r["steps"], r["critique"]) for r in chunk])
        for row, (ids, first) in zip(chunk, encoded, strict=True):
            if len(ids) > max_length:
                dropped["over_max_length"] += 1
            else:
                yield {**language_row(row["problem_id"], ids, first), "source": row["source"]}


def held_out_problems(run: Run, section: Reward) -> set[str]:
    """Problems that stage 2 holds out, for whichever verifier. Stage 1 must not see them either, or Minos would be
    watched on problems whose critiques it has read, while the base knows nothing of them. None where stage 2 would have
    nothing left."""
    parts = [reward_rows(run, section, kind) for kind in ("orm", "prm")]
    return {row["problem_id"] for train, held_out, _ in parts if train for row in held_out}


def reward_rows(run: Run, section: Reward, kind: str) -> tuple[list[Row], list[Row], Counter[str]]:
    """(train, held out, dropped) before balancing: of rows that have the labels that the kind reads."""
    rows, dropped = labelled(run)
    if section.consensus and kind == "prm":
        rows = agreed(run, rows, dropped)
    if kind == "prm":
        rows = with_step_labels(rows, dropped)
    return *split_by_problem(rows, section.eval_rows, section.wrong_share, section.seed), dropped


def reward_data(run: Run, tokenizer: Any, section: Reward, kind: str) -> Data:
    """Stage 2 (`kind` orm or prm): labelled train candidates; held-out rows are of problems never trained on."""
    *parts, dropped = reward_rows(run, section, kind)
    train, held_out = (
        balanced(fitting(tokenizer, part, limit, section, dropped), section.wrong_share, limit, section.seed, dropped)
        for part, limit in zip(parts, (section.rows, section.eval_rows), strict=True)
    )
    # Held-out rows are judged by hard labels at the places that are scored, whatever is trained on.
    plain = section.model_copy(update={"soft_labels": False, "orm_positions": "last"})
    sections = ((train, section), (held_out, plain))
    made = [list(verifier_rows(tokenizer, part, kind, its, dropped)) for part, its in sections]
    return Data(made[0], made[1], dropped)


def with_step_labels(rows: list[Row], dropped: Counter[str]) -> list[Row]:
    """The rows whose step labels a PRM can be trained on."""
    reasons = [refused_labels(row) for row in rows]
    dropped.update(filter(None, reasons))
    return [row for row, reason in zip(rows, reasons, strict=True) if reason is None]


def fitting(tokenizer: Any, rows: list[Row], limit: int | None, section: Reward, dropped: Counter[str]) -> list[Row]:
    """The rows that are short enough, where some are chosen from them: the choice counts rows that can be used.

    Where all are taken nothing is tokenised twice; `verifier_rows` leaves out what is too long.
    """
    if section.wrong_share is None and (limit is None or limit >= len(rows)):
        return rows
    kept = []
    for chunk in chunks(rows):
        encoded = encoding.encode_solutions(tokenizer, [(row["question"], row["steps"]) for row in chunk])
        for row, solution in zip(chunk, encoded, strict=True):
            if reason := encoding.refusal(solution, section.max_length):
                dropped[reason] += 1
            else:
                kept.append(row)
    return kept


def labelled(run: Run) -> tuple[list[Row], Counter[str]]:
    """Train-split candidates with a sure outcome, each distinct solution of a problem once, with their questions."""
    dropped: Counter[str] = Counter()
    asked = train_questions(run)
    seen: set[tuple[str, ...]] = set()
    rows = []
    columns = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels", "step_scores"]
    labels = rows_of_problems(run.artefact("labels"), columns, asked.keys()).sort_by("candidate_id")
    for row in labels.to_pylist():
        text = (row["problem_id"], *row["steps"])
        if row["status"] not in GRADED:
            dropped[f"label_{row['status']}"] += 1
        elif text in seen:
            dropped["same_text"] += 1
        else:
            seen.add(text)
            rows.append({**row, "question": asked[row["problem_id"]]})
    return rows, dropped


def split_by_problem(
    rows: list[Row], held_out: int, wrong_share: float | None, seed: int
) -> tuple[list[Row], list[Row]]:
    """(train, held out): whole problems are held out, in a seeded order, until they have rows enough."""
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
    problems = sorted(by_problem)
    random.Random(f"held out {seed}").shuffle(problems)
    chosen: list[Row] = []
    while problems and room(chosen, wrong_share) < held_out:
        chosen += by_problem.pop(problems.pop())
    return [row for problem in sorted(by_problem) for row in by_problem[problem]], chosen


def room(rows: list[Row], wrong_share: float | None) -> int:
    """How many of these rows can be used at that share of wrong ones."""
    if wrong_share is None:
        return len(rows)
    wrong = sum(not row["correct"] for row in rows)
    share = Fraction(str(wrong_share))  # as it is written: 7 / 0.07 is 100, not 99.99
    return math.floor(min(wrong / share, (len(rows) - wrong) / (1 - share)))


def balanced(
    rows: list[Row], wrong_share: float | None, limit: int | None, seed: int, dropped: Counter[str]
) -> list[Row]:
    """A seeded sample of at most `limit` rows with that share of wrong ones (as they come when it is None)."""
    if wrong_share is None:
        return sampled(rows, limit, seed, "over_limit", dropped)
    size = min(room(rows, wrong_share), len(rows) if limit is None else limit)
    wrong = round(size * wrong_share)
    parts = [[row for row in rows if bool(row["correct"]) is correct] for correct in (False, True)]
    sizes = (wrong, size - wrong)
    kept = [sampled(part, n, seed, "balance", dropped) for part, n in zip(parts, sizes, strict=True)]
    return sorted(kept[0] + kept[1], key=lambda row: row["candidate_id"])


def sampled(rows: list[Row], limit: int | None, seed: object, reason: str, dropped: Counter[str]) -> list[Row]:
    """The first `limit` rows in a seeded order, so that a smaller limit gives a subset."""
    if limit is None or limit >= len(rows):
        return rows
    dropped[reason] += len(rows) - limit
    return random.Random(f"sample {seed}").sample(rows, len(rows))[:limit]


def verifier_rows(tokenizer: Any, rows: list[Row], kind: str, section: Reward, dropped: Counter[str]) -> Iterator[Row]:
    """An ORM has the outcome at the last step's end (or every token), a PRM each labelled step's label at its end."""
    for chunk in chunks(rows):
        encoded = encoding.encode_solutions(tokenizer, [(row["question"], row["steps"]) for row in chunk])
        for row, solution in zip(chunk, encoded, strict=True):
            labels = row["step_labels"] if kind == "prm" else outcome_labels(row, solution)
            if reason := encoding.refusal(solution, section.max_length):
                dropped[reason] += 1
            elif kind == "orm" and section.orm_positions == "every_token":
                yield every_token_row(row, solution)
            else:
                yield verifier_row(
                    row, solution, soft(row, labels) if kind == "prm" and section.soft_labels else labels
                )


def outcome_labels(row: Row, solution: encoding.Encoded) -> list[int]:
    """The outcome at the last step, nothing before."""
    return [-1] * (len(solution.positions) - 1) + [int(row["correct"])]


def refused_labels(row: Row) -> str | None:
    """Why a row's step labels cannot be trained on; one without steps is refused for that."""
    if len(row["step_labels"]) != len(row["steps"]):
        return "labels_unlike_steps"
    return "no_step_labels" if row["steps"] and all(label < 0 for label in row["step_labels"]) else None


def soft(row: Row, labels: Sequence[float]) -> Sequence[float]:
    """The share of rollouts that succeed in place of each label that there is, where the shares are known."""
    shares = row["step_scores"] or [None] * len(labels)
    return [label if label < 0 or share is None else share for share, label in zip(shares, labels, strict=True)]


def verifier_row(row: Row, solution: encoding.Encoded, labels: Sequence[float]) -> Row:
    """The labelled positions of a solution; -1 is unlabelled."""
    known = [(position, label) for position, label in zip(solution.positions, labels, strict=True) if label >= 0]
    return target_row(row, solution, [position for position, _ in known], [float(label) for _, label in known])


def every_token_row(row: Row, solution: encoding.Encoded) -> Row:
    """The outcome at every token of the solution (Cobbe et al. 2021, section 4.2); the score is still the last one."""
    positions = list(range(solution.first, len(solution.ids)))
    return target_row(row, solution, positions, [float(row["correct"])] * len(positions))


def target_row(row: Row, solution: encoding.Encoded, positions: list[int], targets: list[float]) -> Row:
    """A row of `minos_ray.training.rows`."""
    return {
        "problem_id": row["problem_id"],
        "ids": solution.ids,
        "positions": positions,
        "targets": targets,
        "first": solution.first,
        "correct": row["correct"],
    }


def chunks(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows in lists of a bounded length."""
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK]


def require_rows(section: str, data: Data) -> None:
    """UserError when nothing is left to train on, with the reasons."""
    if not data.train:
        reasons = ", ".join(f"{rows} {reason}" for reason, rows in data.dropped.items()) or "no rows at all"
        raise UserError(
            f"{section}: no rows to train on ({reasons}; {len(data.held_out)} held out); "
            "more candidates, labels of steps (for PRMs) or critiques, or a lower reward.eval_rows would do"
        )
