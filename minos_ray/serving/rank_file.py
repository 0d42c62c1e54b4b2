"""`minos rank`: scores the solutions in any file; ranks those that belong together, and votes weighted by score.

A critic's endpoint is a verifier, too: a solution's score is the share of its critiques that accept it. Critiques are
requested, rate-limited, paid for and cached as those of `minos meta` are. What was bought is kept in `OUT.critiques`,
so the same command buys nothing twice.
"""

import itertools
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray import __version__
from minos_ray.config.load import Config, build, parse_override, resolve
from minos_ray.config.schema import MetaCritic
from minos_ray.critiques.reply import BOUGHT, Cache, Outcome
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation.candidates import Keys
from minos_ray.grading.graders import require_writable
from minos_ray.observe.progress import Progress
from minos_ray.serving.scorer import CRITIC_OPTIONS, RESULT, SPLITTER, SliceScorer, Task, answer_of, as_text, steps_of
from minos_ray.store.model_files import WEIGHTS, locate
from minos_ray.store.run import Run, fingerprint
from minos_ray.units.file_slices import SLICE_ROWS, Rows, Slice, beside, on_actors, require_texts
from minos_ray.units.lock import locked

GROUP = pa.schema([("rank", pa.int64()), ("answer", pa.string()), ("vote", pa.string()), ("vote_margin", pa.float64())])
SCORES = pa.schema([field for field in RESULT if field.name != "answer"])
WAIT_S = 600.0  # for the first actor, as `resources.wait_s` of a config
NAME = "critic"  # under which the config has it
KEYS = re.compile(rf"(?:config key ')?\b(?:meta\.critics\.{NAME}(?:\.(\w+))?|(?:critique|resources\.client)\.(\w+))'?")
SPREAD = 0.7  # the temperature of several critiques of one solution, which must be able to differ


@dataclass(frozen=True)
class CriticTask:
    """What is scored, as in `scorer.Task`, by the critic of `config.meta.critics`; its run keeps what was bought."""

    config: Config
    question: str
    text: str
    style: str
    splitter: str = SPLITTER

    @property
    def critic(self) -> MetaCritic:
        """The critic, with the name of the model that answers."""
        from minos_ray.critiques.limits import with_model

        return with_model(self.config.meta.critics[NAME])


def rank_file(file: str, out: str, task: Task | CriticTask, group: str | None = None) -> dict[str, int]:
    """Scores column `task.text` of any file or folder of rows and writes all rows, in order, with `score` and
    `step_scores` added, to the Parquet file `out`; with `group` also `rank`, `answer`, `vote` and `vote_margin`.

    Slices of the file are stored in `OUT.parts` as they are scored: an interrupted command goes on from there. On a
    cluster that is joined (RAY_ADDRESS), or with several actors, Ray Data actors score. A critic is asked by this
    process. Returns the rows that were scored, those that were not, and the groups.
    """
    start, aside = time.monotonic(), f"{out}.{os.getpid()}.tmp"
    staged, parts = f"{out}.{os.getpid()}.rows.tmp", Path(f"{out}.parts")
    columns = [group] if group else []
    resolve(task.splitter)
    try:
        require_writable(file, out, aside)
        rows = Rows(file, staged, columns, (task.question, task.text))
        require_columns(rows, file, task, group)
        if not rows.slices():
            raise UserError(f"file '{file}' is empty: no rows")
        outcomes: Counter[str] = Counter()
        if isinstance(task, Task):
            table = scored(rows, inputs_of(rows, staged, file, task), parts, task)
        else:
            table, outcomes = critiqued(rows, task)
        added = grouped(rows, table, group) if group else table.select(SCORES.names)
        write(rows, added, aside)
        os.replace(aside, out)
        if isinstance(task, Task):
            shutil.rmtree(parts)
    finally:
        for path in (aside, staged):
            with suppress(FileNotFoundError):
                os.unlink(path)
    with_score = added.num_rows - added["score"].null_count
    counts = {"rows": added.num_rows, "scored": with_score, "refused": added["score"].null_count}
    if "rank" in added.column_names:  # groups, by their best solution
        counts["groups"] = added["rank"].to_pylist().count(1)
    say(out, task, counts, outcomes, time.monotonic() - start)
    return counts


