"""The labelled candidates of a run: sorted by problem, with answers as clusters and scores joined by id.

Candidates with the same answer vote together: answers to one problem are clusters, by keys that are equal for answers
of equal value.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.schema import Aggregation
from minos_ray.errors import UserError
from minos_ray.grading.child import Comparer, side_by_side
from minos_ray.grading.forms import normal
from minos_ray.grading.numbers import MAX_DIGITS, canonical
from minos_ray.problems.split import read_problems
from minos_ray.scoring.verifier import aggregate
from minos_ray.store.run import Run
from minos_ray.training.results import Platt

RIGHT, NO_ANSWER = 0, -1
KINDS = ("fast", "parsed", "unreadable", "timeout")
LIMIT_S = 5.0  # CPU time for one answer
VALUES = "minos_ray.grading.values:keys"

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
NUMBER = re.compile(
    r"(?P<minus>-?)(?:(?P<decimal>[0-9]+(?:\.[0-9]+)?)(?:/(?P<over>[0-9]+))?"
    r"|(?P<integer>[0-9]*)\\frac\{(?P<above>-?[0-9]+)\}\{(?P<below>-?[0-9]+)\})"
)
ASSIGNED = re.compile(r"[a-zA-Z](?:_(?:[0-9a-zA-Z]|\{[0-9a-zA-Z]+\}))?=")  # x=, x_1=, a_{10}=
GROUP = re.compile(r",[0-9]{3}(?![0-9])")  # the next item of a list, or thousands (`11,\! 111`)
SHORTEST_WORD = 3  # letters; `ab` is a product
KEY = "key"  # see `id_keys`
IDS = ["candidate_id", "problem_id"]  # the first columns
LABEL_COLUMNS = [*IDS, "answer", "correct", "status", "step_labels", "error_types"]
SAMPLING_COLUMNS = [*IDS, "finish_reason", "num_tokens"]
SCORE_COLUMNS = [*IDS, "score", "step_scores"]


class Keys(AbstractContextManager["Keys"]):
    """The keys of answers, equal for answers of equal value: clusters take linear time, and "the same" is transitive.

    What `quick` cannot read is evaluated in `workers` processes, which start with the first such answer and are killed
    after `timeout_s` seconds of CPU time for one answer.

    `kinds` has the distinct answers of the last call by how their keys were found: `fast`, `parsed`, and the two kinds
    whose key is their text: `unreadable` (no expression, or one without a value) and `timeout`. `counts` sums them
    over all calls.
    """

    def __init__(self, timeout_s: float = LIMIT_S, workers: int = 1) -> None:
        self.readers = [Comparer(VALUES, timeout_s) for _ in range(workers)]
        self.counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def __call__(self, answers: Iterable[str]) -> dict[str, str]:
        """A key for each distinct answer; one call for many problems keeps all processes busy."""
        quick_keys = {answer: quick(answer) for answer in dict.fromkeys(answers)}
        keys = {answer: key for answer, key in quick_keys.items() if key is not None}
        unread = [answer for answer, key in quick_keys.items() if key is None]
        self.kinds = {**{kind: [] for kind in KINDS}, "fast": list(keys)}
        texts = {answer: normal(answer) for answer in unread}
        # Of all spellings of a normal form only the first is evaluated.
        first_spelling = {text: answer for answer, text in reversed(texts.items())}
        replies = side_by_side(self.readers, [(answer,) for answer in first_spelling.values()]) if unread else []
        values = dict(zip(first_spelling, replies, strict=True))
        for answer, text in texts.items():
            reply = values[text]  # None: its process was killed
            key = reply[0] if reply else None
            self.kinds["timeout" if reply is None else "unreadable" if key is None else "parsed"].append(answer)
            keys[answer] = spelling(text) if key is None else key
        self.counts.update({kind: len(texts) for kind, texts in self.kinds.items()})
        return keys

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; the next answer that must be evaluated starts them again."""
        for reader in self.readers:
            reader.close()


