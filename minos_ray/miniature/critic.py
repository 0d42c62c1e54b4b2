"""Writes critiques for the miniature as a good teacher would: what the step should be, how it compares, a verdict."""

import random
from dataclasses import replace

from minos_ray.miniature.language import Clause, Problem, read
from minos_ray.miniature.problems import reading
from minos_ray.miniature.step_labels import Verdict, judged, parse_step
from minos_ray.steps.critique_text import critique_text

CARE = 0.25
"""Of the critic who sees no labels, as in `noise`: about 77 % of its critiques agree with them, as published pipelines
found with large models (docs/critics.md)."""
_QUOTES = 0.25
"""Share of steps for which the clause is quoted; the others name it by one word, as solutions do."""
_AGREE = (".", ", the same.", ", yes.")
_CALCULATION = (", not {result}.", ", {result} is wrong.")
_LOGICAL = (", but it takes {given}.", ", not {given}.")
_ACCUMULATION = (", it follows the earlier mistake.", ", it inherits a wrong value.")
_UNRELATED = ("nothing in the problem says {given}.", "the problem has no such {given}.")
_NEEDLESS = ("the answer does not need {given}.", "{given} is not part of this.")
_OTHER = ("this cannot be read.", "no calculation here.")


def short(clause: Clause) -> str:
    """A clause without its subject and full stop, as a critique quotes it."""
    subject = clause.words.get("n" if clause.phrase.text.startswith("{n}") else "m", "")
    return clause.text.removeprefix(f"{subject} ").removeprefix("Then ").removeprefix("The ").rstrip(".")


def misread(problem: Problem, rng: random.Random) -> Problem:
    """The problem as a careful reader takes it who sees no labels: some clauses mean something else to them."""
    read_as = [replace(clause.phrase, right=reading(clause.phrase, CARE, rng)) for clause in problem.clauses]
    pairs = zip(problem.clauses, read_as, strict=True)
    return replace(problem, clauses=tuple(replace(clause, phrase=phrase) for clause, phrase in pairs))


def _explanation(step: str, verdict: Verdict, rng: random.Random) -> str:
    calculation = parse_step(step)
    if calculation is None:
        return rng.choice(_OTHER)
    expression = f"{calculation.left} {calculation.op} {calculation.right}"
    if verdict.gold is None:
        return rng.choice(_UNRELATED if verdict.error == "unrelated" else _NEEDLESS).format(given=expression)
    gold = verdict.gold
    ending = {
        "": _AGREE,
        "calculation": _CALCULATION,
        "logical": _LOGICAL,
        "unrelated": _LOGICAL,
        "accumulation": _ACCUMULATION,
    }[verdict.error]
    skips = "".join(f"first {gold.calculation}, then " for gold in verdict.skipped)
    sentence = rng.choice(ending).format(given=expression, result=calculation.result)
    clause_text = short(gold.clause) if rng.random() < _QUOTES and not gold.continues else gold.clause.phrase.word
    return f"{skips}{clause_text}: {gold.calculation}{sentence}"


def write_critique(question: str, steps: list[str], labels: list[int] | None, rng: random.Random) -> str:
    """A step-wise critique of a candidate whose step labels are known; ValueError when they are not the gold ones.

    Without labels the critic relies on its own reading of the problem, which may be wrong.
    """
    problem = read(question)
    verdicts = judged(problem if labels is not None else misread(problem, rng), steps)
    if labels is not None and [verdict.label for verdict in verdicts] != list(labels):
        raise ValueError(f"labels {list(labels)} are not those of the gold chain for {question!r}")
    explanations = []
    for step, verdict in zip(steps, verdicts, strict=True):
        if verdict.answer is None:
            explanations.append(_explanation(step, verdict, rng))
        else:
            skips = "".join(f"first {gold.calculation}, then " for gold in verdict.skipped)
            explanations.append(f"{skips}{rng.choice(('the answer is', 'it should be'))} {verdict.answer}.")
    final = bool(verdicts) and verdicts[-1].answer is not None and verdicts[-1].label == 1
    return critique_text(zip(explanations, (bool(verdict.label) for verdict in verdicts), strict=True), final)


_REASONS = {
    "unrelated": "the problem says nothing of this.",
    "accumulation": "it only carries on an earlier mistake.",
    "calculation": "the operation is right, its result is not.",
    "logical": "that is not what the problem asks to do.",
    "other": "no calculation can be read.",
}


def write_error_types(wrong: list[int], errors: list[str], rng: random.Random, careless: float) -> str:
    """One line per wrong step (indices from 0) with its type; now and then a careless or an unknown one."""
    lines = []
    for step in wrong:
        kind = rng.choice(list(_REASONS)) if rng.random() < careless else errors[step] or "other"
        lines.append(f"Step {step + 1}: {kind}: {_REASONS[kind]}")
    return "\n".join(lines).replace("logical:", "wrong:") if rng.random() < careless / 2 else "\n".join(lines)
