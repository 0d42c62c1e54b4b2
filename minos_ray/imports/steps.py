"""Step labels and preferences in the common shapes (TRL's and axolotl's stepwise columns, chosen/rejected pairs,
Math-Shepherd), and Math-Minos' own data, told apart by their columns.

Math-Shepherd: `input` is the question and the steps, each ended by a tag; `label` has `+` or `-` for each tag. A few
rows of the release have a tag inside the question, or no `Step 1:`; both are read, and counted.

Math-Minos (2406.14024 and the files its code reads): critiques (`query`, `response`), judged solutions (`query`,
`label: {y_pred, acc}`), the ORM set (`text`, `label` 0 or 1) and the PRM set as text (Math-Shepherd's columns, or
`text` and `label`; steps end in the tag of either). The published PRM set is tokenised: its text cannot be had back, so
its rows are counted and left out.
"""

import re
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from minos_ray.files import BadRow, is_hub, is_nothing
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.tables import Collection, Policy, Row, Solution, Split, critique
from minos_ray.problems.loaders import text_of, text_or_none
from minos_ray.steps.split import is_texts, lines, own_solution, paragraphs_or_lines, without_thinking
from minos_ray.store.run import Manifest, Run, open_path

QUESTIONS, STEPS, LABELS = ("question", "prompt", "problem"), ("steps", "completions"), ("labels", "step_labels")
GOLDS = ("answer", "gold")
TAG = "\u043a\u0438"
FIRST_STEP = re.compile(r"step 1:", re.IGNORECASE)
SIGNS = {"+": 1, "-": 0}
DATASET, CRITIC, PROMPT = "math-minos", "gpt-4", "math-minos-30k"
SHORT_TAG = "\u0438"
NUMBER = re.compile(r"Step ?(\d{1,4}) ?:")
ANSWER_LINE = re.compile(r"\n\s*(?=The answer is)")
FINAL = re.compile(r"final answer is:?\W*(true|false)\b", re.IGNORECASE)
# Words that call a step wrong in the first sentence on it, as in the paper's meta-evaluation.
WRONG = ("incorrect", "not correct", "wrong", "false")


def import_steps(
    src: str,
    run: Run,
    *,
    split: Split = "train",
    question: str | None = None,
    steps: str | None = None,
    labels: str | None = None,
    correct: str | None = None,
    threshold: float = 0.5,
    after_first_error: Policy = "keep",
) -> list[Manifest]:
    """Problems, candidates and labels of solutions whose steps are labelled.

    A label is true or false, 1 or 0, or a number between: the chance that the step is right, which is kept and is a
    right step from `threshold` on. Null and -1 are unlabelled steps. A solution is right when column `correct` says so;
    without that column, when its last step is.
    """
    collection = Collection("steps", after_first_error)
    names = (question, steps, labels, correct)
    for solution in collection.usable(src, lambda record: labelled(record, names, threshold, split)):
        if collection.add(solution) and solution.step_scores:
            collection.notes["soft labels"] += 1
    options = {"split": split, "threshold": threshold, "after_first_error": after_first_error}
    return collection.write(run, src, {**options, "columns": list(names)})


def import_pairs(
    src: str,
    run: Run,
    *,
    split: Split = "train",
    question: str | None = None,
    chosen: str = "chosen",
    rejected: str = "rejected",
) -> list[Manifest]:
    """Problems, candidates and labels of preferences: `chosen` is a right solution, `rejected` a wrong one.

    Both are texts, lists of steps or chats. Steps have no labels, so an ORM can learn from them and a PRM cannot.
    """
    collection, names = Collection("pairs", "keep"), (question, chosen, rejected)
    for pair in collection.usable(src, lambda record: both(record, *names, split)):
        for solution in pair:
            collection.add(solution)
    return collection.write(run, src, {"split": split, "columns": list(names)})


