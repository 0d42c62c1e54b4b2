"""Collecting rows of one solution each into problems, candidates and labels."""

from collections import Counter
from collections.abc import Mapping

from minos_ray.imports.write import Row, begin_import, candidate, label, write_rows
from minos_ray.store import Manifest, Run

NAMES = ("problems", "candidates", "labels")


class Collection:
    """Problems by their question, with the candidates and labels that came with them."""

    def __init__(self, prefix: str, split: str, source: str) -> None:
        self.prefix, self.split, self.source = prefix, split, source
        self.problems: dict[str, Row] = {}
        self.candidates: list[Row] = []
        self.labels: list[Row] = []
        self.dropped: Counter[str] = Counter()
        self.indices: Counter[str] = Counter()

    def add(
        self, question: str, dataset: str, model: str, steps: list[str], step_labels: list[int], answer: str | None,
        correct: bool, gold: str | None = None,
    ) -> None:  # fmt: skip
        """One labelled solution. Where the gold answer is not given, the answer of a right solution is it."""
        fields = {"dataset": dataset, "split": self.split, "question": question, "answer": "", "solution": None}
        number = len(self.problems)
        problem = self.problems.setdefault(question, {"problem_id": f"{self.prefix}-{number}", **fields})
        if not problem["answer"]:
            problem["answer"] = gold or (answer if correct and answer else "")
        own = candidate(problem["problem_id"], self.indices[question], "\n".join(steps), model)
        self.indices[question] += 1
        self.candidates.append(own)
        self.labels.append(label(own, answer, correct, steps, step_labels, self.source))

    def write(self, run: Run, form: str, src: str, options: Mapping[str, object]) -> list[Manifest]:
        """Completes the three artefacts."""
        artefacts = begin_import(run, NAMES, form, src, **options)
        unknown = sum(not row["answer"] for row in self.problems.values())
        return [
            write_rows(artefacts["problems"], {self.split: list(self.problems.values())}, {}, gold_unknown=unknown),
            write_rows(artefacts["candidates"], {self.split: self.candidates}, self.dropped),
            write_rows(artefacts["labels"], {self.split: self.labels}, self.dropped),
        ]