def clusters(
    answers: Iterable[str | None], correct: Iterable[bool], key_of: Mapping[str, str] | None = None
) -> list[int]:
    """A cluster for each candidate: 0 for every answer graded right, -1 without an answer, 1, 2, ... for the others.

    Wrong answers are the same when their keys are: those of `key_of` (made by `Keys` for all wrong answers), else those
    that need no parser (numbers, and one expression written in the common ways).
    """
    numbers: dict[str, int] = {}
    labels = []
    for answer, right in zip(answers, correct, strict=True):
        if right:
            labels.append(RIGHT)
        elif answer is None:
            labels.append(NO_ANSWER)
        else:
            key = key_of[answer] if key_of is not None else text_key(answer)
            labels.append(numbers.setdefault(key, len(numbers) + 1))
    return labels


def text_key(answer: str) -> str:
    """The key of an answer that is not parsed."""
    return quick(answer) or spelling(normal(answer))


def spelling(text: str) -> str:
    """The key of a text in the normal form that has no other value; case is ignored, as by the grader."""
    return f"text {text.casefold()}"


@lru_cache(maxsize=1_000_000)
def quick(answer: str) -> str | None:
    """The key of a number, of numbers in brackets or in a list, and of a word; None for what must be parsed."""
    if INTEGER.fullmatch(answer):
        return answer
    text = normal(answer)
    text = text[assigned.end() :] if (assigned := ASSIGNED.match(text)) else text
    if len(text) >= SHORTEST_WORD and text.isalpha():
        return spelling(text)
    number = number_key(text)
    if number is not None or "," not in text or answer.count(",") != text.count(",") or GROUP.search(text):
        return number
    ordered = text[0] == "(" and text[-1] == ")"
    keys = [number_key(part) for part in (text[1:-1] if ordered else text).split(",")]
    parts = [key for key in keys if key is not None]
    if len(parts) < len(keys):
        return None
    if ordered:
        return f"({'; '.join(parts)})"
    return f"{{{'; '.join(sorted(set(parts)))}}}" if len(set(parts)) > 1 else parts[0]


def number_key(text: str) -> str | None:
    """The canonical form of a number in the normal form; None for anything else, and beyond `MAX_DIGITS` characters."""
    match = NUMBER.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        return None
    if match["decimal"]:
        integer, numerator, denominator = 0, Fraction(match["decimal"]), int(match["over"] or "1")
    else:
        integer, numerator, denominator = int(match["integer"] or 0), Fraction(match["above"]), int(match["below"])
    if not denominator:
        return None
    value = integer + numerator / denominator
    return canonical(-value if match["minus"] else value)