def labelled(record: Row, names: tuple[str | None, ...], threshold: float, split: str) -> Solution:
    """A solution with its step labels; BadRow when they do not fit the steps."""
    question, steps, labels = (
        column(record, name, usual) for name, usual in zip(names[:3], (QUESTIONS, STEPS, LABELS), strict=True)
    )
    texts = step_texts(steps)
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise BadRow("as many labels as steps are needed")
    scores = [score(value) for value in labels]
    step_labels = [-1 if value is None else int(value >= threshold) for value in scores]
    outcome = record.get(names[3]) if names[3] else step_labels[-1]
    if outcome not in (0, 1):
        raise BadRow("the last step has no label" if not names[3] else f"'{names[3]}' is not true or false")
    soft = scores if any(value not in (None, 0, 1) for value in scores) else None
    gold = next((str(record[name]) for name in GOLDS if isinstance(record.get(name), str | int | float)), None)
    answer = extract_latex("\n".join(texts))
    facts = (text_of_prompt(question), "steps", texts, step_labels, bool(outcome), answer, gold)
    return Solution(*facts, split=split, source="imported", step_scores=soft, stated=True)


def both(record: Row, question: str | None, chosen: str, rejected: str, split: str) -> list[Solution]:
    """The right and the wrong solution of a row."""
    asked = text_of_prompt(column(record, question, QUESTIONS))
    solutions = []
    for name, correct in ((chosen, True), (rejected, False)):
        value = column(record, name, ())
        if not is_texts(value):  # a text, or the last turn of a chat
            text = value[-1].get("content") if isinstance(value, list) and isinstance(value[-1], dict) else value
            if not isinstance(text, str) or not text.strip():
                raise BadRow(f"'{name}' is no text")
            value = paragraphs_or_lines(own_solution(text))
        steps = step_texts(value)
        answer = extract_latex("\n".join(steps))
        unlabelled = [-1] * len(steps)
        solutions.append(
            Solution(asked, "pairs", steps, unlabelled, correct, answer, split=split, source="none", stated=True)
        )
    if solutions[0].steps == solutions[1].steps:
        raise BadRow("chosen is rejected")
    return solutions


def column(record: Row, name: str | None, usual: Sequence[str]) -> Any:
    """The value of a named column, or of the first usual one that is there; BadRow when none is."""
    for candidate in [name] if name else usual:
        if record.get(candidate) is not None:
            return record[candidate]
    raise BadRow(f"no '{name or usual[0]}'")


def step_texts(steps: Any) -> list[str]:
    """The steps; BadRow for anything but a list of texts."""
    if not is_texts(steps) or not steps or not all(step.strip() for step in steps):
        raise BadRow("'steps' is not a list of texts")
    return [step.strip() for step in steps]


def score(label: Any) -> float | None:
    """A label as a number from 0 to 1, None where a step has none."""
    if label is None or label == -1:
        return None
    if isinstance(label, bool | int | float) and isfinite(label) and 0 <= label <= 1:
        return float(label)
    raise BadRow("a label is not true, false or a number from 0 to 1")


def text_of_prompt(prompt: Any) -> str:
    """The question: a text, or the last turn of a user in a chat."""
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    text = next((turn.get("content") for turn in reversed(turns) if turn.get("role") == "user"), prompt)
    if not isinstance(text, str) or not text.strip():
        raise BadRow("the question is no text")
    return text.strip()


def import_shepherd(
    src: str, run: Run, *, split: Split = "train", after_first_error: Policy = "keep"
) -> list[Manifest]:
    """Problems, candidates and labels; a solution is right when its last step is."""
    collection = Collection("math-shepherd", after_first_error)
    for solution, note in collection.usable(src, lambda record: read_shepherd(record, split)):
        collection.add(solution)
        if note:
            collection.notes[note] += 1
    return collection.write(run, src, {"split": split, "after_first_error": after_first_error})