def require_columns(rows: Rows, file: str, task: Task | CriticTask, group: str | None) -> None:
    """UserError for a column that the file lacks, or of texts that holds neither texts, nor chats or lists of texts."""
    for option, column in (("--question", task.question), ("--text", task.text), ("--group", group)):
        if column is not None and column not in rows.schema.names:
            raise UserError(f"{option} '{column}': {file} has no such column; it has {', '.join(rows.schema.names)}")
    for column in (task.question, task.text):
        kind = rows.schema.field(column).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if lists and pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("role") >= 0:
            continue
        held = kind.value_type if lists and column == task.text else kind
        require_texts(file, column, pa.schema([(column, held)]))


def inputs_of(rows: Rows, staged: str, file: str, task: Task) -> dict[str, Any]:
    """What scores depend on: stored slices of other inputs are not gone on with."""
    sources = [file] if rows.files == [os.path.abspath(staged)] else rows.files
    folder = Path(locate(task.verifier, Run(".")))
    weights = sorted(path for pattern in ("config.json", *WEIGHTS) for path in folder.glob(pattern))
    texts = asdict(task) | {"verifier": task.verifier.model_dump(mode="json"), "resources": task.resources.dtype}
    return {
        "package": __version__,
        "order": "by question",
        "task": texts | {"engine": task.resources.engine, "max_model_len": task.resources.max_model_len},
        "files": [state(path) for path in sources],
        "model": [state(str(path)) for path in weights],
    }


def state(path: str) -> list[Any]:
    """A file by its place, size and time; a folder by those of its files."""
    if os.path.isdir(path):
        return [path, *(state(str(file)) for file in sorted(Path(path).iterdir()))]
    if not os.path.exists(path):
        return [path]
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def scored(rows: Rows, inputs: dict[str, Any], parts: Path, task: Task) -> pa.Table:
    """A row of `RESULT` for each row of the file; slices that were stored for the same inputs are not scored again."""
    mark, key = parts / "inputs", fingerprint(inputs)
    if not (mark.is_file() and mark.read_text() == key):  # emptied when it holds slices of other inputs
        if parts.exists() and not mark.is_file():
            raise UserError(f"'{parts}' is in the way: `minos rank` keeps what it has scored there; move it away")
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        mark.write_text(key)
    rows, order = by_question(rows, task, parts / "rows.parquet")
    slices = dict(enumerate(rows.slices()))
    score_missing(parts, slices, task)
    results = pa.concat_tables([pq.read_table(parts / f"{number:06d}.parquet", schema=RESULT) for number in slices])
    return results if order is None else results.take(np.argsort(order))


def by_question(rows: Rows, task: Task, path: Path) -> tuple[Rows, np.ndarray | None]:
    """The rows as a file in an order in which those of one question follow one another, so that one slice holds them
    and what they share is computed once, and that order [rows]; None where they do already.

    The texts are in memory meanwhile.
    """
    numbers: dict[str, int] = {}
    cells = (str(cell) for block in rows.blocks() for cell in block[task.question].to_pylist())
    questions = np.array([numbers.setdefault(cell, len(numbers)) for cell in cells])
    if (np.diff(questions) >= 0).all():
        return rows, None
    order = np.argsort(questions, kind="stable")
    texts = pa.concat_tables([block.select([task.question, task.text]) for block in rows.blocks()])
    with pq.ParquetWriter(f"{path}.tmp", texts.schema) as writer:
        for first in range(0, len(order), SLICE_ROWS):
            writer.write_table(texts.take(order[first : first + SLICE_ROWS]))
    os.replace(f"{path}.tmp", path)
    return Rows(str(path), "", []), order


