"""Stage 1: the base model learns to write critiques, or, as a control, reads plain text of as many tokens; and direct
preference optimisation of a critic.

The paper has no such control: its baseline skips stage 1, and so also sees less text.

With preferences, of two texts after one prompt the chosen one becomes likelier than the rejected one (Rafailov et al.
2023, equation 7). The reference is the model that the training starts from; the workers compute its log-probabilities
once, before the first step. Tokens that both texts begin with are computed once and have no loss: they cancel in the
margin.
"""

import random
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from itertools import cycle
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.config.training import Dpo, Reward, Sft, StepEncoding
from minos_ray.labels.calculations import without_annotations
from minos_ray.problems.split import read_problems
from minos_ray.steps import encoding
from minos_ray.steps.split import without_thinking
from minos_ray.store.columns import Row
from minos_ray.store.run import Manifest, Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import (
    Data,
    Job,
    encoded,
    language_row,
    make_job,
    read,
    require_rows,
    sampled,
    split_by_problem,
    train_questions,
    write_table,
)
from minos_ray.training.pretrain import Document, document_rows
from minos_ray.training.reward import reward_rows
from minos_ray.training.trainer import fit_one

CRITIC = "models/critic"
CONTROLS = ("candidates", "solutions")
# A fiftieth of the rows is held out to watch the loss on, at most this many.
HELD_OUT_CRITIQUES = 200
HELD_OUT_ROWS = 400  # a fiftieth of the rows, at most so many


def sft(config: Config, run: Run) -> Manifest:
    """Trains `models/critic` on critiques that agree with the labels and on inserted errors; the prompt has no loss.

    As a control it is trained on plain text instead (`plain_text`).
    """
    return fit_one(config, run, "sft", CRITIC, lambda: critic_job(config, run))


def critic_job(config: Config, run: Run) -> Job:
    """The training of a critic on at most `sft.rows` critiques; fewer rows are a subset of more."""
    inserted = config.inserted.count > 0
    tokenizer = base_tokenizer(config, run, critic=True)
    excluded = held_out_problems(run, config.reward)
    layout = config.base.encoding
    data = critique_data(run, tokenizer, config.sft, config.sft.rows, inserted, excluded, layout)
    if config.sft.source in CONTROLS:
        data = plain_text(run, tokenizer, config.sft, data, excluded, layout)
    require_rows("sft", data)
    return make_job(run, CRITIC, "lm", config.base, write_table(run, "critiques", data), config.sft, config)


def held_out_problems(run: Run, section: Reward) -> set[str]:
    """Problems that stage 2 holds out for whichever verifier; none where stage 2 would have nothing to train on.

    Stage 1 must not see them either: Minos would be watched on problems whose critiques it has read, the base not.
    """
    splits = [reward_rows(run, section, kind) for kind in ("orm", "prm")]
    return {row["problem_id"] for train, held_out, _ in splits if train for row in held_out}