def read_shepherd(record: Row, split: str, tag: str = TAG) -> tuple[Solution, str]:
    """One row, and what is odd about it (empty when nothing is); BadRow when its texts do not belong together."""
    tagged, signed, task = (text_of(record, column) for column in ("input", "label", "task"))
    pairs = list(pieces(tagged, signed, tag))
    if not pairs:
        raise BadRow("no step tag in 'input'")
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    question, first, piece, note = divided(texts)
    steps = [first, *(text.strip() for text in texts[piece + 1 :])]
    if not question or not all(steps):
        raise BadRow("an empty question or step")
    facts = (labels[-1] == 1, extract_latex(steps[-1]), None, "math-shepherd", split, "rollouts")
    return Solution(question, task.lower(), steps, labels[piece:], *facts), note


def divided(texts: list[str]) -> tuple[str, str, int, str]:
    """Question, first step, the number of the piece that it is in, and what is odd."""
    for number, text in enumerate(texts):
        match = FIRST_STEP.search(text)
        if match:
            question = " ".join(part.strip() for part in [*texts[:number], text[: match.start()]])
            return question.strip(), text[match.start() :].strip(), number, "tag inside the question" if number else ""
    question, mark, first = texts[0].partition("?")
    if not mark:
        raise BadRow("no 'Step 1:' and no question mark")
    return f"{question.strip()}?", first.strip(), 0, "no 'Step 1:', divided at the question mark"


def pieces(tagged: str, signed: str, tag: str) -> Iterator[tuple[str, int]]:
    """Text before each tag, and the sign that stands for the tag in the other text.

    Where the other text has the tag's letters too, they are part of a word.
    """
    position, text = 0, ""
    for piece in tagged.split(tag)[:-1]:
        if not signed.startswith(piece, position):
            raise BadRow("'label' does not follow 'input'")
        position, text = position + len(piece), text + piece
        if signed.startswith(tag, position):
            position, text = position + len(tag), text + tag
            continue
        sign = signed[position : position + 1]
        if sign not in SIGNS:
            raise BadRow("'label' has another tag than + or -")
        yield text, SIGNS[sign]
        position, text = position + 1, ""


class ParsedRow(NamedTuple):
    """A solution, the critique that came with it, and what is odd about the row."""

    solution: Solution
    critique: str | None = None
    note: str = ""