@dataclass(frozen=True)
class Candidates:
    """Labelled candidates; those of problem p are rows `starts[p]` to `starts[p + 1]`.

    `clusters` and `correct` are [candidates]; a cluster is the answer that a candidate votes for (`clusters`).
    `order` [candidates] is where each stood in the table of labels.
    """

    rows: pa.Table
    starts: np.ndarray
    clusters: np.ndarray
    correct: np.ndarray
    order: np.ndarray

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(self.starts) - 1

    @property
    def problem_ids(self) -> list[str]:
        """The id of each problem."""
        return self.rows["problem_id"].take(self.starts[:-1]).to_pylist()

    @property
    def graded(self) -> np.ndarray:
        """[candidates]: False where grading ended in a timeout, so that the outcome is unknown."""
        return pc.not_equal(self.rows["status"], "timeout").to_numpy()

    def by_size(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Problems with equally many candidates: their numbers [problems], and their rows [problems, candidates]."""
        sizes = np.diff(self.starts)
        for size in np.unique(sizes):
            problems = np.flatnonzero(sizes == size)
            yield problems, self.starts[problems][:, None] + np.arange(size)


@dataclass(frozen=True)
class Scores:
    """A verifier's scores in the order of the candidates: NaN, and no step scores, where there is none.

    A candidate has no score when no scorer has seen it, when it was rejected (too long, say), and when none of its
    critiques could be read: in the last two cases its row has score 0 and no step scores.
    """

    score: np.ndarray
    step_scores: pa.ChunkedArray

    def aggregated(self, aggregation: Aggregation, platt: Platt | None = None) -> np.ndarray:
        """[candidates]: the step scores of each as one score, without Platt scaling where it is given."""
        flat = pc.list_flatten(self.step_scores).to_numpy()
        lengths = pc.list_value_length(self.step_scores).fill_null(0).to_numpy()
        return aggregate(platt.before(flat) if platt else flat, lengths, aggregation)

    def before(self, platt: Platt, aggregation: Aggregation) -> np.ndarray:
        """[candidates]: the scores without Platt scaling, those of steps aggregated where there are any."""
        by_step = bool(pc.any(pc.greater(pc.list_value_length(self.step_scores), 0)).as_py())
        return self.aggregated(aggregation, platt) if by_step else platt.before(self.score)


class Block(NamedTuple):
    """All candidates of some problems, and the scores of every verifier in their order.

    `sampling` has `SAMPLING_COLUMNS` of each candidate, null where the run lacks its text; None where it was not read.
    `answers` are the distinct wrong answers by how their keys were found, as in `Keys.kinds`.
    """

    candidates: Candidates
    scores: dict[str, Scores]
    sampling: pa.Table | None
    answers: dict[str, list[str]]


def read_candidates(run: Run, split: str | None = "test") -> Candidates:
    """All labelled candidates of a split (of every split when None) at once, with wrong answers compared by text."""
    labels = run.artefact("labels").read(LABEL_COLUMNS)
    problem_ids = read_problems(run, split, ["problem_id"])["problem_id"].combine_chunks()
    return group_candidates(labels.filter(pc.is_in(labels["problem_id"], value_set=problem_ids)))


def group_candidates(labels: pa.Table, keys: Keys | None = None) -> Candidates:
    """Rows of `labels` sorted by problem; `keys` finds which wrong answers are equal, else their text does."""
    order = id_order(labels)
    rows = labels.take(order).combine_chunks()
    runs = pc.run_end_encode(rows["problem_id"].combine_chunks()) if rows.num_rows else None
    starts = np.append(0, runs.run_ends.to_numpy() if runs is not None else []).astype(np.int64)
    correct = rows["correct"].to_numpy().astype(bool)
    answered = rows["answer"].is_valid().to_numpy()
    clusters = np.where(correct, RIGHT, NO_ANSWER)
    if len(wrong := np.flatnonzero(answered & ~correct)):
        answers = rows["answer"].take(pa.array(wrong)).combine_chunks().dictionary_encode()
        distinct = answers.dictionary.to_pylist()
        key_of = keys(distinct) if keys else {answer: text_key(answer) for answer in distinct}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(key_of.values()))}
        key = np.array([numbers[key_of[answer]] for answer in distinct])[answers.indices.to_numpy()]
        problem = np.searchsorted(starts, wrong, side="right") - 1
        clusters[wrong] = first_seen(problem, key)
    return Candidates(rows, starts, clusters, correct, order.to_numpy())


def first_seen(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[rows]: 1 for the first key of each group and all that are equal in it, 2 for the next one, ...

    `groups` ascend; both are [rows] of integers.
    """
    pairs, first, inverse = np.unique(groups * (keys.max() + 1) + keys, return_index=True, return_inverse=True)
    # Pairs of a group are neighbours, and rows of it come before those of the next one.
    order = np.argsort(first)
    starts = np.flatnonzero(np.diff(groups[first[order]], prepend=-1))
    numbers = np.empty(len(pairs), dtype=np.int64)
    numbers[order] = np.arange(len(pairs)) - np.repeat(starts, np.diff(np.append(starts, len(pairs)))) + 1
    return numbers[inverse]


def id_order(table: pa.Table) -> pa.Array:
    """[rows]: the rows in order of problem ids, those of a problem in order of candidate ids, both as text."""
    if table.num_rows and (keys := table[KEY].to_numpy() if KEY in table.column_names else id_keys(table)) is not None:
        return pa.array(np.argsort(keys, kind="stable"))
    return pc.sort_indices(table, [("problem_id", "ascending"), ("candidate_id", "ascending")])


def id_keys(table: pa.Table, number_of: Mapping[str, int] | None = None) -> np.ndarray | None:
    """[rows]: a number for each candidate that ascends as problems and candidate ids do, negative for other problems.

    Problems are numbered by `number_of`, else in order of their ids. None where an id is not `PROBLEM/INDEX`.
    """
    from minos_ray.evaluation.kernels import ODD, id_keys

    problems, ids = table["problem_id"].combine_chunks(), table["candidate_id"].combine_chunks()
    problems = problems if pa.types.is_dictionary(problems.type) else problems.dictionary_encode()
    if not isinstance(ids, pa.Array) or not isinstance(problems, pa.Array):  # 2 GiB of ids and more
        return None
    names = problems.dictionary
    if number_of is None:
        numbers = np.argsort(pc.sort_indices(names).to_numpy())
    else:
        numbers = np.array([number_of.get(name, -1) for name in names.to_pylist()], np.int64)
    keys = id_keys(*text_of(ids), *text_of(names), problems.indices.to_numpy(), numbers)
    return None if (keys == ODD).any() else keys


def text_of(strings: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all strings, and where each begins and the last ends."""
    ends = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return np.frombuffer(strings.buffers()[2] or b"", np.uint8), ends


def read_scores(run: Run, name: str, candidates: Candidates) -> Scores | None:
    """The scores of a complete artefact, None where it is not complete."""
    artefact = run.artefact(name)
    return align(name, artefact.read(SCORE_COLUMNS), candidates) if artefact.manifest() else None


def places(table: pa.Table, candidates: Candidates) -> pa.Array:
    """[candidates]: the row of each in a table with their keys or ids; null where it has none."""
    if KEY in table.column_names:
        keys, sought, order = table[KEY].to_numpy(), candidates.rows[KEY].to_numpy(), candidates.order
        if len(keys) == len(sought) and np.array_equal(keys[order], sought):  # the rows are those of labels
            return pa.array(order)
        order = np.argsort(keys, kind="stable")
        place = order[np.minimum(np.searchsorted(keys[order], sought), len(keys) - 1)]
        return pa.array(place, mask=keys[place] != sought)
    ids, sought = table["candidate_id"].combine_chunks(), candidates.rows["candidate_id"].combine_chunks()
    if len(ids) == len(sought):
        order = id_order(table)
        if ids.take(order).equals(sought):
            return order
    return pc.index_in(sought, value_set=ids)


def align(artefact: str, table: pa.Table, candidates: Candidates) -> Scores:
    """Scores put in the order of the candidates; UserError when one, or one of a step, is not in 0..1."""
    index = places(table, candidates)
    rows = table.take(index)
    score = rows["score"].to_numpy().astype(np.float64)
    missing = index.is_null().to_numpy(zero_copy_only=False)
    present = np.flatnonzero(~missing)
    check_range(f"{artefact}: the score", score[present], present, candidates)
    steps = rows["step_scores"].combine_chunks()
    owners = pc.list_parent_indices(steps).to_numpy()
    check_range(f"{artefact}: a step score", pc.list_flatten(rows["step_scores"]).to_numpy(), owners, candidates)
    rejected = (score == 0) & (pc.list_value_length(steps).fill_null(0).to_numpy() == 0)
    return Scores(np.where(missing | rejected, np.nan, score), rows["step_scores"])


def check_range(what: str, values: np.ndarray, owners: np.ndarray, candidates: Candidates) -> None:
    """UserError when a value is not in 0..1; `owners` are the rows of the candidates that the values belong to."""
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(outside):
        candidate = candidates.rows["candidate_id"][int(owners[outside[0]])].as_py()
        raise UserError(f"{what} of '{candidate}' is {values[outside[0]]}; scores lie in 0..1")