def score_missing(parts: Path, slices: dict[int, Slice], task: Task) -> None:
    """Scores the slices that are not stored yet, and stores each as soon as it is scored."""
    missing = {number: part for number, part in slices.items() if not (parts / f"{number:06d}.parquet").is_file()}
    total, todo = (sum(part.rows for part in group.values()) for group in (slices, missing))
    use_ray = missing and ("RAY_ADDRESS" in os.environ or task.resources.actors > 1)
    scorer, actors = SliceScorer(task), max(1, min(task.resources.actors, len(missing)))
    if use_ray:
        results = on_actors("rank", missing, scorer, task.resources, lambda *_: (actors, actors), WAIT_S)
    else:
        results = ((number, scorer(part)) for number, part in missing.items())
    with Progress("rank", total, "solutions", total - todo) as progress:
        for number, scores in results:
            target = parts / f"{number:06d}.parquet"
            pq.write_table(scores, f"{target}.tmp")
            os.replace(f"{target}.tmp", target)
            progress.advance(scores.num_rows)


def grouped(rows: Rows, results: pa.Table, group: str) -> pa.Table:
    """The results with the columns about groups, whose values are compared as they are."""
    values = [value for block in rows.blocks() for value in block[group].to_pylist()]
    scores, answers = results["score"].to_pylist(), results["answer"].to_pylist()
    with Keys(workers=len(os.sched_getaffinity(0))) as keys:
        key_of = keys([answer for answer in answers if answer])
    added: list[list[Any]] = [[None] * len(values) for _ in GROUP]
    place, _, vote, margin = added
    groups: dict[object, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        groups[value].append(row)
    for members in groups.values():
        own_scores = [scores[row] for row in members]
        won = weighted_vote(own_scores, [answers[row] for row in members], key_of)
        for row, rank in zip(members, ranks(own_scores), strict=True):
            place[row], vote[row], margin[row] = rank, *won
    columns = [*results.select(SCORES.names).columns, *(pa.array(a, f.type) for a, f in zip(added, GROUP, strict=True))]
    table = pa.table(columns, schema=pa.schema([*SCORES, *GROUP]))
    return table.set_column(table.column_names.index("answer"), GROUP.field("answer"), results["answer"])


def write(rows: Rows, added: pa.Table, aside: str) -> None:
    """Writes rows and results; columns of the file with the same names are replaced."""
    names = tuple(added.column_names)
    fields = [field for field in rows.schema if field.name not in names]
    schema = pa.schema([*fields, *added.schema], rows.schema.metadata)
    with pq.ParquetWriter(aside, schema) as writer:
        for block in beside(rows.blocks(), iter([added]), names):
            writer.write_table(block.cast(schema))


def say(out: str, task: Task | CriticTask, counts: dict[str, int], outcomes: Counter[str], seconds: float) -> None:
    """What was scored and why the others were not, and what the columns of groups mean."""
    groups = (
        f"; {counts['groups']:,} groups: the best has rank 1, `vote` is weighted by score (answers: {task.style})"
        if "groups" in counts
        else ""
    )
    why = "no steps, or too long" if isinstance(task, Task) else "no critique with a verdict"
    refused = f", {counts['refused']:,} without a score ({why})" if counts["refused"] else ""
    rate = counts["rows"] / max(seconds, 1e-9)
    print(f"{out}: {counts['scored']:,} of {counts['rows']:,} solutions scored, {rate:,.0f}/s{refused}{groups}")
    if outcomes:
        print(f"critiques: {', '.join(f'{outcome} {number:,}' for outcome, number in outcomes.most_common())}")
        if lacking := sum(outcomes[outcome] for outcome in get_args(Outcome) if outcome not in BOUGHT):
            print(f"{lacking:,} critiques got no answer and cost nothing; the same command asks again")


class Vote(NamedTuple):
    """The answer that wins a group, and by how much: its weight minus the next one's, over the weight of all."""

    answer: str | None
    margin: float | None


def ranks(scores: Sequence[float | None]) -> list[int | None]:
    """The place of each solution of a group by its score, from 1; ties in their order, none without a score."""
    order = sorted((-score, row) for row, score in enumerate(scores) if score is not None)
    places = {row: place for place, (_, row) in enumerate(order, 1)}
    return [places.get(row) for row in range(len(scores))]


def weighted_vote(scores: Sequence[float | None], answers: Sequence[str | None], keys: Mapping[str, str]) -> Vote:
    """The vote of a group, weighted by scores (DIVERSE, 2206.02336, section 3.3).

    `keys` are equal for answers of equal value. A solution without an answer or without a score does not vote. Of
    equal sums the answer that comes first wins; the answer is spelled as its best solution spells it.
    """
    weights: dict[str, float] = defaultdict(float)
    spelled: dict[str, tuple[float, str]] = {}
    for score, answer in zip(scores, answers, strict=True):
        if score is not None and answer is not None:
            key = keys[answer]
            weights[key] += score
            if key not in spelled or score > spelled[key][0]:
                spelled[key] = score, answer
    if not weights:
        return Vote(None, None)
    (winner, most), *others = sorted(weights.items(), key=lambda item: -item[1])
    runner_up = others[0][1] if others else 0.0
    return Vote(spelled[winner][1], (most - runner_up) / sum(weights.values()))


def critic_config(model: str, folder: str, options: dict[str, Any], settings: list[str]) -> Config:
    """The config of a critic, from options of the command line (None where not given) and `key=value` settings."""
    from minos_ray.critiques.limits import priced
    from minos_ray.meta.critics import check_prompt, depends_on

    values = {key: value for key, value in options.items() if value is not None}
    client = {"concurrency": values.pop("concurrency")} if "concurrency" in values else {}
    if values.get("samples", 1) > 1:
        values.setdefault("temperature", SPREAD)
    section = {"model": model, **values, **dict(map(parse_override, settings))}
    sections = {"meta": {"critics": {NAME: section}}, "resources": {"client": client}}
    with named_as_options():
        config = build({"run": folder, "base": {"model": "none"}, **sections})
        critic = config.meta.critics[NAME]
        check_prompt(NAME, critic.prompt)
        if depends_on(critic.prompt, answer="3"):
            raise UserError(f"critique.prompt = {critic.prompt} shows the right answer, which a file does not have")
        priced(critic)
    return config


@contextmanager
def named_as_options() -> Generator[None]:
    """Errors about keys of a config name the options of `minos rank` in their place."""
    try:
        yield
    except (UserError, WorkStopped) as error:
        raise type(error)(KEYS.sub(option, str(error))) from error


def option(match: re.Match[str]) -> str:
    """How a key of the critic is given on the command line."""
    key = match[1] or match[2] or "model"
    if key == "model":
        return "--critic"
    return f"--{key.replace('_', '-')}" if key in CRITIC_OPTIONS else f"--set {key}"


def critiqued(rows: Rows, task: CriticTask) -> tuple[pa.Table, Counter[str]]:
    """A row of `RESULT` for each row of the file, null where no critique gave a verdict; critiques by outcome."""
    from minos_ray.critiques.client import ask  # late: takes two seconds
    from minos_ray.critiques.limits import has_prices
    from minos_ray.critiques.stage import critique_status
    from minos_ray.meta.critics import questions_of, rated

    critic, solutions = task.critic, list(solutions_of(rows, task))
    if not has_prices(critic):
        print(f"rank: no price of model '{critic.model}' is known; costs count as 0 USD")
    questions = [question for number, row in enumerate(solutions) for question in questions_of(critic, number, row)]
    run = Run(task.config.run)
    with locked(run, "minos rank"), named_as_options():
        answers, _ = ask(task.config, critic, [q.request for q in questions], Cache(run), critique_status)
    score_rows, outcomes = rated(solutions, questions, answers)
    scores = [row["score"] if row["step_scores"] else None for row in score_rows]
    columns = [scores, [row["step_scores"] for row in score_rows], [row["answer"] for row in solutions]]
    return pa.table(columns, schema=RESULT), outcomes


def solutions_of(rows: Rows, task: CriticTask) -> Iterator[dict[str, Any]]:
    """The solutions of the file as `minos meta` shows them to critics. Nothing is known of them: no gold, no labels."""
    from minos_ray.meta.critics import lines_shown

    number = itertools.count()
    for block in rows.blocks():
        for question, solution in zip(block[task.question].to_pylist(), block[task.text].to_pylist(), strict=True):
            steps, answer = steps_of(solution, task.splitter), answer_of(solution, task.style)
            yield {
                "candidate_id": str(next(number)),
                "problem_id": "",
                "question": as_text(question, "user"),
                "steps": steps,
                "lines": lines_shown(steps, answer),
                "answer": answer,
                "gold": "",
                "solution": None,
            }