def critique_data(
    run: Run,
    tokenizer: Any,
    section: Sft,
    limit: int | None = None,
    inserted: bool = False,
    excluded: Collection[str] = (),
    layout: StepEncoding = encoding.LINES,
    own: Sequence[Row] = (),
) -> Data:
    """Rows of critiques, of `inserted` errors with their notes, or of both, as `section.source` says.

    Where it names a control, rows of critiques. A smaller `limit` takes a subset of a larger one; it counts rows that
    are short enough. The problems `excluded` give no rows. `own` rows, with a critique and its source, come on top.
    """
    dropped: Counter[str] = Counter()
    questions = train_questions(run)
    rows = bought_rows(run, questions, section.agreeing, dropped) if section.source != "inserted" else []
    if section.source in ("inserted", "both") and inserted:
        # Their notes agree with the labels by construction.
        solutions = read(run, "inserted", ["candidate_id", "problem_id", "steps", "text"])
        of_train = [
            {**row, "question": questions[row["problem_id"]]} for row in solutions if row["problem_id"] in questions
        ]
        dropped["not_of_train_split"] += len(solutions) - len(of_train)
        rows += [{**row, "source": "inserted", "critique": row["text"]} for row in of_train]
    allowed = [row for row in rows if row["problem_id"] not in excluded]
    if len(allowed) < len(rows):
        dropped["held_out_in_stage_2"] = len(rows) - len(allowed)
    short = list(language_rows(tokenizer, allowed, section.max_length, dropped, layout))
    chosen = sampled(short, limit, "critiques", "over_limit", dropped)
    chosen += language_rows(tokenizer, list(own), section.max_length, dropped, layout)
    parts = split_by_problem(chosen, min(HELD_OUT_CRITIQUES, len(chosen) // 50), None, section.seed)
    return Data(*parts, dropped, Counter(row["source"] for row in chosen))


def bought_rows(run: Run, questions: dict[str, str], agreeing: bool, dropped: Counter[str]) -> list[Row]:
    """Candidates with their critiques, where these can be trained on; if `agreeing`, those that agree with labels."""
    critiques = read(run, "critiques", ["candidate_id", "text", "agrees", "status"])
    names = pa.array({critique["candidate_id"] for critique in critiques}, pa.string())
    solutions: dict[str, Row] = {}
    # There are up to 256 candidates a problem, few of them with a critique: a part of the labels at a time.
    for part in run.artefact("labels").parts(["candidate_id", "problem_id", "steps"]):
        critiqued = part.filter(pc.is_in(part["candidate_id"], value_set=names))
        solutions.update({row["candidate_id"]: row for row in critiqued.to_pylist()})
    rows = []
    for critique in critiques:
        solution = solutions.get(critique["candidate_id"])
        if reason := critique_unusable(critique, solution, questions, agreeing):
            dropped[reason] += 1
        else:
            assert solution is not None  # that would be a reason
            text = {"question": questions[solution["problem_id"]], "critique": without_thinking(critique["text"])}
            rows.append({**solution, **text, "source": "critiques"})
    return rows


def critique_unusable(critique: Row, solution: Row | None, questions: Container[str], agreeing: bool) -> str | None:
    """Why a critique is not trained on, None when it is."""
    if critique["status"] != "ok":
        return f"critique_{critique['status']}"
    if agreeing and not critique["agrees"]:
        return "critique_disagrees"
    if solution is None:
        return "critique_without_label"
    return None if solution["problem_id"] in questions else "not_of_train_split"


def language_rows(
    tokenizer: Any, rows: list[Row], max_length: int, dropped: Counter[str], layout: StepEncoding
) -> Iterator[Row]:
    """Rows of the critic: the loss is on the critique and EOS."""
    texts = encoded(
        rows,
        lambda row: (row["question"], row["steps"], row["critique"]),
        encoding.encode_critiques,
        tokenizer,
        layout,
    )
    for row, (ids, first) in texts:
        if len(ids) > max_length:
            dropped["over_max_length"] += 1
        else:
            yield {**language_row(row["problem_id"], ids, first), "source": row["source"]}


def plain_text(
    run: Run,
    tokenizer: Any,
    section: Sft,
    critiques: Data,
    excluded: Collection[str] = (),
    layout: StepEncoding = encoding.LINES,
) -> Data:
    """Documents in place of the rows of critiques, repeated in a seeded order up to as many tokens.

    The held-out rows are the same critiques, so that both trainings are watched on the same text. Documents are shorter
    than critiques: with as many rows a step, plain text takes more steps.
    """
    documents = critiqued_candidates(run) if section.source == "candidates" else own_solutions(run)
    dropped: Counter[str] = Counter()
    held_out = {row["problem_id"] for row in critiques.held_out}.union(excluded)
    train = [document for document in documents if document[0] not in held_out]
    if len(train) < len(documents):
        dropped["held_out"] = len(documents) - len(train)
    rows = list(document_rows(tokenizer, train, section.max_length, dropped, layout))
    random.Random(f"plain text {section.seed}").shuffle(rows)
    tokens = sum(len(row["ids"]) for row in critiques.train)
    chosen: list[Row] = []
    for row in cycle(rows):
        if tokens <= 0:
            break
        chosen.append(row)
        tokens -= len(row["ids"])
    return Data(chosen, critiques.held_out, dropped, {section.source: len(chosen)})


def critiqued_candidates(run: Run) -> list[Document]:
    """Each candidate of the train split that has a critique."""
    questions = train_questions(run)
    names = run.artefact("critiques").read(["candidate_id"])["candidate_id"].to_pylist()
    columns = ["candidate_id", "problem_id", "steps"]
    critiqued = run.artefact("labels").read_where("candidate_id", names, columns).sort_by("candidate_id").to_pylist()
    of_train = [row for row in critiqued if row["problem_id"] in questions]
    return [(row["problem_id"], questions[row["problem_id"]], row["steps"]) for row in of_train]


def own_solutions(run: Run) -> list[Document]:
    """The solutions of the data set, of the train problems that have one."""
    documents = []
    problems = read_problems(run, "train", ["problem_id", "question", "solution"]).sort_by("problem_id")
    for row in problems.to_pylist():
        if row["solution"]:
            text, _ = without_annotations(without_thinking(row["solution"]))
            steps = [line for line in text.splitlines() if line.strip()]
            documents.append((row["problem_id"], row["question"], steps))
    return documents


def preference_data(tokenizer: Any, pairs: Sequence[Row], section: Dpo, layout: StepEncoding = encoding.LINES) -> Data:
    """Rows of pairs of critiques: `problem_id`, `question`, `steps`, and the texts `chosen` and `rejected`."""
    dropped: Counter[str] = Counter()
    rows = list(pair_rows(encoded_pairs(tokenizer, pairs, layout), section.max_length, dropped))
    parts = split_by_problem(rows, min(HELD_OUT_ROWS, len(rows) // 50), None, section.seed)
    train, held_out = ([{**row, "group": place // 2} for place, row in enumerate(part)] for part in parts)
    return Data(train, held_out, dropped)


def encoded_pairs(
    tokenizer: Any, pairs: Sequence[Row], layout: StepEncoding
) -> Iterator[tuple[str, list[int], list[int]]]:
    """The problem of each pair, and the tokens of prompt and text, chosen and rejected."""
    sides = [
        encoded(
            pairs,
            lambda pair, side=side: (pair["question"], pair["steps"], pair[side]),
            encoding.encode_critiques,
            tokenizer,
            layout,
        )
        for side in ("chosen", "rejected")
    ]
    for (pair, (chosen, _)), (_, (rejected, _)) in zip(*sides, strict=True):
        yield pair["problem_id"], chosen, rejected


def pair_rows(
    pairs: Iterator[tuple[str, list[int], list[int]]], max_length: int, dropped: Counter[str]
) -> Iterator[Row]:
    """Two rows a pair, the chosen one first; the loss is on what follows the tokens that both begin with."""
    for problem_id, chosen, rejected in pairs:
        if max(len(chosen), len(rejected)) > max_length:
            dropped["over_max_length"] += 1
            continue
        both = zip(chosen, rejected, strict=False)
        shared = next((place for place, (one, other) in enumerate(both) if one != other), 0)
        if not shared:
            dropped["same_text"] += 1
            continue
        for ids, of_the_row_before in ((chosen, 0), (rejected, shared)):
            row = language_row(problem_id, ids, shared)
            yield {**row, "targets": [0.0] * len(row["positions"]), "shared": of_the_row_before}


def preference_job(run: Run, artefact: str, start: Model, data: Data, config: Config) -> Job:
    """The training of `artefact`, which has been begun, from `start`, which is its reference too."""
    require_rows("dpo", data)
    name = f"preferences-{artefact.rpartition('/')[2]}"
    return make_job(run, artefact, "lm", start, write_table(run, name, data), config.dpo, config)