def import_minos(src: str, run: Run, *, split: Split = "train", after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates, labels and, where there are some, critiques, of a file or of a folder with train and eval.

    Critiques have no label of their own: the critic was told the labels, so its verdict is the outcome. Their steps are
    unlabelled; `step_verdicts` is what the paper's meta-evaluation would read. Judged solutions are in split test.
    """
    collection = Collection("math-minos", after_first_error)
    for path, part in sources(src, split):
        for row in collection.usable(path, lambda record, part=part: read(record, part)):
            add(collection, row)
    return collection.write(run, src, {"split": split, "after_first_error": after_first_error})


def sources(src: str, split: str) -> Iterator[tuple[str, str]]:
    """Paths with their splits: the folders `train` and `eval` of a saved dataset, or all of `src`."""
    parts = {f"{src.rstrip('/')}/{name}": part for name, part in (("train", "train"), ("eval", "test"))}
    places = [] if is_hub(src) else [open_path(path) for path in parts]
    saved = places and all(fs.get_file_info(root).type == pafs.FileType.Directory for fs, root in places)
    yield from parts.items() if saved else [(src, split)]


def add(found: Collection, row: ParsedRow) -> None:
    """A row and its critique."""
    label = found.add(row.solution)
    if row.note:
        found.notes[row.note] += 1
    if label is not None and row.critique is not None:
        verdicts, final = step_verdicts(row.critique, len(label["steps"])), final_verdict(row.critique)
        status = "no_verdict" if final is None else "ok"
        found.notes["critiques that do not follow the steps"] += not verdicts
        found.keep("critiques", critique(label, CRITIC, PROMPT, row.critique, verdicts, final, status))


def read(record: Row, split: str) -> ParsedRow:
    """One row of any of the files."""
    if "input_ids" in record:
        raise BadRow("tokenised: the row has no text")
    if "query" in record:
        return read_query(record, split)
    if isinstance(record.get("label"), str):
        # A row of the PRM set; the long tag ends in the short one, so it is looked for first.
        tagged = record.get("input", record.get("text"))
        tag = TAG if isinstance(tagged, str) and TAG in tagged else SHORT_TAG
        parsed, note = read_shepherd({"task": DATASET, **record, "input": tagged}, split, tag)
        question = parsed.question.removeprefix("Human:").removesuffix("Assistant:").strip()
        return ParsedRow(parsed._replace(question=question), note=note)
    text, right = text_of(record, "text"), record.get("label")
    if right not in (0, 1):
        raise BadRow("'label' is neither 0 nor 1")
    return ParsedRow(solution(text, bool(right), split))


def read_query(record: Row, split: str) -> ParsedRow:
    """A critique, or a solution that was judged by its answer, or both."""
    text = text_or_none(record, "response")
    response = None if text is None else without_thinking(text)
    judged = record.get("label")
    if judged is not None:  # `y_pred` is the answer, `[invalid]` without one; `acc` True or False, as text
        query = text_of(record, "query")
        if not isinstance(judged, dict) or str(judged.get("acc")) not in ("True", "False"):
            raise BadRow("'label' has no 'acc' True or False")
        stated = "" if is_nothing(judged.get("y_pred")) else str(judged["y_pred"]).strip()
        answer = None if stated in ("", "[invalid]") else stated
        return ParsedRow(solution(query, str(judged["acc"]) == "True", "test")._replace(answer=answer), response)
    verdict = final_verdict(response or "")
    if verdict is None:
        raise BadRow("neither a verdict in 'response' nor a 'label'")
    return ParsedRow(solution(text_of(record, "query"), verdict, split), response)


def solution(text: str, correct: bool, split: str) -> Solution:
    """Question and steps of `Human: ... Assistant: ...`, or of a question followed by `Step 1:`."""
    question, mark, written = text.removeprefix("Human:").partition("Assistant:")
    if not mark:
        first = FIRST_STEP.search(text)
        question, written = (text[: first.start()], text[first.start() :]) if first else ("", "")
    written = without_thinking(written)
    steps = numbered(written)
    if not question.strip() or not steps:
        raise BadRow("no question and solution in the text")
    answer = extract_latex(written, fallback=False)
    facts = (correct, answer, None, DATASET, split, "none")
    return Solution(question.strip(), DATASET, steps, [-1] * len(steps), *facts)


def numbered(text: str) -> list[str]:
    """A step per `Step k:` in sequence, wherever it stands, and the line with the answer; without numbers, lines."""
    starts: list[int] = []
    for number in NUMBER.finditer(text):
        if int(number[1]) == len(starts) + 1:
            starts.append(number.start())
    if not starts:
        return lines(text)
    pieces = [text[first:last].strip() for first, last in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [*lines(text[: starts[0]]), *pieces[:-1], *(part.strip() for part in ANSWER_LINE.split(pieces[-1]))]


def final_verdict(critique: str) -> bool | None:
    """What follows the last `final answer is`."""
    verdicts = FINAL.findall(critique)
    return verdicts[-1].lower() == "true" if verdicts else None


def step_verdicts(critique: str, steps: int) -> list[int]:
    """1 or 0 per step, the final verdict for the last; empty unless the critique has a part for each step.

    As in the paper's meta-evaluation: a step is wrong when the first sentence on it says so.
    """
    final, parts = final_verdict(critique), numbered(critique)
    parts = [part for part in parts if NUMBER.match(part)]
    if final is None or len(parts) not in (steps - 1, steps):
        return []
    first = [part.partition(".")[0].lower() for part in parts]
    verdicts = [int(not any(word in sentence for word in WRONG)) for sentence in first]
    return [*verdicts[: steps - 1], int(final)]
